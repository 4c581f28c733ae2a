"""Unknown variables, unreadable files and contradictory settings are refused at the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lora_worker.commands.cli import app
from lora_worker.errors import SettingsError
from lora_worker.launchers.registry import load_settings
from lora_worker.launchers.runpod.settings import RunPodSettings
from tests.unit.worker.variables import SETTINGS

pytestmark = pytest.mark.usefixtures("no_logging")


def refused() -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings()
    return str(caught.value)


@pytest.mark.parametrize("place", ["environment", ".env"])
@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("LORA_WORKER_LEASE_SECOND", "LORA_WORKER_LEASE_SECONDS"),
        ("LORA_WORKER_MAX_COST", "LORA_WORKER_MAX_COST_PER_JOB"),
        ("lora_worker_slot", "LORA_WORKER_SLOTS"),
        ("LORA_WORK_SLOTS", "LORA_WORKER_SLOTS"),
        ("LORA_WORKER_PRICES_OF_ZEBRAS", "`lora-worker settings` lists them all"),
    ],
)
def test_a_misspelt_variable_is_refused_with_the_nearest_name(
    environment: pytest.MonkeyPatch, place: str, name: str, near: str
) -> None:
    if place == ".env":
        Path(".env").write_text(f"{name}=hidden\n")
    else:
        environment.setenv(name, "hidden")
    text = refused()
    assert text.startswith(f"{name} is no setting of the worker: {near}")
    assert "hidden" not in text


def test_many_misspelt_variables_give_a_short_message(environment: pytest.MonkeyPatch) -> None:
    for number in range(1000):
        environment.setenv(f"LORA_WORKER_{'X' * 2000}{number}", "1")
    text = refused()
    assert len(text) < 1000
    assert text.endswith("And 995 more.")


@pytest.mark.parametrize("name", ["LORA_WORKER_DATABASE_URL", "LORA_TRAINER_VOLUME", "LORA_CRASH", "lora_worker_slots"])
def test_variables_of_other_programs_are_accepted(environment: pytest.MonkeyPatch, name: str) -> None:
    environment.setenv(name, "1")
    assert load_settings()


@pytest.mark.parametrize(
    ("missing", "misnamed"),
    [
        ("SUPABASE_URL", "NEXT_PUBLIC_SUPABASE_URL"),
        ("SUPABASE_SERVICE_ROLE_KEY", "SUPABASE_SERVICE_KEY"),
        ("SUPABASE_PUBLISHABLE_KEY", "NEXT_PUBLIC_SUPABASE_ANON_KEY"),
        ("GPU_CLUSTER_API_URL", "GPU_CLUSTER_ENDPOINT"),
        ("GPU_CLUSTER_API_KEY", "RUNPOD_KEY"),
    ],
)
def test_missing_variable_is_reported_with_the_similar_one_set(
    environment: pytest.MonkeyPatch, missing: str, misnamed: str
) -> None:
    environment.delenv(missing)
    environment.setenv(misnamed, "hidden")
    text = refused()
    assert missing in text
    assert f"({misnamed} is set, which nothing reads)" in text
    assert "hidden" not in text


_LINES = "\n".join(f"{name}={value}" for name, value in SETTINGS.items())
_WAYS_TO_WRITE: dict[str, bytes] = {
    "plain": _LINES.encode(),
    "with a BOM": b"\xef\xbb\xbf" + _LINES.encode(),
    "with CRLF": _LINES.replace("\n", "\r\n").encode(),
    "with a BOM and CRLF": b"\xef\xbb\xbf" + _LINES.replace("\n", "\r\n").encode(),
    "with quotes": "\n".join(f'{name}="{value}"' for name, value in SETTINGS.items()).encode(),
    "with single quotes": "\n".join(f"{name} = '{value}'" for name, value in SETTINGS.items()).encode(),
    "with export, comments and blank lines": (
        "# Umlauts äöü\n\n" + "\n\n".join(f"export {name}={value}  # a key" for name, value in SETTINGS.items())
    ).encode(),
}


@pytest.mark.parametrize("way", _WAYS_TO_WRITE)
def test_settings_file_is_read_however_an_editor_saves_it(environment: pytest.MonkeyPatch, way: str) -> None:
    for name in SETTINGS:
        environment.delenv(name)
    Path(".env").write_bytes(_WAYS_TO_WRITE[way])
    settings = load_settings()
    assert settings.supabase_url == "https://p.supabase.co"
    assert isinstance(settings, RunPodSettings)
    assert settings.gpu_cluster_api_key.get_secret_value() == "rpa_abcdef"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (_LINES.encode("utf-16"), ".env is in UTF-16: save it as UTF-8."),
        (_LINES.encode("utf-16-le"), ".env holds zero characters: save it as UTF-8."),
        (b"A=1\n# caf\xe9\n", ".env, line 2: is not UTF-8; save the file as UTF-8."),
        (b"A=1\n\n\nsb_secret_hidden\n", ".env, line 4: is not NAME=value; mend the line, or begin it with #."),
        (b'A=1\nB="sb_secret_hidden\n', ".env, line 2: is not NAME=value; mend the line, or begin it with #."),
        (b"#" * (1 << 21), ".env is larger than a megabyte: it can't be a file of settings."),
    ],
    ids=["UTF-16", "UTF-16 without a mark", "Latin-1", "no NAME=value", "an open quote", "too large"],
)
def test_malformed_settings_file_is_named_with_its_line(
    environment: pytest.MonkeyPatch, content: bytes, words: str
) -> None:
    Path(".env").write_bytes(content)
    assert refused() == words


def test_settings_file_without_read_permission_is_named(environment: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    Path(".env").write_bytes(b"A=1")
    environment.setattr(Path, "open", refuse)
    assert refused() == ".env can't be read (Permission denied): mend its rights, or move it away."


_CONTRADICTIONS: dict[str, tuple[dict[str, str], str]] = {
    "the default base is not offered": ({"DEFAULT_BASE_MODEL": "org/other"}, "LORA_WORKER_BASE_MODELS"),
    "no base that jobs may name is the default": ({"BASE_MODELS": "org/other"}, "LORA_WORKER_DEFAULT_BASE_MODEL"),
    "polls are rarer than leases": ({"POLL_SECONDS": "61"}, "LORA_WORKER_LEASE_SECONDS"),
    "lost before the next look": ({"LOST_SECONDS": "9"}, "LORA_WORKER_POLL_SECONDS"),
    "late before the next look": ({"CANCEL_SECONDS": "9"}, "LORA_WORKER_POLL_SECONDS"),
    "no grant comes in time": ({"GRANT_WAIT_SECONDS": "9"}, "LORA_WORKER_POLL_SECONDS"),
    "the first retry is the longest": ({"RETRY_BASE_SECONDS": "1801"}, "LORA_WORKER_RETRY_MAX_SECONDS"),
}


@pytest.mark.parametrize("case", _CONTRADICTIONS)
def test_settings_that_contradict_each_other_are_refused(environment: pytest.MonkeyPatch, case: str) -> None:
    changes, other = _CONTRADICTIONS[case]
    for name, value in changes.items():
        environment.setenv(f"LORA_WORKER_{name}", value)
    text = refused()
    assert other in text
    assert f"LORA_WORKER_{next(iter(changes))}" in text
    assert text.count(". ") == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [("POLL_SECONDS", "inf"), ("POLL_SECONDS", "nan"), ("RETRY_MAX_SECONDS", "1e300"), ("MAX_COST_PER_JOB", "inf"),
     ("MAX_RUN_SECONDS", "60")],
)  # fmt: skip
def test_a_number_beyond_all_bounds_is_refused(environment: pytest.MonkeyPatch, name: str, value: str) -> None:
    environment.setenv(f"LORA_WORKER_{name}", value)
    assert refused().startswith(f"LORA_WORKER_{name}: ")


@pytest.mark.parametrize(
    ("name", "value"), [("ENDPOINT_GPU_TYPE", "Abacus"), ("MAX_COST_PER_JOB", "0.01")], ids=["GPU", "cost"]
)
def test_settings_that_allow_no_launch_are_refused(environment: pytest.MonkeyPatch, name: str, value: str) -> None:
    environment.setenv(f"LORA_WORKER_{name}", value)
    done = CliRunner().invoke(app, ["status"], catch_exceptions=False)
    assert done.exit_code == 2
    assert done.output.startswith(f"lora-worker: LORA_WORKER_{name} ")
    assert len(done.output.splitlines()) == 1
