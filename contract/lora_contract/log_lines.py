"""What is kept of a container's log: which lines, which of their words, and how many.

A run's log is read by the project's operator and stored beside the adapter. It must hold no secret and no text of the
dataset, and a library's message may quote a row: a warning that prints the example it could not tokenise, an exception
with the value that it could not convert. No search can tell such words from others, so nothing is kept because it
looks harmless. Kept is only

- what the trainer's own code has written (`own_line`); its messages name lines and settings, never their content;
- of a traceback the places: file, line and function;
- of an exception or a warning its type, and its words only where they are one of `_KNOWN_FAULTS` or about an import;
- of other log records the logger, the level and the place.

All other lines are counted and left out. The trainer filters its lines so before it prints them; the worker filters
them again, because it does not trust the container. So the log at the GPU cloud holds no more than the kept one.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BeforeValidator

from lora_contract.redaction import redact, redact_random

MAX_LOG_LINES = 200
MAX_LOG_LINE_CHARACTERS = 1000
MAX_LOG_BYTES = 64_000
"""The most bytes of all lines together, in UTF-8. Escaped as JSON they take three times as many at most."""

CONTINUED = "  ¦ "
"""Begins each further line of a message of several lines, so that it is told from a line of another program."""

_ESCAPE_SEQUENCE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b.")
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\uffff]")
"""Control characters, and those that change how a terminal shows others, such as the order of writing."""

_LEVELS = "DEBUG|INFO|WARNING|ERROR|CRITICAL"
_STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"
_OWN_LINE = re.compile(rf"{_STAMP} (?:__main__|lora_\w+(?:\.\w+)*) (?:{_LEVELS}) ")
_PATH = r"(?:[\w.+-]*/)*[\w.+-]+\.py|<frozen [\w.]+>"
_OTHERS_LINE = re.compile(rf"{_STAMP} [\w.]+ (?:{_LEVELS}) at (?:{_PATH}):\d+")
_PLACE = re.compile(rf'\s*File "(?:{_PATH})", line \d+(?:,)? in [\w.<>]+')
_WARNING = re.compile(rf"(?:{_PATH}):\d+: [A-Za-z_.]+Warning(?=:| \[…\]$)")
_EXCEPTION = re.compile(
    r"(?P<type>(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:Error|Exception|Exit|Interrupt|Warning))(?:: (?P<words>.*))?"
)
_STRUCTURE = re.compile(
    r"Traceback \(most recent call last\):|During handling of the above exception, another exception occurred:"
    r"|The above exception was the direct cause of the following exception:"
    r"|Exception in thread [\w-]+(?: \([\w.]+\))?:|(?:Current thread|Thread) 0x[0-9a-f]+(?: \[[\w-]+\])? "
    r"\(most recent call first\):|Extension modules: [\w., ]+ \(total: \d+\)"
)

_QUOTED_PATH = r"'(?:/[\w.+-]+)+'"
_KNOWN_FAULTS = re.compile(
    "|".join(
        (
            # memory
            r"(?:CUDA|HIP) out of memory\.(?: Tried to allocate [\d.]+ \w+\.?)?",
            r"DefaultCPUAllocator: can't allocate memory: you tried to allocate \d+ bytes",
            r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) (?:exited unexpectedly|is killed by signal: \w+)",
            r"Killed|Terminated|Aborted|Bus error|Segmentation fault|Illegal instruction",
            r"Fatal Python error: [A-Z][\w ]{1,60}",
            r"terminate called after throwing an instance of '[\w:]+'",
            # the GPU and its driver
            r"\s*(?:what\(\):  )?(?:CUDA|cuDNN|CUBLAS|NCCL) error: [A-Za-z][a-zA-Z_ -]{1,100}",
            r"(?:The NVIDIA driver on your system is too old|Found no NVIDIA driver on your system)",
            r"(?:No CUDA GPUs are available|Torch not compiled with CUDA enabled)",
            r"no kernel image is available for execution on the device",
            # the image
            r"(?:(?:/[\w.+-]+)+: )?No module named '?[\w.]+'?",
            r"cannot import name '\w+' from (?:partially initialized module )?'[\w.]+'",
            r"module '[\w.]+' has no attribute '\w+'",
            r"name '\w+' is not defined",
            r"(?:[\w+-]*/)*[\w.+-]+\.so[\w.]*: (?:cannot open shared object file(?:: No such file or directory)?"
            r"|undefined symbol: \w+|invalid ELF header|version `\w+[\w.]*' not found)",
            rf"python[\d.]*: (?:can't open file {_QUOTED_PATH}|Error while finding module specification for '[\w.]+')",
            # disk and network
            r"\[Errno -?\d+\] [A-Z][a-z ]{1,60}",
            r"(?:Name or service not known|Temporary failure in name resolution|Connection refused)",
            # RunPod's own worker
            r"--- Starting Serverless Worker \|  Version [\w.]+ ---",
            r"(?:Started|Finished|Kill worker)\.?$",
            r"Failed to (?:get job|return job results|fetch job)",
        )
    )
)
"""Messages whose every word is the library's, the kernel's or the driver's; their values are numbers and names of code.

What follows the match in its line is left out."""
_CUT = " […]"
_IMPORT_ERRORS = frozenset({"ImportError", "ModuleNotFoundError"})
"""Their words are about modules and files of the image, which nothing of a dataset can become."""


def own_line(message: str) -> str:
    """Mark the further lines of a message of the trainer's own code, so that the filter keeps them."""
    return message.replace("\n", f"\n{CONTINUED}")


