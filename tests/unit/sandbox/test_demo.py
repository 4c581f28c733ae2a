"""The demo's report and its question, computed from rows and files only."""

import subprocess
import sys
from pathlib import Path

from sandbox.demo.answers import first_question
from sandbox.demo.report import JobReport
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


def test_the_question_is_the_first_of_the_dataset_with_its_system_prompt(tmp_path: Path) -> None:
    write_sample_dataset(tmp_path / "sample.jsonl")
    system, user = first_question(tmp_path / "sample.jsonl")
    assert system == ("system", WARM_SYSTEM)
    assert user.role == "user"


def test_missing_dataset_ends_the_demo_with_one_sentence() -> None:
    command = [sys.executable, "-m", "sandbox.demo", "--dataset", "no-such-file.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == "The demo stopped: there is no file no-such-file.jsonl\n"
