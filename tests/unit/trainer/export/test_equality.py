"""A merged model answers as base and adapter do, for all that the trainer trains, loaded by plain transformers."""

import json
import math
import os

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from lora_trainer.export.adapter import read_adapter
from lora_trainer.export.merged import export_merged
from lora_trainer.models.targets import Targets, without_peft_conversion
from tests.processes.warm_python import run_module
from tests.project import ROOT
from tests.unit.trainer.export.making import change_config, make_adapter, make_base, pack_experts

pytestmark = [
    pytest.mark.gpu_stack,
    # PEFT fuses gate and up with twice the rank, and warns that no module has that name: it is a parameter's.
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning"),
]

IDS = torch.arange(2, 66).reshape(2, 32)
CASES = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": {},
    "qwen3_next": {},
    "llama with DoRA": {"use_dora": True},
    "llama with rslora": {"use_rslora": True},
    "llama with alpha_pattern": {},
    "llama in float32": {},
    "qwen3_moe with experts": {"target_experts": True},
    "qwen3_moe with experts, packed": {"target_experts": True},
    "qwen3_next with the shared expert": {"target_experts": True},
}
NO_CONVERSION = Targets((), peft_would_convert=True)


def prepare(folder, case, chosen):
    base = make_base(
        folder / "base", case.split()[0], dtype=torch.float32 if case.endswith("float32") else torch.bfloat16
    )
    make_adapter(folder / "adapter", base, **chosen)
    if case.endswith("alpha_pattern"):
        change_config(folder / "adapter", alpha_pattern={r"layers\.\d+\.self_attn\.q_proj": 64})
    if case.endswith("packed"):
        pack_experts(base)
    export_merged(read_adapter(folder / "adapter"), base, folder / "out", lambda _: None)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of each case, and the logits of its export."""
    folders = {case: tmp_path_factory.mktemp("case") for case in CASES}
    for case, folder in folders.items():
        prepare(folder, case, CASES[case])
    outs = [str(folder / "out") for folder in folders.values()]
    target = tmp_path_factory.mktemp("logits") / "logits.pt"
    module = "tests.unit.trainer.export.logits"
    run_module("trainer", module, str(target), *outs, environment=os.environ, cwd=ROOT).check_returncode()
    logits = torch.load(target)
    return {case: (folder, logits[str(folder / "out")]) for case, folder in folders.items()}


def with_adapter(folder, case):
    """Base and adapter by PEFT alone, in float32."""
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    if case.startswith("qwen3_next"):
        # PEFT would take the shared expert's names for those of all experts (peft#3711).
        with without_peft_conversion("qwen3_next", NO_CONVERSION):
            return PeftModel.from_pretrained(base, folder / "adapter").eval()
    return PeftModel.from_pretrained(base, folder / "adapter").eval()


@pytest.mark.parametrize("case", CASES)
def test_merged_model_answers_as_base_and_adapter(exported, case):
    folder, found = exported[case]
    model = with_adapter(folder, case)
    with torch.no_grad(), model.disable_adapter():
        alone = model(IDS).logits
    with torch.no_grad():
        unmerged = model(IDS).logits
    merged = model.merge_and_unload()
    for weight in merged.parameters():
        weight.data = weight.data.bfloat16().float()
    with torch.no_grad():
        rounded = merged(IDS).logits
    assert (found - rounded).abs().max() < 1e-3, "not what base and adapter are in bf16"
    # Of weights in bf16 the rounding is seen, beside a sum that is not rounded. The median, since in a mixture it may
    # send a token to another expert.
    difference, effect = ((found - other).abs().median() for other in (unmerged, alone))
    assert difference < 1e-3
    assert effect > 10 * difference, "the adapter is hardly there"


def test_export_has_its_files_and_a_record_of_them(exported):
    folder, _ = exported["llama in float32"]
    record = json.loads((folder / "out/export.json").read_text())
    listed = {file["name"] for file in record["files"]}
    assert record["complete"]
    assert listed | {"export.json", ".export.lock"} == {path.name for path in (folder / "out").iterdir()}
    assert {"config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json", "README.md"} <= listed
    assert json.loads((folder / "out/config.json").read_text())["dtype"] == "bfloat16"
    index = json.loads((folder / "out/model.safetensors.index.json").read_text())
    for name in set(index["weight_map"].values()):
        with safe_open(folder / "out" / name, framework="pt") as file:
            assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.bfloat16}  # noqa: SIM118 no dict
    sizes = [file["bytes"] for file in record["files"] if file["name"].endswith(".safetensors")]
    assert math.isclose(index["metadata"]["total_size"], sum(sizes), rel_tol=0.05)


def test_card_says_what_was_merged_and_needs_no_peft(exported):
    folder, _ = exported["llama with DoRA"]
    card = (folder / "out/README.md").read_text()
    assert "`org/base` with a DoRA adapter merged" in card
    assert 'base_model: "org/base"' in card
    assert json.loads((folder / "out/export.json").read_text())["adapter_sha256"] in card
