"""One job in a process of its own: `python -m lora_trainer.served <pipe>`, with the job on standard input.

`lora-worker gpu-server` starts it for each job. Input and output are what RunPod's handler gets and gives: the job is a
line of JSON, {"id": …, "input": …}; messages go to the file descriptor whose number is the only argument, one a line:
{"progress": …} and at the end {"result": …}. On SIGTERM it saves a checkpoint and ends; when its standard input ends,
whoever started it has died, and it kills itself.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TextIO

from lora_trainer.handler import carry_out_job
from lora_trainer.run.logs import configure_logging
from lora_trainer.run.orphans import end_with_the_handler
from lora_trainer.run.runpod_progress import Send
from lora_trainer.settings import unread_settings

log = logging.getLogger(__name__)


@asynccontextmanager
async def _writing_to(pipe: TextIO) -> AsyncIterator[Send]:
    async def write(payload: dict[str, Any]) -> None:
        _write(pipe, {"progress": payload})

    yield write


def _write(pipe: TextIO, message: dict[str, Any]) -> None:
    pipe.write(json.dumps(message) + "\n")
    pipe.flush()


def main(arguments: list[str]) -> int:
    """Carry out the job on standard input; returns 0 whatever its result is, which goes to the pipe."""
    configure_logging()
    for sentence in unread_settings():
        log.warning("%s", sentence)
    job = json.loads(sys.stdin.readline())
    end_with_the_handler()
    with os.fdopen(int(arguments[0]), "w", encoding="utf-8") as pipe:
        _write(pipe, {"result": asyncio.run(carry_out_job(job, _writing_to(pipe)))})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
