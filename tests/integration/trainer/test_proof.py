"""What a fresh process finds of published files: an adapter of the tiny model, whole and spoiled in each way."""

import json
import shutil
import tarfile
from contextlib import nullcontext

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from lora_contract.error_codes import ErrorCode
from lora_contract.evaluation import EvaluationFile, Measure
from lora_trainer.proof import trial
from lora_trainer.proof.process import attempt
from lora_trainer.run.files import sha256_of
from lora_trainer.run.held_out import HeldOut, HeldOutPrompt, HeldOutRow
from lora_trainer.run.proof_task import Proof, ProofTask, kept_proof
from lora_trainer.run.task import Task
from sandbox.standin_proof import try_nothing
from tests.integration.trainer.child import make_task
from tests.integration.trainer.in_process import trained

WEIGHTS = "adapter_model.safetensors"
LAYER = "base_model.model.model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_model) -> Task:
    """A finished training, whose folder no test changes."""
    task = make_task(tmp_path_factory.mktemp("job"), tiny_model)
    outcome = trained(task)
    assert outcome.status == "trained", outcome.error
    return task


@pytest.fixture
def task(finished, tmp_path) -> ProofTask:
    """The task of trying a copy of its files."""
    job = tmp_path / "job"
    shutil.copytree(finished.job_folder, job)
    return proof_task(finished, job)


def proof_task(finished: Task, job, **changes) -> ProofTask:
    return ProofTask(
        execution_id=finished.execution_id,
        job_folder=job,
        folder=job / finished.execution_id,
        volume=finished.volume,
        hyperparameters=finished.hyperparameters,
        **changes,
    )


def change_tensors(task: ProofTask, change) -> None:
    path = task.artifact / WEIGHTS
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def change_config(task: ProofTask, **changes) -> None:
    path = task.artifact / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_published_adapter_is_applied_and_the_artifact_is_completed(task):
    task = task.model_copy(update={"archive_name": "adapter.tar.gz"})
    proof = attempt(task)
    assert proof.error is None, proof.error
    found = proof.application
    assert found.adapter_sha256 == sha256_of(task.artifact / WEIGHTS)
    assert (found.modules, found.tensors) == (28, 56)
    assert found.prompts == len(HeldOut.read(task.folder).prompts) > 0
    assert found.differing > 0
    assert found.trained_loss == pytest.approx(found.served_loss, rel=0.05), "the same rows, on two bases"
    assert found.trained_loss != found.served_loss
    assert (found.precision, found.base_unchanged) == ("fp32", True)
    written = EvaluationFile.model_validate_json((task.artifact / "evaluation.json").read_bytes())
    assert written.application == found
    assert any(sample.base != sample.tuned for sample in written.samples)
    assert "## Answers side by side" in (task.artifact / "README.md").read_text()
    with tarfile.open(task.artifact / "adapter.tar.gz") as archive:
        assert archive.extractfile("adapter/evaluation.json").read() == (task.artifact / "evaluation.json").read_bytes()
    proof.write(task.folder)
    assert kept_proof(task.folder) == proof


def rename_one(tensors):
    return {name.replace(LAYER, f"{LAYER}ection"): tensor for name, tensor in tensors.items()}


def rename_all(tensors):
    return {name.replace("base_model.model.", "base_model.model.language_model."): t for name, t in tensors.items()}


def lose_one(tensors):
    return {name: tensor for name, tensor in tensors.items() if name != f"{LAYER}.lora_B.weight"}


def widen_one(tensors):
    name = f"{LAYER}.lora_A.weight"
    return {**tensors, name: torch.cat([tensors[name], tensors[name]], dim=1)}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (rename_one, "27 of 28 modules took the published adapter: 2 of its file's tensors have a name that no module"),
        (rename_all, "0 of 28 modules took the published adapter: 56 of its file's tensors have a name that no module"),
        (lose_one, "27 of 28 modules took the published adapter: 1 that modules need are not in its file"),
        (widen_one, "27 of 28 modules took the published adapter: 1 of its file's tensors have another shape"),
    ],
)
# PEFT warns, and goes on.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_files_changed_inside_fail_with_the_count_and_first_module(task, change, sentence):
    change_tensors(task, change)
    proof = attempt(task)
    assert proof.application is None
    assert proof.error.code is ErrorCode.NOT_APPLIED
    assert proof.error.message.startswith(sentence)
    assert "(first model.l" in proof.error.message


def silence(tensors):
    return {name: tensor * 0 if ".lora_B" in name else tensor for name, tensor in tensors.items()}


def test_adapter_that_changes_no_answer_fails_with_what_to_do(task):
    HeldOut(prompts=[prompt([5, 6, 7])]).write(task.folder)
    change_tensors(task, silence)
    error = attempt(task).error
    assert error.code is ErrorCode.NOTHING_LEARNED
    assert "28 modules took the published adapter, but all 11 prompts are answered as by the base" in error.message
    assert "learning_rate" in error.hint


