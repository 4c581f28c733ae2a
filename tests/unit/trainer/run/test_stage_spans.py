"""An execution's stages stand in its run's trace, one span for each."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from lora_contract.protocol import Request, Result, Stage, TrainerError
from lora_contract.tracing import SpanContext, Traces, context_of
from lora_trainer.run.stage_spans import StageSpans
from tests.unit.trainer.project import request_input

RUN = str(uuid4())


class Noted(Traces):
    def __init__(self) -> None:
        super().__init__()
        self.spans: list[dict[str, Any]] = []

    def record(self, name: str, **span: Any) -> None:
        self.spans.append({"name": name, **span})


def spans_of(stages: list[Stage], result: Result, **request: Any) -> list[dict[str, Any]]:
    traces = Noted()
    spans = StageSpans(traces, Request.model_validate(request_input(run_id=RUN, **request)), "execution-1")
    for stage in stages:
        spans.enter(stage)
    spans.end(result)
    return traces.spans


def test_each_stage_is_a_span_below_the_execution() -> None:
    whole = [stage for stage in Stage for _ in range(3) if stage is not Stage.COMPLETED]
    *stages, execution = spans_of(whole, Result(run_id=RUN, status="completed"))
    assert [span["name"] for span in stages] == [
        "download", "prepare", "load", "configure", "train", "save", "upload"
    ]  # fmt: skip
    assert execution["name"] == "execution"
    assert execution["parent"] == context_of(RUN)
    assert {span["parent"] for span in stages} == {execution["own"]}
    assert execution["own"].trace_id == context_of(RUN).trace_id
    assert {span["attributes"]["execution_id"] for span in [*stages, execution]} == {"execution-1"}
    assert not any(span["failed"] for span in [*stages, execution])


def test_stage_that_is_repeated_is_two_spans() -> None:
    repeated = [Stage.LOADING_MODEL, Stage.TRAINING, Stage.PREPARING, Stage.LOADING_MODEL, Stage.TRAINING]
    *stages, _ = spans_of(repeated, Result(run_id=RUN, status="completed"))
    assert [span["name"] for span in stages] == ["load", "train", "prepare", "load", "train"]


def test_failed_stage_and_execution_say_so_by_code_only() -> None:
    error = TrainerError(code="out_of_memory", message="text of a dataset")
    *_, load, execution = spans_of([Stage.LOADING_MODEL], Result(run_id=RUN, status="failed", error=error))
    assert (load["name"], load["failed"]) == ("load", True)
    assert (execution["failed"], execution["attributes"]["error_code"]) == (True, "out_of_memory")
    assert "text of a dataset" not in str([load, execution])


@pytest.mark.parametrize("given", [None, "nonsense"])
def test_request_without_a_trace_joins_that_of_its_run(given: str | None) -> None:
    *_, execution = spans_of([], Result(run_id=RUN, status="completed"), traceparent=given)
    assert execution["parent"] == context_of(RUN)


def test_request_with_a_trace_joins_that() -> None:
    parent = SpanContext(7, 8)
    *_, execution = spans_of([], Result(run_id=RUN, status="completed"), traceparent=parent.traceparent)
    assert execution["parent"] == parent
