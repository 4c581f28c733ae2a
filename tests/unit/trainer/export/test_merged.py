"""An export is bounded in memory, goes on after a kill, and refuses what would come out wrong."""

import json
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

from lora_contract.error_codes import FAULTS, Fault
from lora_trainer.errors import BaseModelMismatchError, DiskFullError, ExportRefusedError
from lora_trainer.export.adapter import read_adapter
from lora_trainer.export.merged import export_merged
from lora_trainer.export.merging import read_matrices
from lora_trainer.models.bases import Base
from tests.processes.warm_python import run_module
from tests.project import ROOT
from tests.unit.trainer.export.making import change_config, make_adapter, make_base

pytestmark = pytest.mark.gpu_stack

SHARD_BYTES = 64 << 20


def silent(_):
    """Nobody listens."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    base = make_base(folder / "base", "llama")
    make_adapter(folder / "adapter", base)
    return folder


@pytest.fixture
def adapter(made, tmp_path):
    shutil.copytree(made / "adapter", tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def base(made, tmp_path):
    shutil.copytree(made / "base", tmp_path / "base")
    return Base("org/base", None, tmp_path / "base")


def large_base(folder):
    """Three files of one matrix each."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": "bfloat16"}))
    names = {}
    for number in (1, 2, 3):
        name, file = f"model.layers.{number}.mlp.up_proj.weight", f"model-0000{number}-of-00003.safetensors"
        save_file({name: torch.ones(SHARD_BYTES // 2048, 1024, dtype=torch.bfloat16)}, folder / file)
        names[name] = file
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def large_adapter(folder):
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": "org/base", "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    matrices = {}
    for number in (1, 2, 3):
        name = f"base_model.model.model.layers.{number}.mlp.up_proj"
        matrices[f"{name}.lora_A.weight"] = torch.ones(2, 1024)
        matrices[f"{name}.lora_B.weight"] = torch.ones(SHARD_BYTES // 2048, 2)
    save_file(matrices, folder / "adapter_model.safetensors")


def export_in_process(folder, dies):
    folders = [str(folder / name) for name in ("adapter", "base", "out")]
    module = "tests.unit.trainer.export.exporting"
    return run_module("trainer", module, *folders, dies, environment=os.environ, cwd=ROOT)


def test_killed_export_goes_on_and_memory_is_bounded(tmp_path):
    large_base(tmp_path / "base")
    large_adapter(tmp_path / "adapter")
    killed = export_in_process(tmp_path, "dies")
    assert killed.returncode == -9, killed.stderr
    first = tmp_path / "out/model-00001-of-00003.safetensors"
    written = first.stat().st_mtime_ns
    assert (tmp_path / "out/.model-00002-of-00003.safetensors.part").exists()
    assert not (tmp_path / "out/model.safetensors.index.json").exists()
    done = export_in_process(tmp_path, "lives")
    assert done.returncode == 0, done.stderr
    assert "file 1 of 3: model-00001-of-00003.safetensors is there already" in done.stdout
    assert first.stat().st_mtime_ns == written
    assert not list((tmp_path / "out").glob(".*.part"))
    for file in sorted((tmp_path / "out").glob("*.safetensors")):
        assert all(bool((tensor == 3).all()) for tensor in load_file(file).values()), (
            f"{file.name} is not 1 + 1 · (1 + 1)"
        )
    grew = int(done.stdout.split("grew ")[1])
    assert grew < 2 * SHARD_BYTES, "far below the largest file and two gigabytes"


def test_changed_adapter_begins_anew_and_the_same_is_left_alone(adapter, base, tmp_path):
    export_merged(read_adapter(adapter), base, tmp_path / "out", silent)
    said = []
    export_merged(read_adapter(adapter), base, tmp_path / "out", said.append)
    assert said == [f"{tmp_path / 'out'} holds this export already"]
    before = load_file(tmp_path / "out/model-00001-of-00002.safetensors")
    change_config(adapter, lora_alpha=64)
    export_merged(read_adapter(adapter), base, tmp_path / "out", silent)
    after = load_file(tmp_path / "out/model-00001-of-00002.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_damaged_file_of_a_begun_export_is_written_again(adapter, base, tmp_path):
    export_merged(read_adapter(adapter), base, tmp_path / "out", silent)
    file = tmp_path / "out/model-00001-of-00002.safetensors"
    right = file.read_bytes()
    file.write_bytes(right[:-1] + b"x")
    export_merged(read_adapter(adapter), base, tmp_path / "out", silent)
    assert file.read_bytes() == right


def test_folder_with_files_of_others_is_refused(adapter, base, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").touch()
    with pytest.raises(ExportRefusedError, match=r"thesis\.txt.*no export"):
        export_merged(read_adapter(adapter), base, tmp_path / "out", silent)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_two_exports_never_write_into_one_folder(adapter, base, tmp_path):
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out/.export.lock"), pytest.raises(ExportRefusedError, match="Another export"):
        export_merged(read_adapter(adapter), base, tmp_path / "out", silent)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "is quantised"),
        ({"quantization_config": {"quant_method": "fp8"}}, "is quantised"),
    ],
)
def test_quantised_base_is_refused_before_anything_is_written(adapter, base, tmp_path, changes, words):
    config = base.folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(ExportRefusedError, match=words) as refused:
        export_merged(read_adapter(adapter), base, tmp_path / "out", silent)
    assert "not quantised" in refused.value.hint
    assert FAULTS[refused.value.code] is Fault.PERMANENT
    assert not (tmp_path / "out").exists()


def test_weights_in_few_bits_are_refused_whatever_the_config_says(adapter, base, tmp_path):
    for file in base.folder.glob("*.safetensors"):
        save_file({name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_file(file).items()}, file)
    with pytest.raises(ExportRefusedError, match="is quantised"):
        export_merged(read_adapter(adapter), base, tmp_path / "out", silent)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"use_dora": True}, "one is missing"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"alpha_pattern": {"(": 3}}, "no pattern"),
    ],
)
def test_adapter_that_is_more_than_lora_is_refused(adapter, base, tmp_path, changes, words):
    change_config(adapter, **changes)
    with pytest.raises(ExportRefusedError, match=words):
        export_merged(read_adapter(adapter), base, tmp_path / "out", silent)


