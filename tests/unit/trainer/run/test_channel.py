"""The trainer's channel to the database: only an answer of the database function itself ends a training."""

from __future__ import annotations

import httpx
import pytest

from lora_contract.protocol import Channel
from lora_trainer.errors import CancelledByUserError, ChannelUnreachableError, SupersededError
from lora_trainer.run.channel import ChannelClient, _TransientError
from tests.unit.trainer.project import TOKEN, URL

SECRET = "a gateway's words"


async def fault(function: str, response: httpx.Response) -> ChannelUnreachableError:
    """The exception after the last retry, if every answer is this one."""
    async with ChannelClient(
        Channel(url=URL, key="sb_publishable_x", token=TOKEN),
        external_job_id="j",
        execution_id="e",
        patience_seconds=0,
        transport=httpx.MockTransport(lambda _: response),
    ) as channel:
        calls = {
            "check_in": channel.check_in,
            "request_upload": lambda: channel.request_upload([]),
            "upload_grant": channel.upload_grant,
            "finish": lambda: channel.finish({}),
        }
        with pytest.raises(ChannelUnreachableError) as caught:
            await calls[function]()
    assert SECRET not in f"{caught.value.message} {caught.value.hint}"
    return caught.value


@pytest.mark.parametrize("function", ["check_in", "request_upload", "upload_grant", "finish"])
@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(200, html=f"<html>{SECRET}</html>"),
        httpx.Response(200),
        httpx.Response(204),
        httpx.Response(200, json=SECRET),
        httpx.Response(200, json=True),
        httpx.Response(200, json=[]),
        httpx.Response(200, json={}),
        httpx.Response(200, json={"may_train": "yes", "ok": "yes", "granted": "yes", "reason": "ok"}),
        httpx.Response(200, json={"may_train": False, "reason": SECRET}),
        httpx.Response(302),
        httpx.Response(403, html=f"<html>{SECRET}</html>"),
        httpx.Response(404, html="<html>"),
        httpx.Response(404, json={"code": "PGRST202", "message": SECRET}),
        httpx.Response(405, json={"code": "25006", "message": SECRET}),
        httpx.Response(500, json={"code": "57014", "message": SECRET}),
        httpx.Response(503, json={"code": "PGRST001"}),
        httpx.Response(540, json={"message": "paused"}),
        httpx.Response(200, content=b"[" * 100_000),
    ],
    ids=lambda response: f"{response.status_code} {response.text[:40]}",
)
async def test_answer_that_is_not_the_functions_is_retried(function: str, response: httpx.Response) -> None:
    assert isinstance(await fault(function, response), _TransientError)


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(401, json={"message": "Invalid API key"}),
        httpx.Response(401, json={"code": "PGRST301", "message": SECRET}),
        httpx.Response(401, json={"code": "42501", "message": SECRET}),
        httpx.Response(400, json={"code": "PT400", "message": SECRET}),
    ],
    ids=lambda response: f"{response.status_code} {response.text[:40]}",
)
async def test_refusal_is_reported_at_once_without_the_servers_text(response: httpx.Response) -> None:
    refusal = await fault("check_in", response)
    assert not isinstance(refusal, _TransientError)
    assert refusal.hint


PROGRESS = {"stage": "training", "current_step": 7}
ALIVE = {"may_train": True, "reason": "ok"}


async def heartbeat(answers: dict[str, httpx.Response]) -> tuple[bool, list[str]]:
    """Send one heartbeat; returns whether its progress was stored, and the functions that were called."""
    called = []

    def answer(request: httpx.Request) -> httpx.Response:
        called.append(request.url.path.rpartition("/")[2])
        return answers[called[-1]]

    async with ChannelClient(
        Channel(url=URL, key="sb_publishable_x", token=TOKEN),
        external_job_id="j",
        execution_id="e",
        patience_seconds=0,
        transport=httpx.MockTransport(answer),
    ) as channel:
        return await channel.heartbeat(PROGRESS), called


@pytest.mark.parametrize("stored", [True, False])
async def test_heartbeat_with_progress_is_one_call(stored: bool) -> None:
    answer = httpx.Response(200, json={**ALIVE, "progress_stored": stored})
    assert await heartbeat({"heartbeat_run": answer}) == (stored, ["heartbeat_run"])


@pytest.mark.parametrize(
    "fault",
    [
        # A database of an earlier release.
        httpx.Response(404, json={"code": "PGRST202", "message": "Could not find the function"}),
        httpx.Response(400, json={"code": "22P05", "message": SECRET}),
        httpx.Response(413),
        httpx.Response(503, json={"code": "PGRST001"}),
        httpx.Response(200, html=f"<html>{SECRET}</html>"),
    ],
    ids=lambda response: f"{response.status_code} {response.text[:40]}",
)
async def test_heartbeat_counts_even_if_its_progress_is_refused(fault: httpx.Response) -> None:
    answers = {"heartbeat_run": fault, "check_in_run": httpx.Response(200, json=ALIVE)}
    assert await heartbeat(answers) == (False, ["heartbeat_run", "check_in_run"])


@pytest.mark.parametrize(("reason", "error"), [("superseded", SupersededError), ("cancelled", CancelledByUserError)])
async def test_heartbeat_with_progress_ends_a_lost_run(reason: str, error: type[Exception]) -> None:
    refusal = httpx.Response(200, json={"may_train": False, "reason": reason})
    with pytest.raises(error):
        await heartbeat({"heartbeat_run": refusal})
