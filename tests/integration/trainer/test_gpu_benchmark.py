"""`make gpu` in its form for machines without a GPU: the same code, at a size that shows no speed."""

import json

import pytest

from benchmarks.gpu import loading
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.parts import LLAMA
from benchmarks.gpu.report import format_table

pytestmark = pytest.mark.gpu_stack


def test_benchmark_parts_can_run_separately_into_one_report(tmp_path):
    report = tmp_path / "gpu-report.json"
    for part in ("qwen3-30b-nf4", "llama-trl"):
        assert main(["--tiny", "--steps", "1", "--report", str(report), part]) == 0
    found = json.loads(report.read_text())
    assert set(found["parts"]) == {"qwen3-30b-nf4", "llama-trl"}
    for figures in found["parts"].values():
        assert figures["tokens_a_second"] > 0
        assert figures["steps_measured"] == 1
        assert all(loss > 0 for loss in figures["losses"])
    table = format_table(found)
    assert "torch" in table.splitlines()[0]
    assert table.count("\n| ") == 3


def test_all_levers_together_train_as_the_trainer_without_them(tmp_path):
    """Fused layers, several rows a pass and kept activations, in one training of the CPU, against none of them."""
    report = tmp_path / "gpu-report.json"
    assert main(["--tiny", "--steps", "2", "--report", str(report), "llama-nf4", "llama-nf4-before"]) == 0
    levers, before = json.loads(report.read_text())["parts"].values()
    assert levers["fused_layers"] > before["fused_layers"] == 0
    assert (levers["micro_batch"], before["micro_batch"]) == (2, 1)
    assert (levers["recompute"], before["recompute"]) == (False, True)
    assert levers["losses"] == pytest.approx(before["losses"], abs=1e-3)


def test_loading_part_measures_the_base_and_then_its_copy(tmp_path):
    asked = loading.LoadMeasurement(LLAMA, tiny=True, row_tokens=256, example_tokens=64)
    loading.make(asked, tmp_path)
    found = {}
    for source in ("from_base", "from_copy"):
        loading.forget_pages(tmp_path)
        loading.load(asked, tmp_path)
        found[source] = loading.read_answer(tmp_path)
    assert [answer["from_copy"] for answer in found.values()] == [False, True]
    assert 0 < found["from_copy"]["copy_bytes"] < found["from_copy"]["base_bytes"]
    assert all(answer["first_step_seconds"] > 0 for answer in found.values())
    table = format_table(
        {
            "card": {"gpu": None, "driver": None, "cuda": None, "packages": {}, "date": ""},
            "parts": {"llama-load": found},
        }
    )
    assert "| llama-load | its quantised copy | 0.0 GB |" in table


def test_benchmark_refuses_a_missing_gpu_and_an_unknown_part(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.gpu.__main__.describe_card", lambda: {"gpu": None})
    assert main(["--report", str(tmp_path / "r.json")]) == 1
    assert "no NVIDIA GPU" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["llama-nf5"])
    assert "llama-nf5" in capsys.readouterr().err
