"""Where the endpoint that answers with adapters is, by the settings. Only RunPod's launcher has one."""

from __future__ import annotations

from lora_worker.configuration.settings import Settings
from lora_worker.deployment.answering import why_none
from lora_worker.errors import SettingsError
from lora_worker.launchers.runpod.settings import RunPodSettings


def inference_access(settings: Settings) -> tuple[str, str]:
    """Return the endpoint's address, without `/openai/v1`, and the key with which it is called.

    Raises:
        SettingsError: there is none; the text says why.
    """
    if not isinstance(settings, RunPodSettings) or (address := settings.inference_address) is None:
        raise SettingsError(why_none(settings))
    return address, settings.gpu_cluster_api_key.get_secret_value()
