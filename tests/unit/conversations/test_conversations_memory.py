"""200 MB are read in less than 300 MB of memory, whatever the shape of the file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.corpus.builders import conversation, pair, sharegpt
from tests.project import ROOT

FILE_BYTES = 200_000_000
LIMIT_KILOBYTES = 300 * 1024

# `ru_maxrss` would include the memory of the process that started this one.
MEASURE = """
import re, sys
from pathlib import Path
from lora_conversations.survey import Surveyor
from tests.project import ROOT
surveyor = Surveyor()
with open(sys.argv[1], "rb") as file:
    while chunk := file.read(1 << 20):
        surveyor.feed(chunk)
surveyor.close()
result = surveyor.result()
assert not {"torch", "transformers", "numpy"} & set(sys.modules)
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
print(result.examples, result.bad, peak)
"""

LONG_TEXT = "Let us look at this calmly, step by step. " * 100


def fill(path: Path, begin: str, item: Callable[[int], str], separator: str, end: str) -> int:
    """Write about 200 MB of items; returns how many."""
    count = FILE_BYTES // len(item(0))
    with path.open("w") as file:
        file.write(begin)
        for number in range(count):
            file.write(item(number) if number == 0 else separator + item(number))
        file.write(end)
    return count


def measure(path: Path) -> tuple[int, int, int]:
    """Survey a file in a process of its own; returns examples, bad lines, and the peak memory in kilobytes."""
    command = [sys.executable, "-c", MEASURE, str(path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    path.unlink()
    examples, bad, kilobytes = map(int, answer.stdout.split())
    print(f"{examples} examples, {kilobytes // 1024} MB")
    return examples, bad, kilobytes


def brightrun(number: int) -> str:
    return json.dumps(pair(4, f"c{number}", target_response=LONG_TEXT))


def full(number: int) -> str:
    return json.dumps(conversation(f"c{number}", pair(4, f"c{number}", target_response=LONG_TEXT)))


def short(number: int) -> str:
    return json.dumps(sharegpt("What is a bond?", LONG_TEXT[:800], id=f"c{number}"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("item", "begin", "separator", "end"),
    [
        (brightrun, '{"_meta": {"total_pairs": 1}}\n', "\n", ""),
        (full, '{"consultant_profile": {}, "conversations": [', ",", "]}"),
        (short, "[\n", ",\n", "\n]"),
    ],
    ids=["lines", "one-line-document", "list-of-small-examples"],
)
def test_200_mb_are_surveyed_in_300_mb(
    tmp_path: Path, item: Callable[[int], str], begin: str, separator: str, end: str
) -> None:
    path = tmp_path / "dataset"
    count = fill(path, begin, item, separator, end)
    examples, bad, kilobytes = measure(path)
    assert (examples, bad) == (count, 0)
    assert kilobytes < LIMIT_KILOBYTES


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "line",
    [
        "[" + "[]," * 1_390_000 + "[]]",
        "{" + ",".join(f'"k{number}":1' for number in range(350_000)) + "}",
        '{"messages": "' + "a" * 4_100_000 + '\U0001f600"}',
        "x" * 100_000_000,
    ],
    ids=["empty-lists", "many-keys", "wide-characters", "endless-line"],
)
def test_hostile_line_does_not_exhaust_memory(tmp_path: Path, line: str) -> None:
    path = tmp_path / "dataset"
    good = json.dumps(sharegpt("a", "b"))
    path.write_text(f"{good}\n{line}\n{line}\n{good}\n")
    examples, bad, kilobytes = measure(path)
    assert (examples, bad) == (2, 2)
    assert kilobytes < LIMIT_KILOBYTES
