"""The operator's commands about jobs, as text and as JSON: names never act on the terminal, keys never change."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any
from uuid import UUID

import pytest
from rich.console import Console

from lora_contract.evaluation import EvaluationFile
from lora_worker.commands.job_views import print_job, print_jobs
from lora_worker.commands.sample_views import print_samples
from lora_worker.errors import ServiceRefusedError, ServiceUnavailableError
from tests.commands import check_keys, give_services, run_command
from tests.scripted import make_services
from tests.unit.artifact_stores import MemoryBucket
from tests.unit.worker.commands.job_data import (
    HOSTILE,
    JOB,
    MAIL,
    OTHER,
    RUN,
    SHOWN,
    USER,
    OperatorQueue,
    completed_details,
    details,
    job_entry,
)

pytestmark = pytest.mark.usefixtures("environment")

CURSOR = f"2026-11-26 12:00:00.5+00|{OTHER}"


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> OperatorQueue:
    made = OperatorQueue(details(), jobs=[job_entry(JOB), job_entry(OTHER)])
    give_services(monkeypatch, make_services(queue=made))
    return made


def is_harmless(text: str) -> bool:
    return HOSTILE not in text and all(character == "\n" or character.isprintable() for character in text)


# ── jobs ────────────────────────────────────────────────────────────────────────────────────────────


def test_jobs_are_listed_with_hostile_names_as_text(queue: OperatorQueue) -> None:
    queue.jobs[1]["status"], queue.jobs[1]["waits_for"] = "queued", "a free worker slot"
    queue.next_cursor = f"2026-11-26 12:00:00+00|{OTHER}"
    done = run_command("jobs")
    assert done.exit_code == 0
    assert is_harmless(done.stdout)
    assert SHOWN[:19] in done.stdout
    for part in (
        "0f5f8e0a",
        "training",
        "62 %",
        "$0.31",
        "waits for a free worker slot",
        f"--cursor '{queue.next_cursor}'",
    ):
        assert part in done.stdout


def test_jobs_as_json_have_stable_keys(queue: OperatorQueue) -> None:
    answer = json.loads(run_command("jobs", "--json").stdout)
    check_keys("jobs", answer)
    assert answer["jobs"][0]["name"] == HOSTILE


@pytest.mark.parametrize("cursor", ["x", "x|y", f"2026|{OTHER}", f"2026-11-26 12:00:00|{OTHER}|{OTHER}"])
def test_a_cursor_that_no_page_has_told_is_one_sentence(queue: OperatorQueue, cursor: str) -> None:
    done = run_command("jobs", "--cursor", cursor)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "is none that `lora-worker jobs` has printed" in done.stderr
    assert queue.asked == []


def test_each_filter_of_jobs_reaches_the_database(queue: OperatorQueue) -> None:
    run_command("jobs", "--status", "failed", "--status", "queued", "--user", str(USER), "--model", "org/base",
                "--error", "out_of_memory", "--since", "2026-11-25", "--limit", "7", "--cursor", CURSOR)  # fmt: skip
    (wanted,) = queue.asked
    assert wanted == {
        "statuses": ["failed", "queued"], "user_id": str(USER), "base_model": "org/base", "error_code": "out_of_memory",
        "since": "2026-11-25T00:00:00+00:00", "until": None, "limit": 7, "cursor": CURSOR,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["jobs", "--user", "somebody"], "no user has the id or mail address 'somebody'"),
        (["jobs", "--since", "\x1b[2Jyesterday"], "is no time: give an age such as 24h"),
        (["jobs", "--status", "odd"], "--status"),
        (["show", "zebra"], "'zebra' is neither a job's id nor the beginning of one"),
        (["show", "ffff"], "no job's id begins with ffff"),
        (["show", "0f5f"], f"the ids of several jobs begin with 0f5f: {JOB}, {OTHER}"),
        (["cancel", "0f5f8e0a", "ffff"], "no job's id begins with ffff"),
        (["hold", "--user", "me"], "no user has the id or mail address 'me'"),
        (["resume", "--user", "me"], "no user has the id or mail address 'me'"),
        (["resume", "org/base", "--user", str(USER)], "and not both"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_argument_is_one_sentence_and_changes_nothing(
    queue: OperatorQueue, arguments: list[str], words: str
) -> None:
    done = run_command(*arguments)
    assert done.exit_code == 2
    assert words in done.stderr
    assert "\x1b" not in done.stderr
    assert not any(isinstance(call, tuple) for call in queue.asked)


def test_database_that_is_away_is_one_sentence(queue: OperatorQueue) -> None:
    queue.failing = ServiceUnavailableError("Supabase", "Supabase is not available: no route")
    done = run_command("jobs")
    assert (done.exit_code, done.stderr) == (1, "lora-worker: Supabase is not available: no route\n")


# ── show ────────────────────────────────────────────────────────────────────────────────────────────


def test_show_tells_stages_curve_cost_and_errors(queue: OperatorQueue) -> None:
    told = details(status="failed", error_code="out_of_memory", error_message=HOSTILE)
    told["runs"][0] |= {"status": "failed", "error_code": "out_of_memory", "error_message": HOSTILE}  # type: ignore[typeddict-item]
    queue.states = [told]
    done = run_command("show", "0f5f8")
    assert done.exit_code == 0
    assert is_harmless(done.stdout)
    for part in (str(JOB), SHOWN, "cold start", "1 min 01 s", "NVIDIA A100 80GB PCIe  $0.31  worker w-0123abcd",
                 "loading model", "10 min 10 s", "3.5 → 0.575", "▁",
                 "$0.31 (estimated $0.20 to $0.60)", f"out_of_memory: {SHOWN}", "step 40 of 80"):  # fmt: skip
        assert part in done.stdout, part


async def test_show_ends_with_the_last_lines_of_the_log(queue: OperatorQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    services = make_services(queue=queue, storage=MemoryBucket())
    give_services(monkeypatch, services)
    (told,) = queue.states
    assert told is not None
    told["runs"][0]["ended_at"] = "2026-11-26T12:20:00+00:00"
    lines = [f"line {number}" for number in range(30)]
    await services.logs.write(USER, UUID(told["runs"][0]["run_id"]), notes=[], lines=lines)
    done = await asyncio.to_thread(run_command, "show", str(JOB))
    assert done.stdout.splitlines()[-15:] == [f"  line {number}" for number in range(15, 30)]
    answer = json.loads((await asyncio.to_thread(run_command, "show", str(JOB), "--json")).stdout)
    assert answer["log"] == lines[15:]
    check_keys("show", answer)


def test_log_that_cannot_be_read_hides_nothing_else(queue: OperatorQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    class Away:
        async def read(self, *_: Any, **__: Any) -> bytes:
            raise ServiceUnavailableError("Storage", "Storage is not available")

    give_services(monkeypatch, make_services(queue=queue, storage=Away()))
    (told,) = queue.states
    assert told is not None
    told["runs"][0]["ended_at"] = "2026-11-26T12:20:00+00:00"
    done = run_command("show", str(JOB))
    assert done.exit_code == 0
    assert "it can't be read: Storage is not available" in done.stdout


def test_show_tells_what_got_better_and_the_name_to_call(queue: OperatorQueue) -> None:
    queue.states = [completed_details()]
    text = " ".join(run_command("show", str(JOB)).stdout.split())
    for part in ("version 1.0.0, score 5 of 5", "held-out loss from 2.31 to 1.62 on 34 conversations",
                 "gain 0.69 nats per token (95 %: 0.55 to 0.83)", "right tokens from 48 % to 61 %",
                 "general text +1.2 % loss, within what is allowed",
                 "proof 84 modules took 168 tensors (bf16); 9 of 10 answers differ from the base's",
                 "as served loss 1.64 (bf16), +1.2 % against training", "call it adapter-0f5f8e0a"):  # fmt: skip
        assert part in text, part


def test_deleted_model_has_no_name_to_call(queue: OperatorQueue) -> None:
    told = completed_details()
    assert told["artifact"] is not None
    told["artifact"]["deleted_at"] = "2026-11-27T12:00:00+00:00"
    queue.states = [told]
    text = run_command("show", str(JOB)).stdout
    assert "held-out loss" in text
    assert "call it" not in text


WRONG_PARTS = {"evaluation": {"held_out": "x"}, "application": {"modules": -1}, "serving_name": "x" * 10_000}


@pytest.mark.parametrize("measured", [None, 7, [1], WRONG_PARTS], ids=["none", "number", "list", "wrong parts"])
def test_row_that_can_not_be_read_hides_nothing_else(queue: OperatorQueue, measured: Any) -> None:
    queue.states = [{**completed_details(), "measured": measured}]
    done = run_command("show", str(JOB))
    assert done.exit_code == 0
    assert "held-out" not in done.stdout
    check_keys("show", json.loads(run_command("show", str(JOB), "--json").stdout))


def stored_samples(monkeypatch: pytest.MonkeyPatch, queue: OperatorQueue, content: bytes | None) -> MemoryBucket:
    queue.states = [completed_details()]
    bucket = MemoryBucket()
    if content is not None:
        bucket.objects[f"{USER}/{RUN}/evaluation.json"] = content
    give_services(monkeypatch, make_services(queue=queue, storage=bucket))
    return bucket


def samples_file() -> bytes:
    """Two prompts, the first of them with escape sequences wherever a user's text may stand."""
    hostile = {
        "prompt": [{"role": "system", "content": "Be calm."}, {"role": HOSTILE, "content": f"{HOSTILE}\nWhy?"}],
        "reference": None, "base": f"first\n\n    indented {HOSTILE}", "tuned": "word " * 2_000, "held_out": True,
    }  # fmt: skip
    plain = {"prompt": [], "reference": "So.", "base": "", "tuned": "Thus.", "held_out": False}
    return json.dumps({"version": 1, "samples": [hostile, plain]}).encode()


