"""Requests to the endpoint that are no training: base models for the volume, served adapters, exports, its check.

They travel as the `input` of RunPod's `/run`, as a training does; their key `kind` tells them apart, which a training's
request does not have. They belong to no run: no row of the database knows them, and nothing is uploaded.

    {"protocol": 1, "kind": "prefetch", "models": ["org/model", "org/other@revision"]}
    {"protocol": 1, "kind": "serving", "remove": ["<run id>"], "aliases": {"bot:live": "adapter-0a1b2c3d"}}
    {"protocol": 1, "kind": "export", "job_id": "<job id>", "files": [{"name": …, "url": …, "sha256": …, "bytes": …}]}
    {"protocol": 1, "kind": "fitness"}
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, model_validator

from lora_contract.bounds import Label, Name, Seconds, Sentence, first, text, whole
from lora_contract.exports import ExportRecord, is_export_source
from lora_contract.protocol import PROTOCOL_VERSION, AdapterFile
from lora_contract.serving import Alias, ServedName
from lora_contract.words import joined

MAX_MODELS = 10
"""The most base models of one prefetch. Each is tens of gigabytes, and a job of RunPod has a time limit."""
MAX_MODEL_CHARACTERS = 200
MAX_REMOVALS = 200
"""The most runs whose served adapters one errand removes."""
MAX_ALIASES = 50
"""The most aliases that one errand sets. Each is a copy of an adapter, tens or hundreds of megabytes."""
MAX_EXPORT_SOURCES = 30
"""The most files of which an export is made: the adapter's two, its tokenizer and generation settings."""
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


class ServingRequest(_Message):
    """Change the folder of served adapters (`lora_contract.serving`) on the network volume.

    What is removed comes first: an alias may be set in the same errand that removes what it held before.
    """

    protocol: Literal[1] = PROTOCOL_VERSION
    kind: Literal["serving"] = "serving"
    remove: list[Name] = Field(default_factory=list, max_length=MAX_REMOVALS)
    """Ids of runs: each folder whose marker names one of them is removed, those of aliases included."""
    aliases: dict[Alias, ServedName | None] = Field(default_factory=dict, max_length=MAX_ALIASES)
    """The adapter that each alias holds from now on, as a copy; None: the alias is removed."""


def _check_sources(files: list[AdapterFile]) -> list[AdapterFile]:
    if wrong := [file.name for file in files if not is_export_source(file.name)]:
        raise ValueError(f"{wrong[0]!r:.100} is no file of which an export is made")
    return files


class ExportRequest(_Message):
    """Merge an adapter into its base, and leave the model on the network volume (`lora_contract.exports`)."""

    protocol: Literal[1] = PROTOCOL_VERSION
    kind: Literal["export"] = "export"
    job_id: str = Field(pattern=r"^[A-Za-z0-9_-]{1,100}$")
    base: ModelName | None = None
    """None: the base and revision that the adapter names."""
    files: Annotated[list[AdapterFile], AfterValidator(_check_sources)] = Field(
        min_length=1, max_length=MAX_EXPORT_SOURCES
    )
    """Those for which `is_export_source` holds. Their URLs are signed: never log them."""


ErrandAsked = PrefetchRequest | ServingRequest | ExportRequest | FitnessRequest
ErrandKind = Literal["prefetch", "serving", "export", "fitness"]
ERRAND_KINDS: tuple[ErrandKind, ...] = get_args(ErrandKind)
ERRAND_REQUESTS: TypeAdapter[ErrandAsked] = TypeAdapter(Annotated[ErrandAsked, Field(discriminator="kind")])
"""Reads an `input` whose `kind` is one of `ERRAND_KINDS`."""

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


class ExportPlace(_Message):
    """Where an export lies: its folder on the network volume, and the volume, where RunPod tells the container."""

    folder: Label
    """Relative to the volume."""
    volume_id: Label | None = None
    data_center: Label | None = None
    record: ExportRecord


class ErrandError(_Message):
    """Why an errand failed: what is wrong, and what to do about it. `code` is an `ErrorCode` of this release."""

    code: Annotated[str, text(100)]
    message: Sentence
    remedy: Sentence | None = None

    def sentence(self) -> str:
        """Return message and remedy as one text."""
        return joined(self.message, self.remedy)


class ErrandResult(_Message):
    """What the handler returns. After a failed prefetch, `models` holds those that were finished before.

    Of `serving`, what could be done is told even where something else of the same errand could not.
    """

    kind: ErrandKind
    models: Annotated[list[PrefetchedModel], BeforeValidator(first(MAX_MODELS))] = Field(default_factory=list)
    checks: Annotated[list[FitnessCheck], BeforeValidator(first(MAX_CHECKS))] = Field(default_factory=list)
    removed: Annotated[list[Label], BeforeValidator(first(MAX_REMOVALS))] = Field(default_factory=list)
    """The runs of which nothing is served any more, whether something had to be removed or not."""
    aliases: Annotated[list[Label], BeforeValidator(first(MAX_ALIASES))] = Field(default_factory=list)
    """The aliases that are now as they were asked for."""
    problems: Annotated[list[Sentence], BeforeValidator(first(MAX_REMOVALS + MAX_ALIASES))] = Field(
        default_factory=list
    )
    """What could not be removed or set, a sentence each. Asking again is right for all of it."""
    export: ExportPlace | None = None
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
