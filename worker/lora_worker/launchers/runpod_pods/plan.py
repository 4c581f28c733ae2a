"""A run as a pod: what is the same for all pods of one worker, and the variables by which a pod gets its request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lora_contract.machine_request import END_VARIABLE, LAUNCH_ID_VARIABLE, pack_request
from lora_worker.launchers.base import Policy
from lora_worker.launchers.marks import project_mark
from lora_worker.launchers.runpod_pods.answers import ENDPOINT_VARIABLE, limits_of, pod_name
from lora_worker.launchers.runpod_pods.api import VOLUME_PATH, GpuRequest, Mounts, NetworkMount, NewPod
from lora_worker.launchers.runpod_pods.settings import RunPodPodsSettings

COMMAND = "python -u -m lora_trainer.machine"
_VARIABLE_CHARACTERS = 4000
_MOST_VARIABLES = 40
"""RunPod takes 50 variables for a pod; the others are for limits, ids and secrets."""


@dataclass(frozen=True, slots=True)
class PodPlan:
    """What is the same for all pods of one worker."""

    mark: str
    """The project's: `project_mark`."""
    image: str
    disk_gb: int = 80
    volume_id: str = ""
    data_centers: tuple[str, ...] = ()
    cloud: str = "SECURE"
    min_cuda: str = ""
    registry_id: str = ""
    hf_secret: str = ""

    @classmethod
    def of(cls, settings: RunPodPodsSettings) -> PodPlan:
        """The plan that the settings ask for."""
        return cls(
            mark=project_mark(settings.supabase_url),
            image=settings.runpod_pods_image,
            disk_gb=settings.runpod_pods_disk_gb,
            volume_id=settings.runpod_pods_volume_id,
            data_centers=settings.runpod_pods_data_centers,
            cloud=settings.runpod_pods_cloud,
            min_cuda=settings.runpod_pods_min_cuda,
            registry_id=settings.runpod_pods_registry_id,
            hf_secret=settings.runpod_pods_hf_secret,
        )

    def environment(
        self, launch_id: str, payload: dict[str, Any], policy: Policy, *, endpoint: str, pods_url: str
    ) -> dict[str, str]:
        """The variables of a launch's pod. Raises: ValueError: the request is too large for them."""
        packed = pack_request(payload, most_characters=_VARIABLE_CHARACTERS, most_variables=_MOST_VARIABLES)
        # RunPod puts the secret's value in when the container starts.
        secret = {"HF_TOKEN": f"{{{{ RUNPOD_SECRET_{self.hf_secret} }}}}"} if self.hf_secret else {}
        own = {LAUNCH_ID_VARIABLE: launch_id, END_VARIABLE: pods_url, ENDPOINT_VARIABLE: endpoint}
        return {**packed, **limits_of(policy), **secret, **own}

    def pod(self, launch_id: str, environment: dict[str, str], gpu_id: str, gpu_count: int) -> NewPod:
        """The pod of a launch on one type of GPU."""
        mounts = Mounts(network=[NetworkMount(volume_id=self.volume_id, path=VOLUME_PATH)]) if self.volume_id else None
        optional: dict[str, Any] = {
            "mounts": mounts,
            "data_center_ids": list(self.data_centers),
            "registry": self.registry_id,
        }
        cuda = {"min_cuda_version": self.min_cuda} if self.min_cuda else {}
        return NewPod(
            name=pod_name(launch_id, self.mark),
            image=self.image,
            args=COMMAND,
            disk=self.disk_gb,
            env=environment,
            cloud=self.cloud,
            gpu=GpuRequest(id=gpu_id, count=gpu_count, **cuda),
            **{key: value for key, value in optional.items() if value},
        )
