"""`lora-trainer export` prints a record that the worker reads, its steps beside it, and no traceback."""

import shutil

import pytest
from typer.testing import CliRunner

from lora_contract.exports import ExportRecord
from lora_trainer.cli import app
from lora_trainer.export import adapter
from tests.unit.trainer.export.making import change_config, make_adapter, make_base

pytestmark = pytest.mark.gpu_stack


@pytest.fixture
def folder(tmp_path):
    """An adapter, and the volume that has its base."""
    base = make_base(tmp_path / "models/org/base", "llama")
    make_adapter(tmp_path / "adapter", base)
    return tmp_path


def export(folder, *options):
    arguments = ["export", str(folder / "adapter"), str(folder / "out"), "--volume", str(folder), *options]
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


@pytest.mark.parametrize("form", ["merged", "gguf"])
def test_base_is_the_one_that_the_adapter_names(folder, form):
    done = export(folder, "--as", form)
    assert done.exit_code == 0, done.stderr
    record = ExportRecord.model_validate_json(done.stdout)
    assert (record.form, record.base_model, record.complete) == (form, "org/base", True)
    assert done.stderr.strip()
    assert all((folder / "out" / file.name).stat().st_size == file.bytes for file in record.files)


def test_another_base_may_be_named_by_its_folder(folder):
    change_config(folder / "adapter", base_model_name_or_path="org/gone")
    done = export(folder, "--base", str(folder / "models/org/base"))
    assert ExportRecord.model_validate_json(done.stdout).base_model == "base"


def test_adapter_is_read_once_and_before_its_base(folder, monkeypatch):
    sums = []
    monkeypatch.setattr(adapter, "sha256_of", lambda path: sums.append(path) or "0" * 64)
    assert export(folder).exit_code == 0
    assert sums == [folder / "adapter/adapter_model.safetensors"]
    change_config(folder / "adapter", bias="all")
    assert "bias" in export(folder, "--base", "org/never-looked-for").stderr


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.unlink(), "holds no {name}"),
        (lambda path: (path.unlink(), path.mkdir()), "{name} can't be read (Is a directory)"),
        (lambda path: (shutil.rmtree(path.parent), path.parent.touch()), "holds no adapter_config.json"),
    ],
    ids=["missing", "a folder", "below a file"],
)
def test_path_that_is_no_adapter_ends_in_a_sentence(folder, name, spoil, words):
    spoil(folder / "adapter" / name)
    done = export(folder)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert words.format(name=name) in done.stderr


@pytest.mark.parametrize(
    ("changes", "words"), [({"base_model_name_or_path": "no name"}, "no base model"), ({"bias": "all"}, "bias")]
)
def test_refusal_is_one_sentence_and_no_record(folder, changes, words):
    change_config(folder / "adapter", **changes)
    done = export(folder)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert words in done.stderr
    assert "Traceback" not in done.stderr
