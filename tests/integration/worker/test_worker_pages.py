"""Error pages of a gateway count as an outage and end neither a worker nor a training."""

from __future__ import annotations

import pytest

from sandbox.supabase import LocalSupabase
from tests.processes.stage import Stage

FUNCTIONS = "/rest/v1/rpc/"


@pytest.mark.parametrize("status", [200, 502])
def test_gateway_error_pages_stop_neither_worker_nor_training(stage: Stage, status: int) -> None:
    project = stage.project
    if not isinstance(project, LocalSupabase):
        pytest.skip("only the sandbox's gateway takes orders")
    project.answer_with_pages(FUNCTIONS, status=status, times=4)
    worker = stage.worker()
    job_id = stage.user.queue(max_steps=150)
    stage.training(job_id, step=1)
    # For worker and trainer, whichever calls first.
    project.answer_with_pages(FUNCTIONS, status=status, times=20)
    job = stage.ended(job_id)
    assert (job["status"], job["error_message"]) == ("completed", None)
    (run,) = stage.runs(job_id)
    assert run["attempt"] == 1
    assert worker.poll() is None
    assert "Traceback" not in stage.log()
    assert "Just a moment" not in stage.log()
