"""An adapter that learned nothing is not published; the saved bytes decide."""

import pytest
import torch
from safetensors.torch import save_file

from lora_contract.error_codes import FAULTS, Fault
from lora_trainer.artifact.folder import check_weights
from lora_trainer.errors import NothingLearnedError

pytestmark = pytest.mark.gpu_stack


def saved(folder, **values):
    path = folder / "adapter_model.safetensors"
    names = {"a": "base_model.model.q_proj.lora_A.weight", "b": "base_model.model.q_proj.lora_B.weight"}
    save_file({names[key]: torch.tensor(value, dtype=torch.bfloat16) for key, value in values.items()}, path)
    return path


def test_adapter_of_zeros_is_refused_and_not_retried(tmp_path):
    with pytest.raises(NothingLearnedError, match="all zeros") as refused:
        check_weights(saved(tmp_path, a=[0.5, 0.1], b=[0.0, 0.0]))
    assert FAULTS[refused.value.code] is Fault.PERMANENT


def test_adapter_saved_as_zeros_is_refused(tmp_path):
    """Smaller than the smallest bf16 number: not zero while training, but zero in the saved file."""
    with pytest.raises(NothingLearnedError, match="all zeros"):
        check_weights(saved(tmp_path, a=[0.5], b=[1e-42]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_adapter_with_nan_values_is_refused(tmp_path, value):
    with pytest.raises(NothingLearnedError, match="no numbers"):
        check_weights(saved(tmp_path, a=[0.5], b=[value]))


def test_an_adapter_that_learned_something_is_published(tmp_path):
    check_weights(saved(tmp_path, a=[0.5], b=[0.0, 1e-6]))
