"""Requests to the endpoint that are no training: filling the volume with base models, and checking the machine.

They travel as the `input` of RunPod's `/run`, as a training does; their key `kind` tells them apart, which a training's
request does not have. They belong to no run: no row of the database knows them, and nothing is uploaded.

    {"protocol": 1, "kind": "prefetch", "models": ["org/model", "org/other@revision"]}
    {"protocol": 1, "kind": "fitness"}
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, model_validator

from lora_contract.bounds import Label, Seconds, Sentence, first, text, whole
from lora_contract.protocol import PROTOCOL_VERSION
from lora_contract.words import joined

MAX_MODELS = 10
"""The most base models of one prefetch. Each is tens of gigabytes, and a job of RunPod has a time limit."""
MAX_MODEL_CHARACTERS = 200
MAX_CHECKS = 30
"""The most checks that are read from a fitness result."""

_MODEL = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(?P<revision>[A-Za-z0-9][\w./-]*))?", re.ASCII)


class _Message(BaseModel):
    # Unknown keys are ignored, as in `protocol`: worker and trainer are updated one after the other.
    model_config = ConfigDict(extra="ignore", protected_namespaces=())


def split_model(text: str) -> tuple[str, str | None]:
    """Split `organisation/model` or `organisation/model@revision` into name and revision.

    Raises:
        ValueError: the text is no name of a model on the hub.
    """
    found = _MODEL.fullmatch(text)
    if len(text) > MAX_MODEL_CHARACTERS or found is None or ".." in text:
        raise ValueError(f"{text!r:.100} is no base model: write organisation/model, or organisation/model@revision")
    return found["name"], found["revision"]


def _check_model(text: str) -> str:
    split_model(text)
    return text


ModelName = Annotated[str, Field(max_length=MAX_MODEL_CHARACTERS), AfterValidator(_check_model)]


class PrefetchRequest(_Message):
    """Fill the network volume with base models, so that no training waits for its download."""

    protocol: Literal[1] = PROTOCOL_VERSION
    kind: Literal["prefetch"] = "prefetch"
    models: list[ModelName] = Field(min_length=1, max_length=MAX_MODELS)


class FitnessRequest(_Message):
    """Check the machine: GPU, libraries, volume and disk."""

    protocol: Literal[1] = PROTOCOL_VERSION
    kind: Literal["fitness"] = "fitness"


ErrandRequest = Annotated[PrefetchRequest | FitnessRequest, Field(discriminator="kind")]
ERRAND_REQUESTS: TypeAdapter[PrefetchRequest | FitnessRequest] = TypeAdapter(ErrandRequest)
"""Reads an `input` whose `kind` is one of the two."""

_Bytes = Annotated[int, BeforeValidator(whole(0, 2**53, 0))]


class PrefetchProgress(_Message):
    """How far the download of one model is. Sizes are those of all its files, what is there already included."""

    kind: Literal["prefetch"] = "prefetch"
    model: Label
    done_bytes: _Bytes = 0
    total_bytes: _Bytes = 0
    """0 while the hub has not told the sizes."""


class PrefetchedModel(_Message):
    """What became of one model.

    `present`: it was on the network volume already. `cached`: it is in the container's image or in the host's cache of
    models, so a training downloads nothing. `downloaded`: it is on the volume now.
    """

    model: Label
    revision: Label | None = None
    bytes: _Bytes = 0
    """The size of the model's files."""
    seconds: Seconds = None
    status: Literal["present", "downloaded", "cached"]


class FitnessCheck(_Message):
    """What one check found. `finding` is a sentence: what was measured, or what is wrong and what to do."""

    name: Label
    ok: bool
    finding: Sentence


class ErrandError(_Message):
    """Why an errand failed: what is wrong, and what to do about it. `code` is an `ErrorCode` of this release."""

    code: Annotated[str, text(100)]
    message: Sentence
    remedy: Sentence | None = None

    def sentence(self) -> str:
        """Return message and remedy as one text."""
        return joined(self.message, self.remedy)


class ErrandResult(_Message):
    """What the handler returns. After a failed prefetch, `models` holds those that were finished before."""

    kind: Literal["prefetch", "fitness"]
    models: Annotated[list[PrefetchedModel], BeforeValidator(first(MAX_MODELS))] = Field(default_factory=list)
    checks: Annotated[list[FitnessCheck], BeforeValidator(first(MAX_CHECKS))] = Field(default_factory=list)
    error: ErrandError | None = None

    @model_validator(mode="before")
    @classmethod
    def _take_failure(cls, data: Any) -> Any:
        if isinstance(data, dict) and "failure" in data:
            data = {**data, "error": data["failure"]}
        return data

    def as_output(self) -> dict[str, Any]:
        """Return the handler's output for RunPod, with the error under `failure` as well (see `protocol.Result`)."""
        output = self.model_dump(mode="json", exclude_none=True)
        if self.error is not None:
            output["failure"] = output["error"]
            output["error"] = self.error.sentence()
        return output
