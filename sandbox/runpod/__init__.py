"""RunPod Serverless on this machine: its HTTP API, with the official SDK's worker processes behind it.

    with LocalRunPod.start(handler_module="lora_trainer.handler", env={"LORA_TRAINER_VOLUME": "…"}) as runpod:
        httpx.post(f"{runpod.api_url}/run", headers={"Authorization": f"Bearer {runpod.api_key}"}, json=…)
        runpod.faults.add("status", "respond", status=502, body="html", times=3)

`jobs` is the life of a job as a pure state machine, `endpoint` puts it together with the worker
processes (`pool`, each in a `container`) and the `faults`; `public_api` is what callers see, `worker_api`
what the SDK talks to, `admin_api` the switchboard for other processes, `ledger` what happened.
"""

from sandbox.runpod.faults import Fault, Faults
from sandbox.runpod.ledger import Execution, Launch, Ledger, Outcome
from sandbox.runpod.local import LocalRunPod

__all__ = ["Execution", "Fault", "Faults", "Launch", "Ledger", "LocalRunPod", "Outcome"]
