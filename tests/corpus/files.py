"""Files that are no dataset at all, or whose text is not JSON Lines: archives, other encodings, half a file."""

from __future__ import annotations

import gzip

from tests.corpus.builders import (
    AGAIN,
    CUT,
    EMPTY,
    FOREIGN_HINT,
    GOOD,
    META,
    NO_PAIR,
    NOT_JSON,
    PRETTY,
    UTF8,
    Case,
    chat,
    conversation,
    full_file,
    line_of,
    lines,
    pair,
    zipped,
)

FILES = [
    Case("no bytes", b"", refused=EMPTY),
    Case("only blank lines", b"\n  \r\n\t\n", refused=EMPTY),
    Case("only a byte order mark", b"\xef\xbb\xbf", refused=EMPTY),
    Case("zero bytes only", b"\x00" * 5000, refused=("The dataset consists of zero bytes.", "Upload the file again.")),
    Case("gzip", gzip.compress(lines(*GOOD)), refused=("The dataset is a gzip archive, not JSON.", FOREIGN_HINT)),
    Case(
        "zip",
        zipped(lines(*GOOD)),
        refused=("The dataset is a zip archive or an Office file, not JSON.", FOREIGN_HINT),
    ),
    Case(
        "html error page",
        b"<!DOCTYPE html><html><body>502 Bad Gateway</body></html>",
        refused=("The dataset is an HTML or XML page, not JSON.", FOREIGN_HINT),
    ),
    Case("parquet", b"PAR1\x15\x04", refused=("The dataset is a Parquet file, not JSON.", FOREIGN_HINT)),
    Case("pdf", b"%PDF-1.7 ...", refused=("The dataset is a PDF file, not JSON.", FOREIGN_HINT)),
    Case(
        "git lfs pointer",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        refused=("The dataset is a Git LFS pointer without its file, not JSON.", FOREIGN_HINT),
    ),
    Case("csv", b"prompt,completion\nHow?,So.\n", refused=NOT_JSON),
    Case("plain text", b"Once upon a time.\n", refused=NOT_JSON),
    Case("one number", b"42", refused=NOT_JSON),
    Case(
        "utf-16 with a mark",
        lines(*GOOD).decode().encode("utf-16"),
        refused=("The dataset is UTF-16 or UTF-32 text, not UTF-8.", UTF8),
    ),
    Case(
        "utf-16 without a mark",
        lines(*GOOD).decode().encode("utf-16-le"),
        refused=("The dataset is UTF-16 or UTF-32 text, not UTF-8.", UTF8),
    ),
    Case(
        "utf-32",
        lines(*GOOD).decode().encode("utf-32"),
        refused=("The dataset is UTF-16 or UTF-32 text, not UTF-8.", UTF8),
    ),
    Case("half a file of lines", CUT, 19, refused=("The dataset breaks off in the middle of line 20.", AGAIN)),
    Case(
        "half a file inside a character",
        lines(GOOD[0], chat("Wo?", "Köln"))[: lines(GOOD[0], chat("Wo?", "Köln")).index("ö".encode()) + 1],
        1,
        refused=("The dataset breaks off in the middle of line 2.", AGAIN),
    ),
    Case(
        "half a pretty document",
        PRETTY[: PRETTY.index(b"Answer 3.") + 4],
        2,
        refused=(
            f"The dataset breaks off in the middle of line {line_of(PRETTY, 'Answer 3.')}.",
            AGAIN,
        ),
    ),
    Case(
        "half a full file on one line",
        full_file(conversation("a", pair(2)), conversation("b", pair(2)))[:-60],
        1,
        refused=("The dataset breaks off in the middle of line 1.", AGAIN),
    ),
    Case("only the header", lines(META), refused=NO_PAIR),
    Case("an empty list", b"[]", refused=NO_PAIR),
    Case("an empty full file", full_file(), refused=NO_PAIR),
    Case("a conversation without pairs", full_file(conversation("a")), refused=NO_PAIR),
    Case(
        "no pair has an answer",
        lines(META, pair(2, target_response=None), pair(4, target_response=None)),
        skipped=2,
        refused=(
            "No pair of the dataset has an answer: target_response is null in 2 pairs.",
            "Generate the answers first.",
        ),
    ),
]
