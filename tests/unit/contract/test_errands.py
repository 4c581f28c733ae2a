"""Requests that are no training: what is accepted, and how results survive RunPod's SDK."""

import pytest
from pydantic import ValidationError

from lora_contract.errands import (
    ERRAND_REQUESTS,
    MAX_CHECKS,
    MAX_MODEL_CHARACTERS,
    MAX_MODELS,
    ErrandError,
    ErrandResult,
    FitnessCheck,
    FitnessRequest,
    PrefetchedModel,
    PrefetchProgress,
    PrefetchRequest,
    split_model,
)


def test_kind_decides_which_request_is_read():
    prefetch = ERRAND_REQUESTS.validate_python({"protocol": 1, "kind": "prefetch", "models": ["org/model@v1"]})
    assert isinstance(prefetch, PrefetchRequest)
    assert isinstance(ERRAND_REQUESTS.validate_python({"protocol": 1, "kind": "fitness"}), FitnessRequest)


def test_name_and_revision_are_split_at_the_at_sign():
    assert split_model("org/model") == ("org/model", None)
    assert split_model("org/model@refs/pr/3") == ("org/model", "refs/pr/3")


@pytest.mark.parametrize(
    "name",
    ["", "model", "/absolute/path", "org/..", "org/model@..", "org/model@", "o" * MAX_MODEL_CHARACTERS + "/m", "a/b c"],
)
def test_text_that_is_no_model_of_the_hub_is_refused(name):
    with pytest.raises(ValueError, match="organisation/model"):
        split_model(name)
    with pytest.raises(ValidationError):
        PrefetchRequest(models=[name])


@pytest.mark.parametrize("count", [0, MAX_MODELS + 1])
def test_number_of_models_is_bounded(count):
    with pytest.raises(ValidationError):
        PrefetchRequest(models=[f"org/model-{number}" for number in range(count)])


def test_error_survives_the_sdk_which_removes_the_key_error():
    done = PrefetchedModel(model="org/model", bytes=5, seconds=1.5, status="downloaded")
    error = ErrandError(code="disk_full", message="The volume is full.", remedy="Make it larger.")
    output = ErrandResult(kind="prefetch", models=[done], error=error).as_output()
    assert output.pop("error") == "The volume is full. Make it larger."
    read = ErrandResult.model_validate(output)
    assert (read.error, read.models) == (error, [done])


def test_result_without_error_has_no_key_error():
    assert "error" not in ErrandResult(kind="fitness").as_output(), "RunPod would mark the job as failed"


def test_dishonest_numbers_and_lengths_of_a_container_are_bounded():
    progress = PrefetchProgress.model_validate({"model": "m" * 9999, "done_bytes": -1, "total_bytes": 1e300})
    assert (len(progress.model), progress.done_bytes, progress.total_bytes) == (400, 0, 0)
    checks = [{"name": "gpu", "ok": True, "finding": "x" * 9999}] * 999
    result = ErrandResult.model_validate({"kind": "fitness", "checks": checks})
    assert len(result.checks) == MAX_CHECKS
    assert isinstance(result.checks[0], FitnessCheck)
    assert len(result.checks[0].finding) == 2000