def rewrite(adapter, change):
    weights = adapter / "adapter_model.safetensors"
    save_file(change(load_file(weights)), weights)


def test_renamed_matrices_are_refused_and_not_left_out(adapter, base, tmp_path):
    rewrite(adapter, lambda found: {name.replace("q_proj", "query"): tensor for name, tensor in found.items()})
    with pytest.raises(ExportRefusedError, match=r"1 of the adapter's 7 modules are not in the base.*query"):
        export_merged(read_adapter(adapter), base, tmp_path / "out", silent)
    assert not (tmp_path / "out").exists()


def test_adapter_with_nan_leaves_no_loadable_model(adapter, base, tmp_path):
    rewrite(adapter, lambda found: {name: torch.full_like(tensor, float("nan")) for name, tensor in found.items()})
    with pytest.raises(ExportRefusedError, match="no finite numbers"):
        export_merged(read_adapter(adapter), base, tmp_path / "out", silent)
    assert not (tmp_path / "out/model.safetensors.index.json").exists()


def test_adapter_that_is_cut_while_it_is_read_is_not_called_a_damaged_base(adapter):
    modules = read_adapter(adapter).modules
    os.truncate(adapter / "adapter_model.safetensors", 8)
    with pytest.raises(ExportRefusedError, match=r"The adapter's file adapter_model\.safetensors is shorter"):
        read_matrices(modules[0])


def test_head_that_shares_the_embedding_is_not_merged(adapter, base, tmp_path):
    rewrite(
        adapter,
        lambda found: (
            found
            | {
                "base_model.model.lm_head.lora_A.weight": torch.ones(8, 128),
                "base_model.model.lm_head.lora_B.weight": torch.ones(256, 8),
            }
        ),
    )
    with pytest.raises(ExportRefusedError, match="shares between its first and its last layer"):
        export_merged(read_adapter(adapter), base, tmp_path / "out", silent)


def test_full_disk_is_known_before_the_first_byte(adapter, base, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=600_000_000))
    export_merged(read_adapter(adapter), base, tmp_path / "fits", silent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=500_000_000))
    with pytest.raises(DiskFullError, match=r"needs 0\.0 GB more.*0\.5 GB are free"):
        export_merged(read_adapter(adapter), base, tmp_path / "out", silent)
    assert not list((tmp_path / "out").glob("*.safetensors"))


@pytest.mark.parametrize("content", [b"", b"{}", b'{"weight_map": {"a": "../../secret.safetensors"}}'])
def test_damaged_index_of_a_base_is_a_sentence(adapter, base, tmp_path, content):
    (base.folder / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(BaseModelMismatchError):
        export_merged(read_adapter(adapter), base, tmp_path / "out", silent)
