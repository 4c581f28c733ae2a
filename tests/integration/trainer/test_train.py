import json
import re
import signal

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_contract.error_codes import ErrorCode
from lora_contract.ollama import architecture_of
from lora_contract.protocol import Stage
from lora_trainer.export.adapter import read_adapter
from lora_trainer.export.merged import export_merged
from lora_trainer.models.bases import Base
from tests.integration.trainer.child import make_task, start, train

pytestmark = pytest.mark.gpu_stack


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model):
    task = make_task(
        tmp_path_factory.mktemp("job"),
        tiny_model,
        hyperparameters={"epochs": 4},
        volume=tmp_path_factory.mktemp("volume"),
        quantised_cache_gb=1,
    )
    outcome, child = train(task)
    return task, outcome, child


def test_quantised_base_is_kept_for_the_next_job(trained):
    task, _, _ = trained
    (copy,) = (task.volume / "quantised-models").iterdir()
    assert {path.name for path in copy.iterdir()} == {"model.safetensors", "manifest.json"}


def test_training_lowers_the_loss_by_a_third(trained):
    _, outcome, _ = trained
    assert outcome.status == "trained"
    assert outcome.metrics.final_training_loss < outcome.metrics.first_training_loss * 2 / 3
    assert outcome.metrics.best_validation_loss < outcome.metrics.first_training_loss


def test_curve_has_every_step_once_in_order(trained):
    _, outcome, _ = trained
    assert [point.step for point in outcome.points] == list(range(1, outcome.summary.total_steps + 1))
    assert all(point.training_loss is not None and point.throughput > 0 for point in outcome.points)


def test_pace_is_that_of_all_steps_and_within_the_training(trained):
    _, outcome, _ = trained
    pace = outcome.summary.pace
    assert pace.steps == outcome.summary.total_steps
    assert pace.tokens > pace.steps
    assert 0 < pace.seconds <= outcome.summary.train_seconds


@pytest.mark.fault(23)
def test_progress_passes_every_stage_and_counts_real_steps(trained):
    _, outcome, child = trained
    stages = list(dict.fromkeys(progress.stage for progress in child.seen))
    assert stages == [
        Stage.PREPARING,
        Stage.LOADING_MODEL,
        Stage.CONFIGURING,
        Stage.TRAINING,
        Stage.SAVING,
    ]
    last = [progress for progress in child.seen if progress.stage is Stage.TRAINING][-1]
    assert last.current_step == last.total_steps == outcome.summary.total_steps
    assert [point.step for point in last.points] == [point.step for point in outcome.points]


