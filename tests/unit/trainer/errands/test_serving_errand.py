"""The errand that keeps the folder of served adapters as rows say: through the handler, as RunPod calls it."""

import pytest

from lora_contract.errands import MAX_ALIASES, MAX_REMOVALS, ErrandResult
from lora_trainer.handler import handler
from lora_trainer.run import serving
from lora_trainer.run.served_adapters import ServedAdapters
from tests.unit.trainer.run.served import make_adapter, served_value


@pytest.fixture
def served(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_TRAINER_SERVING_FOLDER", str(tmp_path / "served"))
    served = ServedAdapters(tmp_path / "served")
    for number in (1, 2):
        adapter = make_adapter(tmp_path / f"artifact-{number}", float(number))
        served.place(
            adapter, [f"adapter-{number}"], job_id=f"job-{number}", run_id=f"run-{number}", is_current=lambda: True
        )
    return served


async def ask(**request) -> ErrandResult:
    output = await handler({"id": "job", "input": {"protocol": 1, "kind": "serving", **request}})
    return ErrandResult.model_validate(output)


async def test_runs_are_removed_and_what_was_never_there_counts_as_removed(served):
    result = await ask(remove=["run-1", "run-9"])
    assert (result.removed, result.problems, result.error) == (["run-1", "run-9"], [], None)
    assert served_value(served.folder, "adapter-1") is None
    assert served_value(served.folder, "adapter-2") == 2.0
    assert await ask(remove=["run-1", "run-9"]) == result


async def test_alias_moves_in_the_errand_that_removes_what_it_held(served):
    await ask(aliases={"bot:live": "adapter-1", "gone:live": "adapter-2"})
    assert served_value(served.folder, "bot:live") == 1.0
    result = await ask(remove=["run-1"], aliases={"bot:live": "adapter-2", "gone:live": None})
    assert result.aliases == ["bot:live", "gone:live"]
    assert served_value(served.folder, "bot:live") == 2.0
    assert served_value(served.folder, "gone:live") is None


async def test_what_can_not_be_done_is_told_beside_what_was(served):
    result = await ask(remove=["run-2"], aliases={"bot:live": "adapter-2", "new:live": "adapter-1"})
    assert result.removed == ["run-2"]
    assert result.aliases == ["new:live"]
    assert result.problems == ["bot:live: No adapter adapter-2 is served."]
    assert result.error is None


@pytest.mark.parametrize(
    "request_",
    [
        {"remove": ["r"] * (MAX_REMOVALS + 1)},
        {"aliases": {f"bot{n}:live": None for n in range(MAX_ALIASES + 1)}},
        {"aliases": {"../x:live": "adapter-1"}},
        {"aliases": {"adapter-1": "adapter-2"}},
        {"aliases": {"bot:live": "../adapter-1"}},
        {"aliases": {"bot:live": "bot:live"}},
    ],
)
async def test_names_and_numbers_from_outside_are_bounded(served, request_):
    result = await ask(**request_)
    assert result.kind == "serving"
    assert result.error.code == "request_invalid"
    assert served_value(served.folder, "adapter-1") == 1.0


async def test_missing_volume_is_named(served, monkeypatch):
    monkeypatch.delenv("LORA_TRAINER_SERVING_FOLDER")
    monkeypatch.setattr(serving, "mounted_volume", lambda configured: None)
    result = await ask(remove=["run-1"])
    assert result.error.code == "volume_missing"
    assert result.removed == []
