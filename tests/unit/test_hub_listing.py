"""What RunPod's hub reads: each field is one that its publishing guide names, and the handler takes what it sends."""

import json
import os
import subprocess
import sys
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from benchmarks.dockerfile import read_dockerfile
from lora_trainer.handler import parse_errand
from lora_trainer.settings import Settings, load_settings
from tests.project import IMPORT_PATH, ROOT

FOLDER = ROOT / ".runpod"
Cuda = Annotated[str, Field(pattern=r"^1[1-3]\.\d$")]
POOLS = {
    "AMPERE_16", "AMPERE_24", "ADA_24", "AMPERE_48", "ADA_48_PRO", "AMPERE_80", "ADA_80_PRO", "HOPPER_141",
}  # fmt: skip
OTHERS = {"HF_TOKEN"}
"""Variables that a library reads."""


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Input(Part):
    name: str
    type: Literal["string", "number", "boolean", "huggingface"]
    description: str
    default: str | int | bool
    min: int | None = None
    max: int | None = None
    trueValue: str | None = None
    falseValue: str | None = None
    advanced: bool = False


class Variable(Part):
    key: str = Field(pattern=r"^[A-Z][A-Z0-9_]*$")
    value: str | None = None
    input: Input | None = None


class HubConfig(Part):
    runsOn: Literal["GPU"]
    containerDiskInGb: int = Field(ge=5)
    gpuCount: int = Field(ge=1)
    gpuIds: str
    allowedCudaVersions: list[Cuda] = Field(min_length=1)
    env: list[Variable]


class HubFile(Part):
    title: str = Field(min_length=1)
    description: str = Field(min_length=1)
    type: Literal["serverless"]
    category: Literal["audio", "embedding", "language", "video", "image"]
    config: HubConfig


class Case(Part):
    name: str = Field(min_length=1)
    input: dict[str, object] = Field(min_length=1)
    timeout: int = Field(ge=1000)


class TestConfig(Part):
    __test__ = False
    gpuTypeId: str
    gpuCount: int
    allowedCudaVersions: list[Cuda]


class TestsFile(Part):
    __test__ = False
    tests: list[Case] = Field(min_length=1)
    config: TestConfig


HUB = HubFile.model_validate_json((FOLDER / "hub.json").read_text())
TESTS = TestsFile.model_validate_json((FOLDER / "tests.json").read_text())


@pytest.mark.parametrize("case", TESTS.tests, ids=lambda case: case.name)
def test_the_handler_takes_each_test_of_the_hub(case):
    assert parse_errand(dict(case.input)).kind == case.input["kind"]


def values(variable):
    given = variable.input
    if given is None:
        return [variable.value]
    if given.type == "boolean":
        return [given.trueValue, given.falseValue]
    return [str(value) for value in (given.default, given.min, given.max) if value is not None]


@pytest.mark.parametrize("variable", HUB.config.env, ids=lambda variable: variable.key)
def test_each_variable_exists_and_its_values_are_within_its_bounds(variable, monkeypatch):
    if variable.key in OTHERS:
        return
    name = variable.key.removeprefix("LORA_TRAINER_").lower()
    assert variable.key.startswith("LORA_TRAINER_")
    assert name in Settings.model_fields
    for value in values(variable):
        monkeypatch.setenv(variable.key, value)
        load_settings()


@pytest.mark.parametrize("variable", [one for one in HUB.config.env if one.input], ids=lambda variable: variable.key)
def test_defaults_of_the_listing_are_the_trainers(variable):
    if variable.key not in OTHERS:
        default = Settings.model_fields[variable.key.removeprefix("LORA_TRAINER_").lower()].default
        assert variable.input.default == default


def test_gpus_of_the_listing_are_pools_that_the_image_supports():
    assert set(HUB.config.gpuIds.split(",")) <= POOLS
    assert min(HUB.config.allowedCudaVersions) == "12.6", "the image's CUDA"
    assert "cuda12.6" in read_dockerfile(ROOT / "Dockerfile")["trainer"].base
    assert TESTS.config.allowedCudaVersions == HUB.config.allowedCudaVersions


def test_the_hub_builds_the_trainer():
    """It builds the root's Dockerfile without naming a target: the last stage."""
    assert list(read_dockerfile(ROOT / "Dockerfile"))[-1] == "trainer"
    assert (ROOT / "README.md").is_file()


def test_file_that_the_hub_looks_for_starts_the_real_handler(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RUNPOD_")}
    given = json.dumps({"input": {"kind": "prefetch", "models": []}})
    done = subprocess.run(
        [sys.executable, FOLDER / "handler.py", "--test_input", given],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": IMPORT_PATH},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "The request's models" in done.stdout + done.stderr