def test_samples_stand_side_by_side_without_terminal_codes(
    queue: OperatorQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored_samples(monkeypatch, queue, samples_file())
    done = run_command("show", str(JOB), "--samples")
    assert done.exit_code == 0
    assert is_harmless(done.stdout)
    for part in ("held-out prompt 1 of 2", f"{SHOWN} (after 1 message): {SHOWN}", "Why?", "general prompt 2 of 2",
                 "(no prompt)", "(nothing)", "Thus.", "So.", "word word", " …"):  # fmt: skip
        assert part in done.stdout, part
    assert done.stdout.count("word") < 400
    answer = json.loads(run_command("show", str(JOB), "--samples", "--json").stdout)
    check_keys("show samples", answer)
    assert [sample["held_out"] for sample in answer["samples"]] == [True, False]


@pytest.mark.parametrize("width", [60, 100, 200])
def test_samples_fit_any_terminal(width: int) -> None:
    samples = EvaluationFile.model_validate_json(samples_file()).samples
    assert max(map(len, drawn(lambda console: print_samples(samples, console), width).splitlines())) <= width


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "has no samples: its trainer compared none"),
        (b'{"version": 1}', "has no samples: its trainer compared none"),
        (b"zebra {", "evaluation.json of run bbbbbbbb-1111-4222-8333-444455556666 can't be read"),
        (json.dumps({"samples": [{"prompt": [], "base": "zebra", "tuned": 7, "held_out": True}]}).encode(), "be read"),
        (json.dumps({"samples": [{"prompt": [], "base": "", "tuned": "", "held_out": True}] * 11}).encode(), "be read"),
    ],
)
def test_samples_that_can_not_be_read_are_one_sentence(
    queue: OperatorQueue, monkeypatch: pytest.MonkeyPatch, content: bytes | None, words: str
) -> None:
    stored_samples(monkeypatch, queue, content)
    done = run_command("show", str(JOB), "--samples")
    assert done.exit_code in {1, 2}
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert "zebra" not in done.stderr


