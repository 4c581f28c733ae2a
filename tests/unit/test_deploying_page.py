"""docs/deploying.md lists each key of deploy.toml with its default, and no other."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from lora_worker.deployment.specification import Specification
from lora_worker.deployment.tables import Gpu, Volume, Workers
from tests.documented import table_under
from tests.project import ROOT

KEYS = table_under((ROOT / "docs/deploying.md").read_text(), "The file")
TABLES = {"gpu": Gpu, "workers": Workers}


def defaults() -> Iterator[tuple[str, str]]:
    for key, default in of_table(Specification, ""):
        if key not in TABLES:
            yield key, default
    for name, table in TABLES.items():
        yield from of_table(table, f"{name}.")
    yield from of_table(Volume, "volumes.")


def of_table(table: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    for name, field in table.model_fields.items():
        yield f"{prefix}{name}", written(field.default)


def written(default: object) -> str:
    if default is None or default is PydanticUndefined or default == ():
        return ""
    if isinstance(default, tuple):
        return ", ".join(f"`{item}`" for item in default)
    return str(default).lower() if isinstance(default, bool) else str(default)


def test_each_key_of_the_file_is_listed_with_its_default() -> None:
    listed = {key.strip("`"): row["default"] for key, row in KEYS.items()}
    assert listed == dict(defaults())
