"""Which exceptions mean out of memory, a lost GPU, or a damaged file."""

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from lora_contract.error_codes import FAULTS, ErrorCode, Fault
from lora_trainer.errors import BaseModelMismatchError, TrainingError
from lora_trainer.models import loading as models
from lora_trainer.models.bases import Base
from lora_trainer.models.cuda_faults import context_is_broken, is_out_of_memory
from lora_trainer.recipe.next_try import Ending
from lora_trainer.recipe.train import explain, run_training

pytestmark = pytest.mark.gpu_stack

MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory"),
]
DRIVER = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: no kernel image is available for execution on the device"),
]
PASSING = [
    *DRIVER,
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ESTALE, "Stale file handle"),
    SafetensorError("I/O error: Input/output error (os error 5)"),
    RuntimeError("We encountered some issues during automatic conversion of the weights."),
]
DAMAGE = [
    SafetensorError("Error while deserializing header: incomplete metadata, file not fully covered"),
    KeyError("model.layers.0.mlp.up_proj.weight"),
    RuntimeError("You set `ignore_mismatched_sizes` to `False`, thus raising an error."),
    RuntimeError("Error(s) in loading state_dict for LlamaForCausalLM: size mismatch for lm_head.weight"),
    OSError("Error no file named model.safetensors found in directory"),
]


@pytest.mark.parametrize("error", MEMORY)
def test_every_form_of_out_of_memory_is_recognised(error):
    assert is_out_of_memory(error)
    assert explain(error).code is ErrorCode.OUT_OF_MEMORY


@pytest.mark.parametrize("error", [*PASSING, *DAMAGE])
def test_other_errors_are_not_taken_for_out_of_memory(error):
    assert not is_out_of_memory(error)


def loading(monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", fail)
    config = SimpleNamespace(model_type="llama")
    return models.load_model(Base("org/model", None, Path("folder")), config, models.Hardware("cpu", torch.float32))


@pytest.mark.parametrize("error", DAMAGE)
def test_damaged_base_model_is_final_and_names_what_to_remove(monkeypatch, error):
    with pytest.raises(BaseModelMismatchError, match="can't be loaded"):
        loading(monkeypatch, error)


@pytest.mark.parametrize("error", PASSING)
def test_transient_errors_while_loading_are_retried(monkeypatch, caplog, error):
    with pytest.raises(TrainingError) as caught:
        loading(monkeypatch, error)
    assert FAULTS[caught.value.code] is Fault.TRANSIENT
    assert type(error).__name__ in caplog.text
    assert "org/model" in caught.value.message


@pytest.mark.parametrize("error", [*MEMORY, OSError(errno.ENOSPC, "No space left on device")])
def test_full_memory_or_disk_while_loading_keeps_its_error_code(monkeypatch, error):
    with pytest.raises(type(error)) as caught:
        loading(monkeypatch, error)
    assert explain(caught.value).code in {ErrorCode.OUT_OF_MEMORY, ErrorCode.DISK_FULL}


class Trainer:
    """A trainer that fails at once, and records whether it was asked to save."""

    def __init__(self, error):
        self.error = error
        self.saved = []
        self.state = SimpleNamespace(global_step=3)

    def begin(self, checkpoint):
        pass

    def train(self, resume_from_checkpoint):
        raise self.error


@pytest.mark.parametrize(
    ("error", "saves"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (torch.AcceleratorError("CUDA error: out of memory"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), False),
    ],
)
def test_broken_gpu_context_saves_nothing_and_resumes_from_before(monkeypatch, error, saves):
    trainer, saved = Trainer(error), []
    monkeypatch.setattr("lora_trainer.recipe.train.save_last_step", lambda *_: saved.append(True))
    stop, evaluator = SimpleNamespace(training_begins=lambda: None), SimpleNamespace(measure_base=lambda: None)
    assert run_training(trainer, SimpleNamespace(stopped=False), evaluator, stop, None) is Ending.OUT_OF_MEMORY
    assert bool(saved) is saves


@pytest.mark.parametrize("error", DRIVER)
def test_failing_gpu_is_named_and_the_run_retried(error):
    assert context_is_broken(error)
    known = explain(error)
    assert FAULTS[known.code] is Fault.TRANSIENT
    assert "GPU" in known.message
    assert "checkpoint" in known.hint
