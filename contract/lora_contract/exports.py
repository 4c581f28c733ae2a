"""What an export of an adapter left in its folder: the record that the trainer writes and the worker reads.

An export makes files for other programs out of a finished adapter: a whole model in bf16 (`merged`), or the adapter as
llama.cpp reads it (`gguf`). Its record is `export.json` in the folder of the export. While an export runs, the record
is its journal: what is listed is finished, and an export that was killed goes on behind it.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from lora_contract.bounds import Label, Name, first

EXPORT_RECORD_NAME = "export.json"
MAX_EXPORTED_FILES = 2000
"""The most files of an export: the largest published models have a few hundred."""
MAX_EXPORT_RECORD_BYTES = 1_000_000

EXPORTS_FOLDER = "lora-exports"
"""The folder of the endpoint's volume into which the endpoint exports: `lora-exports/<job id>/`."""

_SOURCE = re.compile(
    r"adapter_config\.json|adapter_model\.safetensors|generation_config\.json|tokenizer\.(json|model)"
    r"|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt"
    r"|chat_template\.(jinja|json)|[\w.-]{1,100}\.tiktoken|spiece\.model"
)

ExportForm = Literal["merged", "gguf"]


def is_export_source(name: str) -> bool:
    """Tell whether a merged export is made of this file of an artifact: adapter, tokenizer, generation settings."""
    return _SOURCE.fullmatch(name) is not None


class _Message(BaseModel):
    # Unknown keys are ignored, as in `protocol`: worker and trainer are updated one after the other.
    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class ExportedFile(_Message):
    """One file of an export. `name` is that in the export's folder, which has no folders of its own."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]{0,199}$")]
    bytes: int = Field(ge=0, lt=10**15)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class ExportRecord(_Message):
    """An export, finished or not."""

    form: ExportForm
    base_model: Name
    base_revision: Label | None = None
    adapter_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the adapter's `adapter_model.safetensors`."""
    inputs_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of all that the result depends on. An export goes on only with a record of the same inputs."""
    modules: int = Field(ge=0, le=10**7)
    """How many modules of the base carry the adapter."""
    files: Annotated[list[ExportedFile], BeforeValidator(first(MAX_EXPORTED_FILES))] = Field(default_factory=list)
    """Those that are finished."""
    complete: bool = False

    @property
    def total_bytes(self) -> int:
        """The size of all finished files."""
        return sum(file.bytes for file in self.files)
