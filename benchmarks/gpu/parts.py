"""The parts of `make gpu`, each with its time limit, so that one that hangs costs the others nothing."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.speed import Measurement

ROOT = Path(__file__).parents[2]
LLAMA = "meta-llama/Meta-Llama-3-8B-Instruct"
MISTRAL = "mistralai/Mistral-7B-Instruct-v0.3"
QWEN_30B = "Qwen/Qwen3-30B-A3B-Instruct-2507"
QWEN_NEXT = "Qwen/Qwen3-Next-80B-A3B-Instruct"


@dataclass(frozen=True)
class SpeedPart:
    """A measurement under a name."""

    measurement: Measurement
    limit_seconds: float = 120


SPEED: dict[str, SpeedPart] = {
    "llama-nf4": SpeedPart(Measurement(LLAMA, profile=True)),
    "llama-nf4-before": SpeedPart(
        Measurement(LLAMA, attention="sdpa", optimizer="8bit", parameters={"dropout": 0.05}, profile=True)
    ),
    "llama-nf4-kept": SpeedPart(Measurement(LLAMA, recompute=False, parameters={"dropout": 0})),
    "llama-nf4-kept-2-rows": SpeedPart(
        Measurement(LLAMA, recompute=False, micro_batch=2, parameters={"dropout": 0}, profile=True)
    ),
    "llama-bf16": SpeedPart(Measurement(LLAMA, quantize=False, profile=True)),
    "llama-bf16-kept-2-rows": SpeedPart(
        Measurement(LLAMA, quantize=False, recompute=False, micro_batch=2, parameters={"dropout": 0}, profile=True)
    ),
    "llama-trl": SpeedPart(Measurement(LLAMA, trainer="trl")),
    "mistral-nf4": SpeedPart(Measurement(MISTRAL)),
    "qwen3-30b-nf4": SpeedPart(Measurement(QWEN_30B, profile=True)),
    "qwen3-next-nf4": SpeedPart(Measurement(QWEN_NEXT, packed=False), limit_seconds=180),
}
CORRECTNESS = "correctness"
CEILINGS = "ceilings"
PARTS = (CORRECTNESS, CEILINGS, *SPEED)
_SUITE_SECONDS = 240


def run_part(name: str, *, tiny: bool = False, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Carry out one part in a process of its own; what it found, or how it failed."""
    begun = time.perf_counter()
    if name == CORRECTNESS:
        found = _run_suite()
    elif name == CEILINGS:
        found = _run_module("benchmarks.gpu.ceilings", [], 60)
    else:
        part = SPEED[name]
        asked = dataclasses.replace(part.measurement, **{**(_TINY if tiny else {}), **(changes or {})})
        found = _run_module("benchmarks.gpu.speed", [json.dumps(dataclasses.asdict(asked))], part.limit_seconds)
        found["settings"] = dataclasses.asdict(asked)
    return {**found, "part_seconds": round(time.perf_counter() - begun, 1)}


_TINY: dict[str, Any] = {
    "tiny": True,
    "row_tokens": 256,
    "example_tokens": 64,
    "warm_up": 1,
    "steps": 2,
}


def _run_module(module: str, arguments: list[str], limit_seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", module, *arguments, str(answer)]
        try:
            ended = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=limit_seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"took longer than {limit_seconds:.0f} seconds"}
        if ended.returncode == 0 and answer.is_file():
            return dict(json.loads(answer.read_text()))
        return {"failed": f"exit {ended.returncode}", "output": (ended.stdout + ended.stderr)[-6000:]}


def _run_suite() -> dict[str, Any]:
    # The tests' own conftest.py starts databases and needs packages that a GPU machine has no use for.
    command = [
        *(sys.executable, "-m", "pytest", "tests/gpu", "--confcutdir", "tests/gpu"),
        *("-q", "-W", "default", "-p", "no:cacheprovider", "--durations", "12", "-n", "5", "--dist", "worksteal"),
    ]
    try:
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_SUITE_SECONDS, check=False)
    except subprocess.TimeoutExpired as late:
        said = late.stdout.decode(errors="replace") if isinstance(late.stdout, bytes) else str(late.stdout or "")
        return {"failed": f"took longer than {_SUITE_SECONDS} seconds", "output": said[-12000:]}
    found: dict[str, Any] = {"output": ended.stdout[-16000:]}
    if ended.returncode:
        found["failed"] = f"exit {ended.returncode}"
    return found
