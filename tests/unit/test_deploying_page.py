"""docs/deploying.md lists each key of deploy.toml with its default, and no other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from lora_worker.deployment.inference import Inference, InferenceGpu, InferenceWorkers
from lora_worker.deployment.specification import Specification
from lora_worker.deployment.tables import Gpu, Volume, Workers
from tests.documented import table_under
from tests.project import ROOT

PAGE = (ROOT / "docs/deploying.md").read_text()
Tables = dict[str, type[BaseModel]]


def defaults(whole: type[BaseModel], tables: Tables) -> dict[str, str]:
    inner = [pair for name, table in tables.items() for pair in of_table(table, f"{name}.")]
    return dict([*((key, default) for key, default in of_table(whole, "") if key not in {"gpu", "workers"}), *inner])


def of_table(table: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    for name, field in table.model_fields.items():
        yield f"{prefix}{name}", written(field.default)


def written(default: object) -> str:
    if default is None or default is PydanticUndefined or default == ():
        return ""
    if isinstance(default, tuple):
        return ", ".join(f"`{item}`" for item in default)
    return str(default).lower() if isinstance(default, bool) else str(default)


@pytest.mark.parametrize(
    ("heading", "whole", "tables"),
    [
        ("The file", Specification, {"gpu": Gpu, "workers": Workers, "volumes": Volume}),
        ("An endpoint that answers", Inference, {"gpu": InferenceGpu, "workers": InferenceWorkers}),
    ],
)
def test_each_key_of_the_file_is_listed_with_its_default(heading: str, whole: type[BaseModel], tables: Tables) -> None:
    listed = {key.strip("`"): row["default"] for key, row in table_under(PAGE, heading).items()}
    assert listed == defaults(whole, tables)