def test_artifact_is_complete_and_contains_no_local_path(trained):
    task, outcome, _ = trained
    names = {path.name for path in task.artifact.iterdir()}
    assert names >= {
        "adapter_model.safetensors",
        "adapter_config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "README.md",
        "training_log.jsonl",
        "loss.png",
        "generation_config.json",
        "split.json",
        "environment.json",
    }
    log = [json.loads(line) for line in (task.artifact / "training_log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [point.step for point in outcome.points]
    config = json.loads((task.artifact / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == outcome.summary.base_model
    assert architecture_of(task.artifact) == "llama"
    split = json.loads((task.artifact / "split.json").read_text())
    assert not set(split["training"]) & set(split["validation"])
    assert split["validation"]
    for path in task.artifact.iterdir():
        if path.suffix in {".json", ".md", ".jsonl"}:
            assert str(task.job_folder.parent) not in path.read_text()


def test_model_card_has_settings_and_the_score_of_the_base(trained):
    task, outcome, _ = trained
    card = (task.artifact / "README.md").read_text()
    before = float(re.search(r"\| validation loss before training \| ([\d.]+) \|", card)[1])
    assert before > outcome.metrics.best_validation_loss
    for line in (
        "| packing | several examples a row",
        "| attention | `sdpa`",
        "| warm-up steps | ",
        "| computed in | `float32`",
    ):
        assert line in card
    assert outcome.points[0].step == 1, "the look before training is no point of the curve"


def test_example_code_of_the_model_card_works(trained, tiny_model, capsys):
    task, outcome, _ = trained
    card = (task.artifact / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    code = code.replace('"path/of/this/folder"', repr(str(task.artifact)))
    code = code.replace(repr(outcome.summary.base_model), repr(str(tiny_model)))
    exec(code.replace("max_new_tokens=512", "max_new_tokens=24, do_sample=False"), {})  # the card's own words
    assert capsys.readouterr().out.strip()


def test_merged_export_answers_exactly_as_base_and_adapter(trained, tiny_model, tmp_path):
    task, _, _ = trained
    base = Base("tiny", None, tiny_model)
    export_merged(read_adapter(task.artifact), base, tmp_path / "merged", lambda _: None)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    questions = [json.loads(line) for line in task.dataset.read_text().splitlines()[1:4]]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), task.artifact)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    for question in questions:
        chat = [{"role": "user", "content": question["current_user_input"]}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        answers = [each.generate(ids, max_new_tokens=12, do_sample=False).tolist() for each in (model, merged)]
        assert answers[0] == answers[1]


def test_artifact_names_the_token_that_ends_an_answer(trained):
    task, _, _ = trained
    tokenizer = AutoTokenizer.from_pretrained(task.artifact)
    ends = json.loads((task.artifact / "generation_config.json").read_text())["eos_token_id"]
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in ends
    assert "An answer ends with `<|im_end|>`" in (task.artifact / "README.md").read_text()


def test_learned_answers_are_counted_from_the_file_not_its_header(trained):
    task, outcome, _ = trained
    answers = len(task.dataset.read_text().splitlines()) - 1
    assert outcome.summary.training_examples + outcome.summary.validation_examples == answers


def test_sigterm_leaves_a_checkpoint_and_reports_the_step(tmp_path, tiny_model):
    task = make_task(tmp_path, tiny_model, hyperparameters={"epochs": 20})
    child = start(task)
    child.read(until=lambda progress: progress.current_step >= 2)
    child.process.send_signal(signal.SIGTERM)
    outcome = child.finish()
    assert (outcome.status, outcome.error.code) == ("stopped", ErrorCode.INTERRUPTED)
    assert list(task.checkpoints.glob("checkpoint-*/lora-trainer.json"))


def test_sigterm_before_the_first_step_ends_at_once(tmp_path, tiny_model):
    child = start(make_task(tmp_path, tiny_model))
    child.read(until=lambda progress: progress.stage is Stage.PREPARING)
    child.process.send_signal(signal.SIGTERM)
    assert child.finish().status == "stopped"


def test_training_process_ends_with_its_killed_handler(tmp_path, tiny_model):
    child = start(make_task(tmp_path, tiny_model, hyperparameters={"epochs": 20}))
    child.read(until=lambda progress: progress.current_step >= 1)
    child.process.stdin.close()
    assert child.process.wait() == -signal.SIGKILL
    child.events.close()


def test_missing_base_model_is_named_with_the_remedy(tmp_path, tiny_model):
    task = make_task(tmp_path, tiny_model, hyperparameters={"base_model": "no such model"})
    outcome, child = train(task)
    assert outcome.error.code is ErrorCode.BASE_MODEL_UNKNOWN
    assert "no such model" in outcome.error.message
    assert child.process.returncode == 1


def test_one_step_training_learns_and_publishes_no_zeros(tmp_path, tiny_model):
    dataset = tmp_path / "dataset"
    lines = [
        {"messages": [{"role": "user", "content": f"Why, {n}?"}, {"role": "assistant", "content": f"Since {n}."}]}
        for n in range(6)
    ]
    dataset.write_text("\n".join(map(json.dumps, lines)))
    wanted = {"batch_size": 8, "epochs": 1}
    task = make_task(tmp_path / "job", tiny_model, dataset=dataset, hyperparameters=wanted)
    outcome, _ = train(task)
    assert (outcome.status, outcome.summary.total_steps) == ("trained", 1), outcome.error
    assert outcome.points[0].learning_rate == pytest.approx(5e-3)
    saved = load_file(task.artifact / "adapter_model.safetensors")
    assert all(tensor.any() for name, tensor in saved.items() if ".lora_B" in name)
