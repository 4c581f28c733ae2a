"""The end of a machine whose cloud starts the container again: the process waits for it, and where need be asks for it.

RunPod bills a pod until somebody terminates it. The worker does, once it has the run's result; this is for the time in
which no worker runs. The key is the pod's own, which RunPod puts into each container and which is good for this pod
alone. Whether RunPod's REST API takes it is not documented, so nothing rests on it.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping

import httpx

from lora_contract.connections import why_unreachable
from lora_contract.machine_request import END_VARIABLE

log = logging.getLogger(__name__)

_PAUSE_SECONDS = 60.0
_MOST_TRIES = 24 * 60
_KILL_SECONDS = 600.0
"""SageMaker kills a container two minutes after its SIGTERM (`StopTrainingJob`)."""
_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")


def await_end(
    environ: Mapping[str, str],
    *,
    pause: Callable[[float], None] = time.sleep,
    transport: httpx.BaseTransport | None = None,
) -> None:
    """Ask for this machine's end, again and again, until it comes. Returns at once where its cloud ends it by itself.

    Raises nothing. Ending this process instead would start it anew.
    """
    url, machine, key = (environ.get(name, "") for name in (END_VARIABLE, "RUNPOD_POD_ID", "RUNPOD_API_KEY"))
    if not url.startswith(("https://", "http://127.0.0.1:")) or not _ID.fullmatch(machine):
        return
    with httpx.Client(transport=transport, timeout=httpx.Timeout(20, connect=10)) as http:
        for _ in range(_MOST_TRIES):
            log.info("%s", _ask(http, f"{url}/{machine}", key) if key else "waiting for this machine's end")
            pause(_PAUSE_SECONDS)


def await_kill(*, pause: Callable[[float], None] = time.sleep) -> None:
    """Wait for the SIGKILL that follows the SIGTERM with which a cloud takes its machine away.

    How a cloud that starts the container again reads an exit status meanwhile is not documented: it may be a failure
    of the job, which ends it. Returns after ten minutes where nothing comes.
    """
    log.info("waiting to be ended: the run goes on when the container is started again")
    pause(_KILL_SECONDS)


def _ask(http: httpx.Client, url: str, key: str) -> str:
    try:
        with http.stream("DELETE", url, headers={"Authorization": f"Bearer {key}"}) as answer:
            return f"asked for this machine's end: {answer.status_code}"
    except httpx.HTTPError as error:
        return f"this machine's end can't be asked for: {why_unreachable(error)}"
