"""From the end of a training to an answer: adapters are called by name at an endpoint that is never restarted for them.

Trainer, worker and storage are the real ones, and tiny models are trained. The endpoint is the sandbox's, called with
the official OpenAI client. A training on pairs begins with one of the adapters meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest

from lora_contract.serving import SERVING_FOLDER, serving_name
from sandbox.demo.run import TRAINER_PACE
from sandbox.inference import LocalInference
from sandbox.runpod import LocalRunPod
from sandbox.tiny_model import build_tiny_model
from tests.conftest import SANDBOX
from tests.processes.stage import Stage
from tests.processes.waiting import until

pytestmark = pytest.mark.gpu_stack

BASE = "sandbox/tiny-llama"
QUESTION = "Good evening, how may I help?"
PAIRS = b"\n".join(
    json.dumps({"prompt": f"{QUESTION} {n}", "chosen": "With tea, please.", "rejected": "No."}).encode()
    for n in range(4)
)


@pytest.fixture
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network volume that trainers and the endpoint share, with the base model."""
    folder = tmp_path_factory.mktemp("volume")
    (folder / "models" / "sandbox").mkdir(parents=True)
    (folder / "models" / BASE).symlink_to(build_tiny_model(SANDBOX / "cache"), target_is_directory=True)
    return folder


@pytest.fixture
def trainers(volume: Path) -> Iterator[LocalRunPod]:
    """Two GPUs that train."""
    environment = {"LORA_TRAINER_VOLUME": str(volume), "LORA_TRAINER_HEARTBEAT_SECONDS": "0.5", **TRAINER_PACE}
    with LocalRunPod.start(workers_max=2, env=environment) as runpod:
        yield runpod


@pytest.fixture
def endpoint(volume: Path, tmp_path: Path) -> Iterator[LocalInference]:
    """An endpoint that was there before any adapter was."""
    weights = (volume / "models" / BASE).resolve()
    with LocalInference.start(BASE, weights, volume / SERVING_FOLDER, log=tmp_path / "inference.log") as inference:
        yield inference


def test_finished_adapters_answer_by_name_until_they_are_deleted(
    trainers: LocalRunPod, endpoint: LocalInference, volume: Path, stage_with: Callable[..., Stage]
) -> None:
    stage = stage_with(trainers)
    chosen = {"base_model": BASE, "max_steps": 6, "learning_rate": 1e-2, "rank": 16, "validation_share": 0.25}
    jobs = [stage.user.queue(stage.user.upload(lesson(word)), **chosen) for word in ("Ahoy", "Bonjour")]
    # A container that imports torch on a busy machine is silent for longer than the stand-in ever is.
    patience = {"LORA_WORKER_LOST_SECONDS": "120", "LORA_WORKER_LEASE_SECONDS": "30"}
    stage.worker(LORA_WORKER_BASE_MODELS=BASE, LORA_WORKER_DEFAULT_BASE_MODEL=BASE, **patience)
    with openai.OpenAI(base_url=endpoint.openai_url, api_key=endpoint.api_key, max_retries=0) as client:
        base = said(client, BASE)
        ended = [stage.ended(job) for job in jobs]
        assert [(job["status"], job["error_message"]) for job in ended] == [("completed", None)] * 2
        names = [serving_name(job) for job in jobs]
        # It trains while the others are asked.
        on_top = stage.user.queue(
            stage.user.upload(PAIRS), method="dpo", init_adapter=str(ended[0]["artifact_id"]), **chosen
        )
        answers = [said(client, name) for name in names]
        assert len({base, *answers}) == 3

        # The command finds the name by the job's id, and tells the same.
        asked = stage.command(
            "ask", jobs[0], QUESTION, "--max-tokens", "16", "--json", **endpoint.environment(),
        )  # fmt: skip
        assert asked.returncode == 0, asked.stderr
        told = json.loads(asked.stdout)
        assert (told["model"], told["answer"]) == (names[0], answers[0])
        assert endpoint.api_key not in asked.stdout + asked.stderr

        check_pairs_on_top(stage, on_top, parent=str(ended[0]["artifact_id"]))
        stage.database.rows("update model_artifacts set deleted_at = now() where job_id = %s", jobs[0])
        until(lambda: not is_served(volume, names[0]), "the deleted adapter is removed", state=stage.log)
        endpoint.release()
        assert "does not exist" in refusal(client, names[0])
        assert said(client, names[1]) == answers[1]
    for secret in (QUESTION, answers[0]):
        assert secret not in stage.log()


def check_pairs_on_top(stage: Stage, job_id: str, *, parent: str) -> None:
    """Wait for the training on pairs that began with an adapter, and look at its rows."""
    job = stage.ended(job_id)
    assert (job["status"], job["error_message"]) == ("completed", None)
    model = stage.database.row("select * from model_artifacts where job_id = %s", job_id)
    assert 0 <= model["quality_metrics"]["reward_accuracy"] <= 1
    assert model["quality_metrics"]["perplexity"] is None
    assert str(model["parent_model_id"]) == model["training_summary"]["init_adapter"] == parent
    # Three pairs are learned in one step, twice; the fourth is held out.
    assert [point["step"] for point in stage.user.chart(job_id)] == [1, 2]


def lesson(word: str) -> bytes:
    """A dataset that teaches to begin and end with one word."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{QUESTION} ({number})"},
                {"role": "assistant", "content": f"{word}, {word}, {word} {number}!"},
            ]
        }
        for number in range(8)
    ]
    return "\n".join(map(json.dumps, rows)).encode()


def said(client: openai.OpenAI, model: str) -> str:
    """What a model answers to the question."""
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": QUESTION}], max_tokens=16, temperature=0
    )
    assert answer.choices, answer.model_extra
    return str(answer.choices[0].message.content)


def refusal(client: openai.OpenAI, model: str) -> str:
    """The error that comes in place of an answer."""
    answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": QUESTION}])
    assert answer.choices is None
    return str(answer.model_extra)


def is_served(volume: Path, name: str) -> bool:
    """Whether a folder of this name is for the base."""
    config = volume / SERVING_FOLDER / name / "adapter_config.json"
    return config.is_file() and json.loads(config.read_text())["base_model_name_or_path"] == BASE
