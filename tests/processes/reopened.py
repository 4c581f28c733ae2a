"""A stand-in's HTTP port that is closed for a while, and opened again at the same address."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ReopenedPort(ABC):
    """What servers of the tests have in common that may be out of reach while what they run goes on."""

    port = 0
    """A free one from the first opening on."""
    _http: ThreadingHTTPServer | None = None

    @abstractmethod
    def _listen(self) -> None:
        """Open the port, by `_open`."""

    def _open(
        self, handler: type[BaseHTTPRequestHandler], kind: type[ThreadingHTTPServer] = ThreadingHTTPServer
    ) -> None:
        self._http = kind(("127.0.0.1", self.port), handler)
        self.port = self._http.server_port
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def _hang_up(self) -> None:
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
            self._http = None

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Nobody answers at the address; jobs go on."""
        self._hang_up()
        try:
            yield
        finally:
            self._listen()
