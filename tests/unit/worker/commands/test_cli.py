"""The command line imports little, and the worker never imports torch."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.commands import all_commands, commands_with_keys, run_command


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has imported after `code`."""
    ask = f"{code}\nimport sys, json; print(json.dumps(sorted({{n.split('.')[0] for n in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_help_imports_nothing_heavy() -> None:
    ask_for_help = "import sys; sys.argv = ['lora-worker', '--help']\nfrom lora_worker.commands.cli import main\n"
    code = ask_for_help + "try: main()\nexcept SystemExit: pass"
    assert not modules_after(code) & {"httpx", "pydantic", "supabase", "postgrest", "storage3", "structlog", "torch"}


def test_the_daemon_imports_neither_torch_nor_a_gpu_clouds_sdk() -> None:
    assert not modules_after("import lora_worker.duties.daemon, lora_worker.doctor.examine") & {
        "torch",
        "transformers",
        "runpod",
        "datasets",
    }


@pytest.mark.parametrize("command", ["run", "status", "doctor", "resume", "migrate", "settings"])
def test_every_command_explains_itself(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lora_worker.commands.cli", command, "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_settings_lists_every_variable_without_a_value() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lora_worker.commands.cli", "settings", "--json"], capture_output=True, text=True
    )
    names = {row["variable"] for row in json.loads(done.stdout)}
    assert "SUPABASE_URL" in names
    assert "LORA_WORKER_POLL_SECONDS" in names


def test_every_command_takes_json_and_a_test_keeps_its_keys() -> None:
    """`run` works until it is stopped, and its log is JSON; `setup` asks questions."""
    commands = all_commands()
    assert sorted(name for name, takes_json in commands.items() if not takes_json) == ["run", "setup"]
    wanted = {name.replace(" ", "_") for name, takes_json in commands.items() if takes_json}
    assert wanted - commands_with_keys() == set(), "call check_keys in a test of the command"
    # `watch` of a whole queue, a waiting `enqueue` and `show` of a completed job have keys of their own.
    assert commands_with_keys() - wanted == {"watch_queue", "enqueue_wait", "show_samples"}


def test_version_is_the_installed_one() -> None:
    done = run_command("--version")
    assert (done.exit_code, done.stdout) == (0, f"lora-worker {version('lora-worker')}\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a file that is always full")
@pytest.mark.parametrize("arguments", [["settings"], ["settings", "--json"]])
def test_a_full_disk_under_the_output_is_one_sentence(arguments: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-m", "lora_worker.commands.cli", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    expected = "lora-worker: the output can't be written (No space left on device)\n"
    assert (done.returncode, done.stderr) == (1, expected)
