"""An inference endpoint on this machine: RunPod's OpenAI address, worker-vllm behind it, and vLLM behind that.

    caller ── /v2/<id>/openai/v1/… ──▶ runpod_address.py ── a job ──▶ worker_vllm.py ──▶ vllm.py

`vllm.py` asks `served.py` which adapter a name means, and `language_model.py` for the answer; `resolver.py` finds an
adapter, and `loading.py` says what is refused. `scaling.py` starts the worker at a request and ends it when it is idle.

Statuses, bodies and the way in which adapters are found and kept are those of vLLM 0.33.0 and of worker-vllm as of
2026-08-20, read in their source; `tests/unit/sandbox/inference/` names the place of each. What answers is real: a base
model with transformers, and adapters with PEFT.
"""

from sandbox.inference.local import LocalInference

__all__ = ["LocalInference"]