def known_fault(words: str) -> str:
    """The beginning of a library's message as far as it is one of the known faults; empty if it is none."""
    found = _KNOWN_FAULTS.match(words)
    if found is None:
        return ""
    return found.group() + (_CUT if words[found.end() :].strip(" .") else "")


def printable(text: str) -> str:
    """The text without control characters and escape sequences, tabs as spaces, cut to the length of a kept line."""
    text = _ESCAPE_SEQUENCE.sub("", text[: 4 * MAX_LOG_LINE_CHARACTERS]).replace("\t", "    ")
    return _UNPRINTABLE.sub("", text)[:MAX_LOG_LINE_CHARACTERS].rstrip()


class LineFilter:
    """Takes the lines of one source in their order, and returns those that are kept (see above)."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets = tuple(secrets)
        self._left_out = 0
        self._is_within_own = False
        self._is_after_place = False

    def take(self, line: str) -> list[str]:
        """The lines that this one adds: none, itself as far as it is kept, or first the number of those left out."""
        # Cut first, so that a line of megabytes costs no more than a long one; and with room, since a secret that is
        # cut in two would not be found.
        text = redact_random(redact(line[: 2 * MAX_LOG_LINE_CHARACTERS], self._secrets))
        text = printable(text)
        if not text:
            return []
        is_code = self._is_after_place and text.startswith("    ")
        kept = "" if is_code else self._reduce(text)
        self._is_after_place = is_code or bool(_PLACE.fullmatch(kept))
        if is_code:
            # The lines of code below a place in a traceback. Left out without a word: the place says which they are.
            return []
        if not kept:
            before = _LEFT_OUT.fullmatch(text)
            self._left_out += int(before["count"]) if before else 1
            return []
        return [*self.end(), kept]

    def end(self) -> list[str]:
        """The number of lines that were left out since the last kept one, as a line; empty if there were none."""
        count, self._left_out = self._left_out, 0
        return [f"[{count} line{'s' if count > 1 else ''} of other programs left out]"] if count else []

    def _reduce(self, text: str) -> str:
        # The continuation of a line of another logger is written by the trainer's own formatter, too.
        begins = _OWN_LINE.match(text) or _OTHERS_LINE.fullmatch(text)
        if begins or (self._is_within_own and text.startswith(CONTINUED)):
            self._is_within_own = True
            return text
        self._is_within_own = False
        if _PLACE.fullmatch(text) or _STRUCTURE.fullmatch(text):
            return text
        if (warning := _WARNING.match(text)) is not None:
            return warning.group() + _CUT
        return known_fault(text) or _reduce_exception(text)


_LEFT_OUT = re.compile(r"\[(?P<count>\d{1,9}) lines? of other programs left out\]")
"""Such a line comes from a filter before this one."""


def _reduce_exception(text: str) -> str:
    found = _EXCEPTION.fullmatch(text)
    if found is None or len(found["type"]) > 100:
        return ""
    words = found["words"]
    if not words or words == _CUT.strip() or found["type"] in _IMPORT_ERRORS:
        return text
    return f"{found['type']}: {known_fault(words)}" if known_fault(words) else found["type"] + ":" + _CUT


def run_begins(run_id: str) -> str:
    """What the trainer logs when it begins a run; the worker finds a run's lines by it."""
    return f"run {run_id}, attempt "


def begun_run(line: str) -> str | None:
    """The run that the trainer says in this line to begin; None for any other line."""
    found = _RUN_BEGINS.match(line)
    return found["run"] if found else None


def lines_of_run(lines: Iterable[str], run_id: str) -> list[str]:
    """The lines that a container has printed while it worked on the run; all of them where no run is said to begin.

    A container takes one job after another, and another user's lines do not belong into this run's log.
    """
    kept: list[str] = []
    is_others = False
    for line in lines:
        begun = begun_run(line)
        if begun is not None:
            is_others = begun != run_id
            if not is_others:
                kept.clear()
        if not is_others:
            kept.append(line)
    return kept


_RUN_BEGINS = re.compile(_OWN_LINE.pattern + r"run (?P<run>[\w-]{1,100}), attempt ")


def keep_lines(lines: Iterable[str], secrets: Iterable[str] = ()) -> list[str]:
    """The newest lines of a log that are kept, within the limits of number and size."""
    log_filter, kept = LineFilter(secrets), deque[str](maxlen=MAX_LOG_LINES)
    for line in lines:
        kept.extend(log_filter.take(line))
    kept.extend(log_filter.end())
    return newest_lines(kept)


def newest_lines(lines: Iterable[str]) -> list[str]:
    """The last of the lines: at most `MAX_LOG_LINES`, and together at most `MAX_LOG_BYTES`."""
    room_bytes, kept = MAX_LOG_BYTES, deque[str]()
    for line in reversed(deque(lines, maxlen=MAX_LOG_LINES)):
        room_bytes -= len(line.encode(errors="replace")) + 1
        if room_bytes < 0:
            break
        kept.appendleft(line)
    return list(kept)


def _read_lines(value: Any) -> Any:
    if not isinstance(value, list):
        return []
    return newest_lines(printable(line) for line in value[-MAX_LOG_LINES:] if isinstance(line, str))


LogLines = Annotated[list[str], BeforeValidator(_read_lines)]
"""The end of a log in a message: what is no text is left out, and the rest is brought within the limits."""
