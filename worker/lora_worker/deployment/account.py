"""How the worker's own settings lead to RunPod's REST API."""

from __future__ import annotations

from urllib.parse import urlsplit

import httpx

from lora_worker.configuration.addresses import is_under
from lora_worker.configuration.settings import Settings
from lora_worker.deployment.rest import RunPodApi
from lora_worker.launchers.runpod.settings import REST_URL, RunPodSettings


def open_api(settings: Settings, http: httpx.AsyncClient) -> RunPodApi | None:
    """Return the API of these settings' account; None where the launcher is another, or its account can't be asked."""
    if not isinstance(settings, RunPodSettings):
        return None
    host = urlsplit(settings.gpu_cluster_api_url).hostname or ""
    if settings.runpod_api_url == REST_URL and not is_under(host, "runpod.ai"):
        # The key belongs to somebody else's API, so RunPod does not get it.
        return None
    return RunPodApi(settings.runpod_api_url, settings.gpu_cluster_api_key.get_secret_value(), http=http)
