"""The rate limit of the REST API: so many calls of one key in a minute, an hour and a day."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

_WINDOWS = {"minute": 60, "hour": 3600, "day": 86400}


@dataclass
class _Window:
    begun_at: float
    calls: int = 0


@dataclass
class Quota:
    """Counts the calls of each key. `clock` returns seconds.

    The windows begin with a key's first call and are fixed, as the headers of RunPod's answers suggest.
    """

    clock: Callable[[], float]
    limits: dict[str, int]
    """Calls by window: `minute`, `hour`, `day`."""
    _windows: dict[tuple[str, str], _Window] = field(default_factory=dict)

    def take(self, key: str) -> tuple[dict[str, str], str | None]:
        """Count a call; returns the headers of its answer, and the window that is used up, if one is."""
        exceeded, headers = None, []
        for name, limit in self.limits.items():
            window = self._window(key, name)
            if window.calls >= limit:
                exceeded = exceeded or name
            window.calls += 1
            headers.append(f'"{name}";r={max(limit - window.calls, 0)};t={self._seconds_left(window, name)}')
        policy = ", ".join(f'"{name}";q={limit};w={_WINDOWS[name]}' for name, limit in self.limits.items())
        answer = {"RateLimit": ", ".join(headers), "RateLimit-Policy": policy}
        if exceeded is not None:
            answer["Retry-After"] = str(self._seconds_left(self._window(key, exceeded), exceeded))
        return answer, exceeded

    def _window(self, key: str, name: str) -> _Window:
        now = self.clock()
        window = self._windows.get((key, name))
        if window is None or now >= window.begun_at + _WINDOWS[name]:
            window = self._windows[key, name] = _Window(now)
        return window

    def _seconds_left(self, window: _Window, name: str) -> int:
        return max(round(window.begun_at + _WINDOWS[name] - self.clock()), 1)