def test_only_a_bounded_part_of_the_storage_is_read(queue: OperatorQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless:
        async def read(self, bucket: str, path: str, *, max_bytes: int) -> bytes:
            raise ServiceRefusedError("Storage", f"{path} is larger than {max_bytes} bytes", status=413)

    give_services(monkeypatch, make_services(queue=queue, storage=Endless()))
    queue.states = [completed_details()]
    done = run_command("show", str(JOB), "--samples")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "is larger than 10,000,000 bytes" in done.stderr


def test_job_that_has_not_completed_has_no_samples(queue: OperatorQueue) -> None:
    done = run_command("show", str(JOB), "--samples")
    assert (done.exit_code, "has not completed, so it has no samples" in done.stderr) == (2, True)


def test_show_as_json_has_stable_keys(queue: OperatorQueue) -> None:
    check_keys("show", json.loads(run_command("show", str(JOB), "--json").stdout))


def test_show_of_a_job_that_is_gone_is_one_sentence(queue: OperatorQueue) -> None:
    queue.states = [None]
    done = run_command("show", str(JOB))
    assert (done.exit_code, done.stderr) == (2, f"lora-worker: there is no job {JOB}\n")


@pytest.mark.parametrize("width", [60, 80, 200])
def test_job_that_was_never_run_is_shown_at_any_width(width: int) -> None:
    told = details(status="queued", stage="queued", waits_for="a free worker slot", base_model=None, name=None)
    told["runs"], told["points"], told["costs"], told["artifact"] = [], [], [], None
    told["job"]["estimate"] = None
    text = drawn(lambda console: print_job(told, console, ["first line", HOSTILE]), width)
    assert "waits for a free worker slot" in text
    assert "first line" in text
    assert is_harmless(text)


def drawn(draw: Any, width: int) -> str:
    file = io.StringIO()
    draw(Console(file=file, width=width, markup=False, highlight=False))
    return file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_list_of_jobs_fits_the_terminal_with_whole_ids(width: int) -> None:
    page = {"jobs": [job_entry(status="failed", error_message="word " * 100)], "next_cursor": None}
    lines = drawn(lambda console: print_jobs(page, console), width).splitlines()  # type: ignore[arg-type]
    assert max(map(len, lines)) <= width
    assert lines[1].split()[:6] == ["0f5f8e0a", "failed", "62", "%", "$0.31", "11-26"]
    if width >= 120:
        assert len(lines) == 2
    else:
        assert " ".join(lines).count("word") == 100


# ── acting ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("command", "key"), [("cancel", "cancelled"), ("retry", "retried")])
def test_cancel_and_retry_act_on_each_job_once(queue: OperatorQueue, command: str, key: str) -> None:
    done = run_command(command, "0f5f8e", str(OTHER), str(JOB), "--json")
    assert done.exit_code == 0
    answer = json.loads(done.stdout)
    check_keys(command, answer)
    assert [(row["job_id"], row[key]) for row in answer] == [(str(JOB), True), (str(OTHER), True)]
    assert [call for call in queue.asked if isinstance(call, tuple)] == [(command, JOB), (command, OTHER)]
    queue.ended = {JOB}
    done = run_command(command, str(JOB), str(OTHER))
    assert done.exit_code == 1
    assert f"{JOB} has ended before" in done.stdout or f"{JOB} is not started again: the job is running" in done.stdout
    assert (command, OTHER) in queue.asked


@pytest.mark.parametrize(("arguments", "user"), [([], None), (["--user", str(USER)], USER), (["--user", MAIL], USER)])
def test_hold_and_resume_take_a_user_or_the_queue(
    queue: OperatorQueue, arguments: list[str], user: UUID | None
) -> None:
    done = run_command("hold", *arguments, "--reason", "an upgrade")
    assert "live runs go on" in done.stdout
    assert queue.asked == [("hold", user, "an upgrade")]
    queue.asked.clear()
    done = run_command("resume", *arguments)
    assert ("release", user) in queue.asked
    # What failures hold belongs to no single user.
    assert (("resume", None) in queue.asked) is (user is None)
    assert f"still held: all jobs ({SHOWN})" in done.stdout
    for command in ("hold", "resume"):
        check_keys(command, json.loads(run_command(command, "--json").stdout))


def test_resume_of_a_base_model_leaves_holds_of_operators(queue: OperatorQueue) -> None:
    done = run_command("resume", "org/broken")
    assert queue.asked == [("resume", "org/broken")]
    assert "3 jobs may go: org/broken at https://e" in done.stdout


def test_drain_names_each_worker(queue: OperatorQueue) -> None:
    queue.workers.append({"name": "cron-1", "held": 0, "single_pass": True})
    done = run_command("drain")
    assert "w-0123abcd takes nothing new, and ends after 2 runs" in done.stdout
    assert "cron-1 is a single pass" in done.stdout
    check_keys("drain", json.loads(run_command("drain", "w-0123abcd", "--json").stdout))
    done = run_command("drain", "w-gone")
    assert (done.exit_code, done.stdout) == (1, "no worker runs that is named w-gone\n")