@pytest.mark.parametrize("name", [WEIGHTS, "adapter_config.json"])
@pytest.mark.parametrize("spoil", ["missing", "damaged"])
def test_file_that_cannot_be_read_is_named(task, name, spoil):
    path = task.artifact / name
    path.unlink() if spoil == "missing" else path.write_bytes(b"{")
    error = attempt(task).error
    assert error.code is ErrorCode.NOT_APPLIED
    assert name in error.message


def test_adapter_of_another_base_is_refused(task):
    change_config(task, base_model_name_or_path="org/another")
    error = attempt(task).error
    assert error.code is ErrorCode.NOT_APPLIED
    assert "names org/another as its base" in error.message


def test_base_that_loading_the_adapter_alters_is_noticed(task, monkeypatch):
    load = trial.load_adapter

    def alter(model, *rest):
        model.get_input_embeddings().weight.data[7, 0] += 1e-3
        return load(model, *rest)

    monkeypatch.setattr(trial, "load_adapter", alter)
    error = attempt(task).error
    assert error.code is ErrorCode.NOT_APPLIED
    assert "changed the base's own weights" in error.message


def test_adapter_that_cannot_be_switched_off_is_noticed(task, monkeypatch):
    monkeypatch.setattr(PeftModel, "disable_adapter", lambda _: nullcontext())
    error = attempt(task).error
    assert error.code is ErrorCode.NOT_APPLIED
    assert "With the adapter switched off the base answers" in error.message


def prompt(ids) -> HeldOutPrompt:
    return HeldOutPrompt(messages=[{"role": "user", "content": "What is held out?"}], ids=ids, reference="This.")


def hold_out(task: ProofTask, *, trained_loss: float) -> None:
    rows = [HeldOutRow(ids=list(range(5, 25)), labels=[-100] * 8 + list(range(13, 25)))]
    measure = Measure(loss=trained_loss, token_accuracy=0.5, tokens=12)
    HeldOut(prompts=[prompt([5, 6, 7, 8])], rows=rows, trained=measure).write(task.folder)


def test_loss_as_served_is_told_beside_the_loss_as_trained(task):
    hold_out(task, trained_loss=1.0)
    proof = attempt(task)
    found = proof.application
    assert (found.trained_loss, found.served_precision) == (1.0, "fp32")
    assert found.served_loss > 1.01
    assert [f"{found.served_loss:.4f}" in note and "1.0000" in note for note in proof.notes] == [True]
    hold_out(task, trained_loss=found.served_loss)
    assert attempt(task).notes == []
    samples = EvaluationFile.model_validate_json((task.artifact / "evaluation.json").read_bytes()).samples
    assert [(sample.held_out, sample.reference) for sample in samples][:1] == [(True, "This.")]


def test_second_try_holds_the_base_in_4_bits_and_measures_no_gap(task):
    hold_out(task, trained_loss=1.0)
    proof = attempt(task.model_copy(update={"precision": "nf4"}))
    found = proof.application
    assert (found.precision, found.served_loss, found.served_precision) == ("nf4", None, None)
    assert found.differing > 0


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), ErrorCode.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: an illegal memory access"), ErrorCode.INTERNAL),
        (ValueError("a library's own words: Ahoy"), ErrorCode.INTERNAL),
    ],
)
def test_fault_of_the_machine_is_no_finding_about_the_files(task, monkeypatch, fault, code):
    def fail(*_, **__):
        raise fault

    monkeypatch.setattr(trial, "load_model", fail)
    proof = attempt(task)
    assert (proof.application, proof.error.code) == (None, code)
    assert "Ahoy" not in proof.model_dump_json()


def test_execution_that_lost_the_folder_completes_nothing(task):
    (task.job_folder / "owner.json").write_text(json.dumps({"execution_id": "another"}))
    before = (task.artifact / "README.md").read_bytes()
    assert attempt(task).error.code is ErrorCode.SUPERSEDED
    assert (task.artifact / "README.md").read_bytes() == before


def test_proof_of_other_weights_is_not_kept(task):
    Proof(application=attempt(task).application).write(task.folder)
    assert kept_proof(task.folder)
    change_tensors(task, rename_one)
    assert kept_proof(task.folder) is None


def test_stand_in_writes_what_the_real_process_writes(task):
    real = task.model_copy(update={"archive_name": "adapter.tar.gz"})
    attempt(real).write(real.folder)
    written = json.loads((task.folder / "proof.json").read_text())
    (task.folder / "proof.json").unlink()
    (task.artifact / "adapter.tar.gz").unlink()
    try_nothing(json.loads(real.model_dump_json()))
    stand_in = json.loads((task.folder / "proof.json").read_text())
    assert stand_in["application"].keys() == written["application"].keys()
    assert kept_proof(task.folder) is not None
    assert (task.artifact / "adapter.tar.gz").is_file()
