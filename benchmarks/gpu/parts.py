"""The parts of `make gpu`, each with its time limit, so that one that hangs or dies costs the others nothing."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.loading import LoadMeasurement, forget_pages, read_answer, settings_of
from benchmarks.gpu.speed import Measurement

Found = tuple[str, dict[str, Any]]
SDPA = "sdpa"

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


def _llama(**changes: Any) -> SpeedPart:
    return SpeedPart(Measurement(LLAMA, **{"micro_batch": 2, "recompute": False, **changes}))


_BEFORE: dict[str, Any] = {
    "micro_batch": 1,
    "recompute": True,
    "attention": SDPA,
    "fused": False,
    "optimizer": "8bit",
    "parameters": {"dropout": 0.05},
}
"""How the trainer computed before it had met a GPU."""

SPEED: dict[str, SpeedPart] = {
    "llama-nf4": _llama(profile=True),
    "llama-nf4-planned": _llama(micro_batch=None, recompute=None, rows_per_step=3),
    "llama-nf4-one-row": _llama(micro_batch=1),
    "llama-nf4-recomputing": _llama(recompute=True),
    "llama-nf4-lean": _llama(lean=True),
    "llama-nf4-masked": _llama(attention=SDPA, micro_batch=1),
    "llama-nf4-unfused": _llama(fused=False),
    "llama-nf4-dropout": _llama(parameters={"dropout": 0.05}, micro_batch=1),
    "llama-nf4-8bit": _llama(optimizer="8bit"),
    "llama-nf4-before": _llama(**_BEFORE),
    "llama-nf4-compiled": SpeedPart(_llama(compiled=True, seconds=200).measurement, 300),
    "llama-bf16": _llama(quantize=False),
    "llama-trl": _llama(trainer="trl", micro_batch=1, recompute=True, attention=SDPA, fused=False),
    "mistral-nf4": SpeedPart(Measurement(MISTRAL, micro_batch=2, recompute=False)),
    "qwen3-30b-nf4": SpeedPart(Measurement(QWEN_30B, micro_batch=4, rows_per_step=4, profile=True)),
    "qwen3-30b-bf16": SpeedPart(
        Measurement(QWEN_30B, quantize=False, micro_batch=None, recompute=None, rows_per_step=4), 180
    ),
    "qwen3-next-nf4": SpeedPart(Measurement(QWEN_NEXT, micro_batch=4, rows_per_step=4, packed=False), 180),
}
CORRECTNESS = "correctness"
TWO_GPUS = "two-gpus"
"""The tests of several GPUs alone; they are also a part of the suite, which skips them where there is one."""
CEILINGS = "ceilings"
LOADING: dict[str, LoadMeasurement] = {"llama-load": LoadMeasurement(LLAMA)}
_LOADING_SECONDS = 300
PARTS = (CORRECTNESS, TWO_GPUS, CEILINGS, *SPEED, *LOADING)
_SUITE_SECONDS = 240


def run_parts(
    names: Sequence[str], *, tiny: bool = False, changes: dict[str, Any] | None = None, folder: Path | None = None
) -> Iterator[Found]:
    """Carry out the parts in their order; each with what it found, or how it failed. Models are written to `folder`."""
    speed = [name for name in names if name in SPEED]
    for name in names:
        begun = time.perf_counter()
        if name == CORRECTNESS:
            yield name, {**_run_suite("tests/gpu"), "part_seconds": round(time.perf_counter() - begun, 1)}
        elif name == TWO_GPUS:
            yield name, _run_suite("tests/gpu/test_two_gpus.py", "-s")
        elif name == CEILINGS:
            yield name, _run_ceilings()
        elif name in LOADING:
            yield name, _run_loading(LOADING[name], folder, tiny=tiny)
    yield from _run_speed({name: _settings(name, tiny, changes or {}) for name in speed})


def _settings(name: str, tiny: bool, changes: dict[str, Any]) -> dict[str, Any]:
    asked = dataclasses.replace(SPEED[name].measurement, **{**(_TINY if tiny else {}), **changes})
    return dataclasses.asdict(asked)


_TINY: dict[str, Any] = {
    "tiny": True,
    "row_tokens": 256,
    "example_tokens": 64,
    "warm_up": 1,
    "steps": 2,
}


def _run_ceilings() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "benchmarks.gpu.ceilings", str(answer)]
        try:
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            return {"failed": type(error).__name__}
        return dict(json.loads(answer.read_text()))


def _run_speed(waiting: dict[str, dict[str, Any]]) -> Iterator[Found]:
    """All measurements in one process, for importing takes longer than most; a new one after each that ended it."""
    while waiting:
        with tempfile.TemporaryDirectory() as folder:
            answers, log = Path(folder) / "answers.jsonl", Path(folder) / "log"
            command = [sys.executable, "-m", "benchmarks.gpu.speed", json.dumps(list(waiting.items())), str(answers)]
            with log.open("w") as output:
                process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
            for name, found in _answers(process, answers, list(waiting)):
                found = {**found, "settings": waiting.pop(name)}
                if "failed" in found:
                    found.setdefault("output", log.read_text(errors="replace")[-6000:])
                yield name, found


def _answers(process: subprocess.Popen[Any], answers: Path, names: list[str]) -> Iterator[Found]:
    """One after the other as they come; the one that is late or lost ends the process."""
    begun, seen = time.monotonic(), 0
    while names:
        ended = process.poll() is not None
        lines = answers.read_text().splitlines() if answers.is_file() else []
        if len(lines) > seen:
            yield names.pop(0), json.loads(lines[seen])
            begun, seen = time.monotonic(), seen + 1
            continue
        limit = SPEED[names[0]].limit_seconds
        if ended or time.monotonic() - begun > limit:
            process.kill()
            process.wait()
            yield names[0], {"failed": f"exit {process.returncode}" if ended else f"took longer than {limit:.0f} s"}
            return
        time.sleep(0.1)
    process.wait()


def _run_loading(asked: LoadMeasurement, folder: Path | None, *, tiny: bool) -> dict[str, Any]:
    """Each load in a process of its own, and with nothing of the files in main memory."""
    if tiny:
        asked = dataclasses.replace(asked, tiny=True, row_tokens=256, example_tokens=64)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        for action, name in (("make", None), ("load", "from_base"), ("load", "from_copy")):
            forget_pages(Path(place))
            command = [sys.executable, "-m", "benchmarks.gpu.loading", action, settings_of(asked), place]
            try:
                subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=_LOADING_SECONDS)
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                said = (error.stderr or b"").decode(errors="replace")
                return {**found, "failed": f"{action}: {type(error).__name__}", "output": said[-6000:]}
            if name is not None:
                found[name] = read_answer(Path(place))
    return found


def _run_suite(*tests: str) -> dict[str, Any]:
    # The tests' own conftest.py starts databases and needs packages that a GPU machine has no use for.
    command = [
        *(sys.executable, "-m", "pytest", *tests, "--confcutdir", "tests/gpu"),
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
