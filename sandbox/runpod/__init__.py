"""RunPod Serverless on this machine: its HTTP API, and worker processes that run the official SDK.

    with LocalRunPod.start(handler_module="lora_trainer.handler", env={"LORA_TRAINER_VOLUME": "…"}) as runpod:
        httpx.post(f"{runpod.api_url}/run", headers={"Authorization": f"Bearer {runpod.api_key}"}, json=…)
        runpod.faults.add("status", "respond", status=502, body="html", times=3)

`jobs` is the life of a job as a pure state machine. `endpoint` combines it with the worker processes (`pool`, each in a
`container`, with what they print in `worker_logs`). `platform` has all endpoints, and `faults` that tests switch on.
`public_api` is the API for callers, `worker_api` the one that the SDK calls, `rest` the account's REST API at
`rest_url`, and `admin_api` controls the endpoints from other processes. `ledger` records what happened.
"""

from sandbox.runpod.faults import Fault, Faults
from sandbox.runpod.keys import Rights
from sandbox.runpod.ledger import Execution, Launch, Ledger, Outcome, Write
from sandbox.runpod.local import LocalRunPod

__all__ = ["Execution", "Fault", "Faults", "Launch", "Ledger", "LocalRunPod", "Outcome", "Rights", "Write"]
