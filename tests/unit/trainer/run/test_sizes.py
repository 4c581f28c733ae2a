"""Nothing that the trainer writes exceeds its reader's limit; each limit is tried at its edge."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from lora_contract.curve import Curve, manifest_points, thin_points
from lora_contract.error_codes import FAULTS, Fault
from lora_contract.protocol import (
    MAX_FILES,
    MAX_HEARTBEAT_PROGRESS_BYTES,
    MAX_MANIFEST_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_REPORTED_RESULT_BYTES,
    MAX_UPLOAD_REQUEST_BYTES,
    ArtifactFile,
    Manifest,
    Point,
    Progress,
    Result,
    Stage,
    Summary,
)
from lora_trainer.errors import ArtifactTooLargeError
from lora_trainer.run.sizes import check_files, encode_manifest, fit_heartbeat, fit_message, fit_report


def long_point(step, validation=None):
    return Point(
        step=step, epoch=1.2345, training_loss=1.23456789012345, validation_loss=validation,
        learning_rate=0.000123456789, gradient_norm=1.23456789012345, throughput=12345.67, gpu_utilization=97.0,
        gpu_memory_bytes=42 << 30, timestamp=1795672983.123,
    )  # fmt: skip


def file(number, letters=300):
    name = f"{number:03}{'n' * letters}"
    return ArtifactFile(name=name[:300], path=name[:300], bytes=10**12, sha256="a" * 64)


LONGEST = Summary(
    base_model="b" * 400, base_revision="r" * 400, dataset_sha256="d" * 400, gpu_type="g" * 400,
    notes=["€" * 1000] * 50, total_steps=10**9, trainable_parameters=2**53,
)  # fmt: skip


def manifest(points, files=200):
    return Manifest(job_id="j", run_id="r", files=[file(n) for n in range(files)], summary=LONGEST, points=points)


@pytest.mark.parametrize("steps", [1, 99, 2_000, 41_900, 100_000])
@pytest.mark.parametrize("chart_points", [10, 100, 1000])
def test_manifest_of_the_longest_run_is_readable_by_the_worker(steps, chart_points):
    curve = [long_point(step, 1.5 if step % max(steps // 10, 1) == 0 else None) for step in range(1, steps + 1)]
    kept = manifest_points(curve, total_steps=steps, chart_points=chart_points)
    written, content = encode_manifest(manifest(kept))
    assert len(content) <= MAX_MANIFEST_BYTES
    assert Manifest.model_validate_json(content) == written
    assert written.points == kept
    assert (kept[0].step, kept[-1].step) == (1, steps)
    # The thinned manifest gives the same chart as the whole curve.
    assert thin_points(kept, total_steps=steps, limit=chart_points) == thin_points(
        curve, total_steps=steps, limit=chart_points
    )


def test_manifest_is_thinned_only_above_its_size_limit(monkeypatch):
    whole = manifest([long_point(step) for step in range(1, 50)])
    size = len(whole.model_dump_json(exclude_none=True).encode())
    monkeypatch.setattr("lora_trainer.run.sizes.MAX_MANIFEST_BYTES", size)
    assert encode_manifest(whole)[0] == whole
    monkeypatch.setattr("lora_trainer.run.sizes.MAX_MANIFEST_BYTES", size - 1)
    thinned, content = encode_manifest(whole)
    assert len(content) < size
    assert (thinned.points[0].step, thinned.points[-1].step) == (1, 49)


def test_manifest_too_large_without_its_curve_is_refused(monkeypatch):
    monkeypatch.setattr("lora_trainer.run.sizes.MAX_MANIFEST_BYTES", 1000)
    with pytest.raises(ArtifactTooLargeError, match=r"takes \d+ bytes; the worker reads 1000") as refused:
        encode_manifest(manifest([long_point(1), long_point(2), long_point(3)]))
    assert FAULTS[refused.value.code] is Fault.PERMANENT


@pytest.mark.parametrize("points", [0, 1, 2, 1000, 5000])
def test_progress_and_result_fit_runpods_limits(points):
    curve = [long_point(step) for step in range(1, points + 1)]
    progress = Progress(run_id="r", stage=Stage.TRAINING, progress=50, points=curve, message="€" * 2000)
    result = Result(
        run_id="r", status="completed", manifest=manifest([]), summary=LONGEST, points=curve,
    )  # fmt: skip
    assert len(json.dumps(fit_message(progress).model_dump(mode="json", exclude_none=True))) <= MAX_MESSAGE_BYTES
    fitted = fit_message(result)
    assert len(json.dumps(fitted.as_output())) <= MAX_MESSAGE_BYTES
    if points:
        assert (fitted.points[0].step, fitted.points[-1].step) == (1, points)


def test_number_of_published_files_is_the_databases_limit():
    check_files([file(number, 1) for number in range(MAX_FILES)])
    with pytest.raises(ArtifactTooLargeError, match="has 201 files; 200 can be published"):
        check_files([file(number, 1) for number in range(MAX_FILES + 1)])


def test_file_names_longer_than_the_database_allows_are_refused():
    def named(letter):
        paths = (f"{number:03}{'p' * 170}" for number in range(MAX_FILES))
        return [ArtifactFile(name=letter * 170, path=path, bytes=1, sha256="a" * 64) for path in paths]

    check_files(named("n"))
    with pytest.raises(ArtifactTooLargeError, match=f"the database takes {MAX_UPLOAD_REQUEST_BYTES}"):
        check_files(named("ü"))


def test_growing_curve_equals_one_sorted_and_thinned_afterwards():
    for total, limit in ((7, 10), (430, 100), (1000, 12), (5000, 100)):
        curve, noted = Curve(limit=limit), {}
        for step in range(1, total + 1):
            for point in [long_point(step)] + ([long_point(step, 1.5)] if step % max(total // 5, 1) == 0 else []):
                curve.note(point)
                noted[step] = point
            if step % 37 == 1 or step == total:
                expected = [noted[each] for each in sorted(noted)]
                assert curve.points == expected
                assert curve.chart(total) == thin_points(expected, total_steps=total, limit=limit)


def test_adding_a_step_does_not_read_the_whole_curve(monkeypatch):
    looked = []
    from lora_contract import curve as module

    real = module.keep_point
    monkeypatch.setattr(module, "keep_point", lambda *a, **k: looked.append(1) or real(*a, **k))
    curve = Curve(limit=100)
    curve.note(long_point(1))
    curve.chart(50_000)
    for step in range(2, 5_000):
        curve.note(long_point(step))
        curve.chart(50_000)
    assert len(looked) <= 5_000


def test_a_restored_curve_is_in_order():
    curve = Curve([long_point(3), long_point(1), long_point(2)], limit=100)
    assert [point.step for point in curve.points] == [1, 2, 3]
    assert [point.step for point in curve.chart(3)] == [1, 2, 3]


def as_database_writes_it(value):
    """JSON text as Postgres writes it: numbers without an exponent."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {as_database_writes_it(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_database_writes_it, value)) + "]"
    if isinstance(value, float):
        return format(Decimal(repr(value)), "f")
    return json.dumps(value, ensure_ascii=False)


