"""Changes single variables of an endpoint that exists, and nothing else of it.

RunPod replaces the variables of an endpoint as a whole, and has no condition by which a change could be bound to what
was read before. So the variables are read, changed and sent alone: a request with every field once dropped some. What
RunPod answers is compared with what was read, and the number of the release tells whether another change came between.

A change of a variable makes a release: RunPod starts workers of the new one and ends those of the old one when their
requests are answered. That is the one way to make a server read an adapter again that it has loaded under a name: vLLM
looks for a name's files once in a process (0.33.0, `entrypoints/openai/models/serving.py`, `resolve_lora`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

from lora_worker.deployment.resources import Endpoint, EndpointChange
from lora_worker.deployment.rest import RunPodApi
from lora_worker.errors import DeploymentError

ALIASES_AT = "LORA_ALIASES_AT"
"""When the endpoint's workers were last replaced for an alias. No program reads it: that it changes is its use."""

Variables = Mapping[str, str]


async def release_again(api: RunPodApi, endpoint_id: str, at: datetime) -> Endpoint:
    """Have an endpoint's workers replaced one by one, so that they read adapters again that they have loaded.

    Args:
        api: the account.
        endpoint_id: the endpoint that answers.
        at: the time that is written down; it has to differ from the last one.

    Raises:
        DeploymentError, ServiceError: as `change_variables`.
    """
    return await change_variables(api, endpoint_id, lambda variables: {**variables, ALIASES_AT: at.isoformat()})


async def change_variables(api: RunPodApi, endpoint_id: str, edit: Callable[[Variables], Variables]) -> Endpoint:
    """Change variables of an endpoint, and return it as it is afterwards. Without a difference nothing is sent.

    Args:
        api: the account.
        endpoint_id: the endpoint.
        edit: returns the variables as they shall be, from what they are now; it may be refused with an exception.

    Raises:
        DeploymentError: there is no such endpoint, or another change came between; the text says what to do.
        ServiceError: RunPod refused a call or failed.
    """
    release = await api.read_release(endpoint_id)
    before = await read_or_refuse(api, endpoint_id)
    if before.env is None:
        raise DeploymentError(f"RunPod tells no variables of the endpoint {endpoint_id}: nothing was changed")
    wanted = dict(edit(before.env))
    if wanted == before.env:
        return before
    await api.update_endpoint(endpoint_id, EndpointChange(env=wanted))
    # Read again rather than taken from the answer: what another change made of it counts, too.
    after = await read_or_refuse(api, endpoint_id)
    between = _came_between(release, await api.read_release(endpoint_id))
    lost = [name for name in Endpoint.model_fields if getattr(before, name) != getattr(after, name) and name != "env"]
    if between or lost or after.env != wanted:
        what = f" ({', '.join(lost)})" if lost else ""
        raise DeploymentError(
            f"the endpoint {before.name or endpoint_id} was changed by somebody else at the same moment{what}, and one "
            "change may have replaced the other: see its releases in RunPod's console, then run the same command again"
        )
    return after


async def read_or_refuse(api: RunPodApi, endpoint_id: str) -> Endpoint:
    """Return an endpoint.

    Raises:
        DeploymentError: the account has no such one.
        ServiceError: RunPod refused the call or failed.
    """
    found = await api.read_endpoint(endpoint_id)
    if found is None:
        raise DeploymentError(
            f"the account of the RunPod key has no endpoint {endpoint_id}: `lora-worker deploy inference apply` makes "
            "one, and --write-env writes its id into LORA_WORKER_RUNPOD_INFERENCE_ENDPOINT_ID"
        )
    return found


def _came_between(before: int | None, after: int | None) -> bool:
    """Whether there were more releases than our own. RunPod may tell no number, and need not count a small change."""
    return before is not None and after is not None and after - before > 1
