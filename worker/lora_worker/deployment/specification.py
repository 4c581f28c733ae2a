"""The file `deploy.toml`: what shall exist at RunPod."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from lora_contract.errands import MAX_MODELS, ModelName
from lora_worker.configuration.settings import DEFAULT_BASE_MODEL
from lora_worker.deployment.inference import Inference, InferenceEndpoint, volume_fault
from lora_worker.deployment.tables import EndpointTable, Image, Once


class Specification(EndpointTable):
    """What `lora-worker deploy` makes and keeps as it is written: an endpoint that trains, and the volumes it uses.

    With the table `inference`, `lora-worker deploy inference` makes an endpoint that answers beside it.
    """

    image: Image = Field(
        description="The trainer's image, with a tag that never moves: machines keep a copy, also of `latest`"
    )
    disk_gb: int = Field(
        default=50, ge=5, le=4000, description="A worker's own disk in GB, empty at each start: dataset and adapter"
    )
    base_models: Annotated[tuple[ModelName, ...], Field(max_length=MAX_MODELS), Once] = Field(
        default=(DEFAULT_BASE_MODEL,),
        description="Base models that `lora-worker deploy prefetch` puts onto the volumes",
    )
    inference: Inference | None = Field(
        default=None,
        description="An endpoint that answers with the base model and with finished adapters by their names",
    )

    @model_validator(mode="after")
    def _check_inference(self) -> Specification:
        fault = self.inference and volume_fault(self.inference, self.volumes)
        if fault:
            raise ValueError(fault)
        if self.inference and self.inference_name == self.name:
            raise ValueError(f"inference.name is {self.name}, as the trainer's endpoint: give it another one")
        return self

    @property
    def inference_name(self) -> str:
        """The name of the endpoint that answers."""
        return (self.inference and self.inference.name) or f"{self.name[:100]}-inference"

    @property
    def inference_endpoint(self) -> InferenceEndpoint:
        """The endpoint that answers, without the variables that follow from the adapters there are.

        Raises:
            ValueError: the file has no table `inference`.
        """
        if self.inference is None:
            raise ValueError("there is no table inference")
        return self.inference.endpoint(self.inference_name, self.volumes)

    @property
    def wanted_models(self) -> tuple[str, ...]:
        """The base models that the volumes shall hold: those of trainings, and the one that answers."""
        answering = self.inference is not None and self.inference.merged_model is None
        return tuple(dict.fromkeys([*self.base_models, *([self.inference_base] if answering else [])]))

    @property
    def inference_base(self) -> str:
        """The base model that answers, as `organisation/model[@revision]`."""
        named = self.inference and self.inference.base_model
        return named or (self.base_models[0] if self.base_models else DEFAULT_BASE_MODEL)
