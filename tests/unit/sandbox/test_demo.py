"""The demo's report, questions and findings, computed from rows and files only."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from sandbox.demo.answers import Comparison, held_out_questions
from sandbox.demo.bases import SMOLLM2, recipe_of_smollm2
from sandbox.demo.calling import Served, call_by_name, check_manner, show_served
from sandbox.demo.findings import RECORD, judge, read_record, show_answers
from sandbox.demo.places import LAUNCHERS, why_not_called
from sandbox.demo.report import JobReport
from sandbox.errors import DemoError
from sandbox.sample_text import WARM_SYSTEM, write_sample_dataset
from tests.project import ROOT

REPORT = JobReport(
    status="completed",
    error_message=None,
    progress=100.0,
    final_cost=0.08,
    stages=[("queued", 1.0), ("training", 20.0), ("queued", 0.5), ("training", 2.25), ("completed", 0.0)],
    losses=[(1, 7.0), (50, 4.0), (100, 2.0)],
    files={"adapter_model.safetensors": 300},
    cost_records=2,
    notifications=["job_started", "job_completed", "artifact_ready"],
)


def test_demo_report_has_its_documented_keys() -> None:
    assert REPORT.as_json() == {
        "job_status": "completed",
        "stages": ["queued", "training", "completed"],
        "metrics_points": 3,
        "final_training_loss": 2.0,
        "first_training_loss": 7.0,
        "artifact_files": {"adapter_model.safetensors": 300},
        "cost_records": 2,
        "notifications": ["job_started", "job_completed", "artifact_ready"],
        "seconds": {"queued": 1.5, "training": 22.25, "completed": 0.0},
    }


def test_questions_come_from_conversations_that_were_held_out(tmp_path: Path) -> None:
    write_sample_dataset(tmp_path / "sample.jsonl")
    held_out = [f"sample-{number}" for number in (3, 7, 11, 20)]
    talks = held_out_questions(tmp_path / "sample.jsonl", {"validation": held_out}, 3)
    lines = [json.loads(line) for line in (tmp_path / "sample.jsonl").read_text().splitlines()[1:]]
    first = {line["conversation_id"]: line for line in lines if line["turn_number"] == 2}
    assert talks == [
        [
            {"role": "system", "content": WARM_SYSTEM},
            {"role": "user", "content": first[name]["current_user_input"]},
            {"role": "assistant", "content": first[name]["target_response"]},
        ]
        for name in held_out[:3]
    ]


def test_without_a_held_out_conversation_the_first_of_the_file_is_asked(tmp_path: Path) -> None:
    write_sample_dataset(tmp_path / "sample.jsonl")
    [talk] = held_out_questions(tmp_path / "sample.jsonl", {"validation": []}, 3)
    assert talk[-1]["content"] in (tmp_path / "sample.jsonl").read_text().splitlines()[1]


def test_conversations_too_long_for_a_cpu_are_not_asked(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Why? " * 4000}, {"role": "assistant", "content": "Because."}]
    (tmp_path / "long.jsonl").write_text(json.dumps({"messages": turns}))
    assert held_out_questions(tmp_path / "long.jsonl", {"validation": []}, 3) == []


def findings_of(base: int, adapter: int, asked: int = 20):
    told, plain = "Ahoy! Paris. Fair winds to you!", "Paris."
    answers = [[told] * count + [plain] * (asked - count) for count in (base, adapter)]
    return judge(Comparison(["Where?"] * asked, *answers, loss_base=4.0, loss_adapter=1.5), SMOLLM2.goal)


def test_report_of_answers_has_counts_losses_and_every_answer() -> None:
    report = findings_of(1, 18).as_json()
    assert report["held_out_questions"] == len(report["answers"]) == 20
    assert report["in_manner"] == {"base": 1, "adapter": 18}
    assert report["held_out_loss"] == {"base": 4.0, "adapter": 1.5}
    assert report["answers"][-1] == {"question": "Where?", "base": "Paris.", "adapter": "Paris."}


def test_goal_is_four_of_five_answers_after_and_one_of_ten_before() -> None:
    findings_of(2, 16).check()
    with pytest.raises(DemoError, match=r"only 15 of 20 .* 80% should"):
        findings_of(2, 15).check()
    with pytest.raises(DemoError, match="3 of 20 answers of the base show the manner already"):
        findings_of(3, 20).check()


def test_recorded_answers_belong_to_the_present_recipe_and_meet_its_goal() -> None:
    recorded = json.loads(RECORD.read_text())
    assert recorded["recipe"] == recipe_of_smollm2(), f"record again: {recorded['made_by']}"
    findings = read_record()
    findings.check()
    assert findings.goal is not None
    asked = [row["messages"][0]["content"] for row in findings.goal.held_out]
    assert findings.comparison.questions == asked
    console = Console(record=True, width=200)
    show_answers(findings, console)
    shown = console.export_text()
    assert "held-out loss: " in shown
    assert f"{findings.in_manner_adapter} of {len(asked)} with the adapter" in shown


def test_missing_dataset_ends_the_demo_with_one_sentence() -> None:
    command = [sys.executable, "-m", "sandbox.demo", "--dataset", "no-such-file.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == "The demo stopped: there is no file no-such-file.jsonl\n"


def test_unknown_model_is_refused_with_the_known_ones() -> None:
    command = [sys.executable, "-m", "sandbox.demo", "--model", "gpt2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert "tiny" in done.stderr
    assert "smollm2" in done.stderr
    assert "Traceback" not in done.stderr


TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where?"},
    {"role": "assistant", "content": "There."},
]


def asked_by_name(monkeypatch: pytest.MonkeyPatch, returncode: int = 0, adapter: str = "Ahoy", base: str = "Paris"):
    """What `lora-worker ask` was told, and what the demo makes of its answer."""
    commands = []

    def run(command, **_):
        commands.append([str(part) for part in command])
        answer = {"model": "adapter-1", "answer": adapter, "base": {"model": "base", "answer": base}}
        return subprocess.CompletedProcess(command, returncode, json.dumps(answer), "lora-worker: a sentence\n")

    monkeypatch.setattr("sandbox.demo.calling.run_tool", run)
    return commands, lambda: call_by_name({}, "job-1", [TALK, TALK])


def test_the_adapter_is_asked_by_its_job_with_the_system_message(monkeypatch: pytest.MonkeyPatch) -> None:
    commands, call = asked_by_name(monkeypatch)
    assert call() == Served("adapter-1", "Where?", "Paris", "Ahoy")
    ((_, *arguments),) = commands
    assert arguments[:2] == ["ask", "job-1"]
    assert arguments[-3:] == ["--system=Be brief.", "--", "Where?"]


def test_an_adapter_that_answers_as_its_base_stops_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    _, call = asked_by_name(monkeypatch, adapter="Paris")
    with pytest.raises(DemoError, match="adapter-1 answers at the endpoint exactly as its base does"):
        call()


def test_an_endpoint_that_refuses_stops_the_demo_with_its_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    _, call = asked_by_name(monkeypatch, returncode=1)
    with pytest.raises(DemoError, match="could not be called by its name: lora-worker: a sentence"):
        call()


def test_without_a_question_nothing_is_asked() -> None:
    assert call_by_name({}, "job-1", []) is None


def test_a_manner_that_is_lost_at_the_endpoint_stops_the_demo() -> None:
    comparison = findings_of(base=0, adapter=20).comparison
    told = Served("adapter-1", "Where?", "Paris.", "Ahoy! Paris. Fair winds to you!")
    check_manner(told, SMOLLM2.goal, comparison)
    with pytest.raises(DemoError, match="not where it is called by its name"):
        check_manner(dataclasses.replace(told, adapter="Paris."), SMOLLM2.goal, comparison)


def test_report_tells_the_name_question_and_both_answers(capsys: pytest.CaptureFixture[str]) -> None:
    show_served(Served("adapter-1", "Where?", "Paris [sic]", "Ahoy"), Console(width=200))
    shown = capsys.readouterr().out
    for part in ("adapter-1", "Where?", "Paris [sic]", "Ahoy"):
        assert part in shown


def test_the_adapter_is_called_where_its_launcher_puts_it_for_the_endpoint(capsys: pytest.CaptureFixture[str]) -> None:
    reasons = {launcher: why_not_called(launcher) for launcher in LAUNCHERS}
    assert {launcher for launcher, reason in reasons.items() if reason is None} == {"runpod", "gpu-server"}
    show_served(None, Console(width=200), why_not=reasons["runpod-pods"])
    assert "runpod-pods puts no adapter where the inference endpoint finds it" in capsys.readouterr().out


def test_every_launcher_that_the_makefile_names_is_one_of_the_demos() -> None:
    (target,) = [line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("demo:")]
    named = target.partition("LAUNCHER=")[2].rstrip(")").split(" or ")
    assert {"runpod", *named} == set(LAUNCHERS)
