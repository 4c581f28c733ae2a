"""The finished adapters that there are, as the database counts them."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field


class FinishedAdapters(BaseModel):
    """Adapters that finished jobs have made of one base model, with one rank, and that are not deleted."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())

    base_model: str = Field(max_length=300)
    rank: int = Field(ge=1, le=100_000)
    use_dora: bool = False
    adapters: int = Field(ge=1)


Fleet = Sequence[FinishedAdapters]
