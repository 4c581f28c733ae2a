"""`lora-worker` that reads the logs of Vertex AI's jobs at a stand-in: the address of Cloud Logging is no setting."""

from __future__ import annotations

import os
from functools import partial

from lora_worker.commands.cli import main
from lora_worker.launchers.vertex import launcher
from lora_worker.launchers.vertex.logs import JobLogs

LOGGING_VARIABLE = "STANDIN_LOGGING_URL"


def redirect_logs() -> None:
    """Have this process ask at the stand-in's address, where one is given."""
    if url := os.environ.get(LOGGING_VARIABLE):
        launcher.JobLogs = partial(JobLogs, url=url)  # type: ignore[assignment,misc]


if __name__ == "__main__":
    redirect_logs()
    main()
