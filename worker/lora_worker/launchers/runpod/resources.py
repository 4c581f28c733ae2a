"""What all resources of RunPod's REST API v2 share: how its answers are read, and how requests are written.

Requests are strict: a field that the API does not know is refused here, before it is sent. Answers are lenient: the
account may hold resources of others, and a field that can't be read is None instead of the end of a command. Only what
a decision rests on is read; texts, lists and numbers are bounded.

Source: RunPod's OpenAPI description of the REST API v2, August 2026.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import (
    AliasGenerator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic.alias_generators import to_camel


def _none_if_unreadable(value: Any, read: ValidatorFunctionWrapHandler) -> Any:
    try:
        return read(value)
    except ValidationError:
        return None


T = TypeVar("T")
Readable = Annotated[T | None, WrapValidator(_none_if_unreadable)]
"""A field of an answer; None where it is missing or not what it should be."""

Name = Annotated[str, Field(max_length=1000)]
ResourceId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,100}$")]
"""An id goes into paths of requests: one with a slash or dots would lead elsewhere."""

_CAMEL = AliasGenerator(validation_alias=to_camel, serialization_alias=to_camel)


class Answer(BaseModel):
    """What RunPod answers. Unknown fields are ignored."""

    model_config = ConfigDict(alias_generator=_CAMEL, populate_by_name=True, extra="ignore", frozen=True)


class Request(BaseModel):
    """What is sent to RunPod. Unknown fields are refused; a field that is not set is not sent."""

    model_config = ConfigDict(alias_generator=_CAMEL, populate_by_name=True, extra="forbid", strict=True)

    def body(self) -> dict[str, Any]:
        """Return the JSON object to send."""
        return self.model_dump(by_alias=True, exclude_unset=True)


class LogLine(Answer):
    """A line of a worker's log. `source` is container or system; `ts` is a time as RunPod writes it."""

    line: Annotated[str, Field(max_length=100_000)]
    source: Readable[Name] = None
    ts: Readable[Name] = None
