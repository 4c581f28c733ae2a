"""Named places in worker and trainer where a test can kill, stop or delay the process; in production they do nothing.

The environment variable `LORA_CRASH` arms them, as a comma-separated list of `name=action`. The actions are `kill`
(SIGKILL), `stop` (SIGSTOP) and `sleep:seconds`. `name#3=kill` acts when the process passes the point for the third
time. `LORA_CRASH_LOG` names a file to which the name of every point that is passed is appended, so that a test suite
can list the points that it never passed.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

CRASH_POINTS: dict[str, str] = {
    "worker.claim.before": "nothing claimed yet",
    "worker.claim.after": "rows claimed, nothing done with them",
    "worker.adopt.after": "another worker's runs adopted, nothing done with them",
    "worker.launch.before_intent": "preflight passed, no intent recorded",
    "worker.launch.before_post": "intent recorded, POST not sent",
    "worker.launch.after_post": "RunPod accepted, nothing recorded",
    "worker.launch.after_record": "launch recorded",
    "worker.progress.before": "observations made, nothing written",
    "worker.progress.after": "progress written",
    "worker.grant.before": "upload requested, URLs signed, no grant written",
    "worker.grant.after": "grant written",
    "worker.cancel.before": "cancel asked for, launcher not told",
    "worker.cancel.after": "launcher told, nothing written",
    "worker.log.before": "run ended without an artifact, its log not stored",
    "worker.log.after": "log stored, run not settled",
    "worker.container_log.after": "container's log stored, run not settled",
    "worker.keep.after_file": "one file of an artifact copied to its place, not verified",
    "worker.keep.before_manifest": "all files copied and verified, their manifest not written",
    "worker.keep.after_manifest": "artifact kept, run not settled",
    "worker.settle.before": "outcome decided, artifact verified, nothing written",
    "worker.settle.after": "run settled",
    "worker.stray.before": "a launch that no run owns found, launcher not told",
    "worker.stray.after": "launcher told or asked, nothing noted",
    "worker.webhook.after_delivery": "an event delivered to an endpoint, nothing noted",
    "worker.release.before": "stopping, leases still held",
    "worker.release.after": "leases released",
    "trainer.check_in.before": "process started, not checked in",
    "trainer.check_in.after": "checked in, nothing trained",
    "trainer.progress.before": "progress made, not posted",
    "trainer.progress.after": "progress posted",
    "trainer.train.step": "at the end of a training step",
    "trainer.save.after": "adapter saved, not tried on its base",
    "trainer.proof.after": "adapter tried on its base, nothing published",
    "trainer.request_upload.after": "upload requested, no grant fetched",
    "trainer.upload.before_file": "before a file is uploaded",
    "trainer.upload.before_manifest": "all files uploaded, manifest missing",
    "trainer.upload.after_manifest": "artifact whole, no result returned",
    "trainer.result.before": "result made, not returned",
}


def _parse(text: str) -> dict[str, tuple[int, str, float]]:
    armed: dict[str, tuple[int, str, float]] = {}
    for item in filter(None, text.split(",")):
        name, _, action = item.partition("=")
        name, _, visit = name.partition("#")
        verb, _, argument = action.partition(":")
        if name not in CRASH_POINTS or verb not in {"kill", "stop", "sleep"}:
            raise ValueError(f"LORA_CRASH: {item!r} names no crash point and action")
        armed[name] = (int(visit or 1), verb, float(argument or 0))
    return armed


class _Armed:
    def __init__(self, armed: dict[str, tuple[int, str, float]], log: Path | None) -> None:
        self._armed = armed
        self._log = log
        self._visits: Counter[str] = Counter()

    def __call__(self, name: str) -> None:
        if name not in CRASH_POINTS:
            raise KeyError(name)
        self._visits[name] += 1
        if self._log is not None:
            with self._log.open("a") as file:
                file.write(name + "\n")
        visit, verb, argument = self._armed.get(name, (0, "", 0.0))
        if self._visits[name] != visit:
            return
        if verb == "sleep":
            time.sleep(argument)
        else:
            os.kill(os.getpid(), signal.SIGKILL if verb == "kill" else signal.SIGSTOP)


def _ignore(name: str) -> None:
    """Do nothing: no crash point is armed."""


def _arm() -> _Armed | None:
    text, log = os.environ.get("LORA_CRASH"), os.environ.get("LORA_CRASH_LOG")
    return _Armed(_parse(text or ""), Path(log) if log else None) if text or log else None


crash_point = _arm() or _ignore
"""Pass the named point: die, stop or sleep here if a test has armed it. Raises KeyError for an unknown name."""
