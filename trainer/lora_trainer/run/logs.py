"""The log of the container: what its processes print, and the end of it, which goes to the worker with the result.

RunPod drops a container's output minutes after its end. Whatever is printed or kept goes through the rules of
`lora_contract.log_lines`, so that neither holds a secret or text of the dataset.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from lora_contract.log_lines import MAX_LOG_LINES, LineFilter, known_fault, newest_lines, own_line
from lora_contract.protocol import Request

_OWN_LOGGERS = ("lora_", "__main__")
"""`__main__` is the handler, or the training process."""
_MOST_FRAMES = 10
"""Of a traceback so many of the innermost places are logged: a training is called through forty of libraries."""
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)


class _Formatter(logging.Formatter):
    """Writes the messages of the trainer's own code whole, and of other loggers only the place that logged."""

    def format(self, record: logging.LogRecord) -> str:
        # The message of another logger may quote a row of the dataset.
        is_own = record.name.startswith(_OWN_LOGGERS)
        text = record.getMessage() if is_own else f"at {record.pathname}:{record.lineno}"
        if record.exc_info and record.exc_info[1] is not None:
            text = f"{text}\n{describe(record.exc_info[1])}"
        return own_line(f"{self.formatTime(record)} {record.name} {record.levelname} {text}")


def describe(error: BaseException) -> str:
    """The type of an exception and the places in the code; its words only where they can't quote the dataset."""
    frames = traceback.extract_tb(error.__traceback__)[-_MOST_FRAMES:]
    places = "".join(
        f'\n  File "{frame.filename}", line {frame.lineno}, in {frame.name}\n    {frame.line}' for frame in frames
    )
    words = known_fault(str(error)[:1000])
    return f"{type(error).__name__}{f': {words}' if words else ''} at{places}"


def configure_logging() -> None:
    """Print this process's log to standard error, without secrets and text of the dataset."""
    printing = logging.StreamHandler()
    printing.setFormatter(_Formatter())
    logging.basicConfig(level=logging.INFO, handlers=[printing])
    for name in ("httpx", "httpx2"):  # the hub's library uses the second
        logging.getLogger(name).setLevel(logging.WARNING)  # they log whole URLs, with their signatures


def secrets_of(request: Request, environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """What must not be printed: the run's token and URLs, and the keys in the container's environment."""
    files = request.init_adapter.files if request.init_adapter else []
    urls = (request.dataset.url, *(file.url for file in files))
    return (request.channel.key, request.channel.token, *urls, *secrets_of_environment(environment))


def secrets_of_environment(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The keys in the container's environment."""
    return tuple(value for name, value in environment.items() if _SECRET_NAME.search(name) and value)


def print_line(line: str) -> None:
    """Print a line of a child process, which is filtered already."""
    print(line, file=sys.stderr, flush=True)


class LogTail(logging.Handler):
    """Keeps the last lines that were logged while it is open: of this process, and those that `add` gets.

    Any thread may log.
    """

    def __init__(self, secrets: tuple[str, ...] = ()) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(_Formatter())
        self._filter = LineFilter(secrets)
        self._lines: deque[str] = deque(maxlen=MAX_LOG_LINES)
        self._adding = threading.Lock()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record of this process."""
        try:
            text = self.format(record)
        except Exception:
            self.handleError(record)
            return
        with self._adding:
            for line in text.splitlines():
                self._lines.extend(self._filter.take(line))

    def add(self, line: str) -> None:
        """Keep a line of the training process, which is filtered already, and print it with this process's own."""
        with self._adding:
            self._lines.append(line)
        print_line(line)

    def lines(self) -> list[str]:
        """The lines kept so far, within the limits of the protocol."""
        with self._adding:
            self._lines.extend(self._filter.end())
            return newest_lines(self._lines)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Keep what this process logs until the context ends."""
        root = logging.getLogger()
        root.addHandler(self)
        try:
            yield
        finally:
            root.removeHandler(self)