def progress_with(points, **more):
    return Progress(run_id="r" * 36, stage=Stage.TRAINING, progress=50, current_step=10**9, points=points, **more)


def test_heartbeat_fits_the_whole_chart_of_an_ordinary_run():
    sent = fit_heartbeat(progress_with([long_point(step) for step in range(1, 101)], message="Fine."))
    assert [point["step"] for point in sent["points"]] == list(range(1, 101))
    assert "message" not in sent
    assert Progress.model_validate(sent).points[-1].training_loss == pytest.approx(1.23456789012345)


@pytest.mark.parametrize("tiny", [1e-5, 1.234567e-11, 5e-324, 1.7e308, -1.7e308])
def test_heartbeat_of_the_longest_run_fits_and_keeps_its_newest_points(tiny):
    numbers = dict.fromkeys(
        ("training_loss", "validation_loss", "learning_rate", "gradient_norm", "throughput", "gpu_utilization"), tiny
    )
    points = [Point(step=step, epoch=tiny if 0 < tiny < 1 else 1.0, **numbers) for step in range(1, 1001)]
    metrics = {f"€{number}{'m' * 90}": tiny for number in range(50)}
    sent = fit_heartbeat(progress_with(points, metrics=metrics, gpu_type="€" * 400))
    assert len(as_database_writes_it(sent).encode()) <= MAX_HEARTBEAT_PROGRESS_BYTES
    steps = [point["step"] for point in sent["points"]]
    assert steps == list(range(1001 - len(steps), 1001))
    assert len(steps) >= 50
    # The database stores no number of more than sixty decimals or above 1e20.
    assert all(
        abs(value) < 1e20 and Decimal(repr(value)).as_tuple().exponent >= -60 for value in sent["metrics"].values()
    )


def test_reported_result_keeps_its_end_within_the_databases_limit():
    longest = Result(
        run_id="r", status="failed", error={"code": "internal", "message": "€" * 2000, "hint": "\0\ud800h"},
        summary=LONGEST, points=[long_point(step) for step in range(5000)], log=["€" * 900] * 200,
        manifest=manifest([]), metrics={"final_training_loss": 1e300},
    )  # fmt: skip
    report = fit_report(longest)
    assert len(json.dumps(report, ensure_ascii=False).encode()) <= MAX_REPORTED_RESULT_BYTES
    assert "manifest" not in report
    assert (report["error"]["hint"], report["metrics"]["final_training_loss"]) == ("?h", 1e15)
    read = Result.model_validate(report)
    assert (read.error.code, read.summary.total_steps) == ("internal", 10**9)


def test_reported_result_of_normal_size_is_whole():
    result = Result(run_id="r", status="completed", points=[long_point(step) for step in range(250)], log=["a"] * 200)
    read = Result.model_validate(fit_report(result))
    assert (len(read.points), len(read.log)) == (250, 200)
