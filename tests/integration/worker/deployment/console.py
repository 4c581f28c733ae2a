"""Looks at an account at a local RunPod and changes it, as somebody does in RunPod's console; and runs `deploy …`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
from click.testing import Result

from sandbox.runpod import LocalRunPod
from tests.commands import run_command


def call(runpod: LocalRunPod, method: str, path: str, body: Any = None) -> Any:
    """Do something in the account, as somebody does in RunPod's console."""
    answer = httpx.request(
        method,
        f"{runpod.rest_url}/{path}",
        headers={"Authorization": f"Bearer {runpod.api_key}"},
        json=body,
        trust_env=False,
    )
    answer.raise_for_status()
    return answer.json() if answer.content else None


def listed(runpod: LocalRunPod, path: str, key: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = call(runpod, "GET", path)[key]
    return found


def endpoints(runpod: LocalRunPod) -> list[dict[str, Any]]:
    """All but the one that is there from the start, as somebody else's."""
    return [one for one in listed(runpod, "serverless", "endpoints") if one["name"] != "local"]


def volumes(runpod: LocalRunPod) -> list[dict[str, Any]]:
    return listed(runpod, "network-volumes", "networkVolumes")


def writes(runpod: LocalRunPod, since: int = 0) -> list[str]:
    return [write.operation for write in runpod.ledger.writes[since:]]


def deploy(*arguments: str) -> Result:
    return run_command("deploy", *arguments)


def written(**changes: str) -> None:
    """Write the file by `init`, and replace what a test has different."""
    done = deploy("init", "--image", "ghcr.io/me/trainer:1", "--data-center", "EU-RO-1", "--volume-gb", "50", "--force")
    assert done.exit_code == 0, done.output
    path = Path("deploy.toml")
    text = path.read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
