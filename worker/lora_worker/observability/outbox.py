"""Sends notices to operators by mail, chat or webhook, beside the work and without ever holding it up.

The URLs of the receivers are Apprise's (https://appriseit.com): `mailto://`, `slack://`, `json://` and some hundred
more. Apprise is imported only where a receiver is set. A thread sends; its queue is bounded, and each receiver has
Apprise's time-outs. A notice that can't be delivered is not sent again: nobody gets one twice, and some may get lost
(the rows of `notifications`, the metrics and the log don't).
"""

from __future__ import annotations

import contextvars
import queue
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

import structlog

from lora_contract.redaction import redact
from lora_worker.configuration.settings import Settings
from lora_worker.errors import SettingsError
from lora_worker.observability.actions import Action
from lora_worker.observability.metrics import NOTICES
from lora_worker.observability.telemetry import secrets_of

if TYPE_CHECKING:
    from apprise import Apprise

log = structlog.get_logger(__name__)

_MOST_WAITING = 100
_MAX_TITLE_CHARACTERS = 120
_MAX_BODY_CHARACTERS = 1000
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


class NoticeKind(StrEnum):
    """What operators are told of. The values are those of LORA_WORKER_NOTIFY_ABOUT."""

    JOB_FAILED = "job_failed"
    """A job failed for a cause that its user can't mend: the base model, the image, the GPU, the service."""
    JOB_ENDED = "job_ended"
    """Any other end of a job."""
    JOBS_HELD = "jobs_held"
    """A breaker is open: jobs of a base model or an image wait."""
    NO_GPU = "no_gpu"
    """The endpoint has no GPU for the jobs that wait, or none gets ready."""
    BUDGET_REACHED = "budget_reached"
    """Jobs wait because a day's budget is used up."""
    WORKER_NOT_READY = "worker_not_ready"
    """This worker does not do its work."""


Severity = Literal["info", "success", "warning", "failure"]


@dataclass(frozen=True, slots=True)
class OperatorNotice:
    """One notice. It holds ids, codes and figures, and no text of a user or a dataset."""

    kind: NoticeKind
    title: str
    body: str
    severity: Severity = "warning"


class Outbox:
    """The notices that wait to be sent to these receivers; without receivers it takes none."""

    def __init__(self, receivers: Sequence[Apprise] = (), *, kinds: Sequence[str] = (), secrets: Sequence[str] = ()):
        self._receivers = tuple(receivers)
        self._kinds = frozenset(kinds)
        self._secrets = tuple(secrets)
        self._waiting: queue.Queue[tuple[contextvars.Context, OperatorNotice] | None] = queue.Queue(_MOST_WAITING)
        self._thread: threading.Thread | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is anybody to tell."""
        return bool(self._receivers)

    def post(self, notice: OperatorNotice) -> None:
        """Send a notice beside the work, where operators want to hear of its kind. Never waits and never raises."""
        if not self._receivers or notice.kind not in self._kinds:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)
            self._thread.start()
        try:
            # With the ids of the run that it is about, for the log.
            self._waiting.put_nowait((contextvars.copy_context(), notice))
        except queue.Full:
            self._note(notice, "dropped")

    def close(self, *, seconds: float) -> None:
        """Send what waits, for at most so many seconds; the rest is lost."""
        if self._thread is None:
            return
        try:
            self._waiting.put(None, timeout=seconds)
        except queue.Full:
            return
        self._thread.join(timeout=seconds)

    def _work(self) -> None:
        while (entry := self._waiting.get()) is not None:
            context, notice = entry
            context.run(self._deliver, notice)

    def _deliver(self, notice: OperatorNotice) -> None:
        for receiver in self._receivers:
            try:
                is_sent = bool(
                    receiver.notify(
                        title=self._clean(notice.title, _MAX_TITLE_CHARACTERS),
                        body=self._clean(notice.body, _MAX_BODY_CHARACTERS),
                        notify_type=notice.severity,
                    )
                )
            except Exception:
                # The text of a library's exception may hold the receiver's URL.
                is_sent = False
            self._note(notice, "sent" if is_sent else "failed")

    def _clean(self, text: str, most: int) -> str:
        return _CONTROL.sub(" ", redact(text, self._secrets))[:most]

    def _note(self, notice: OperatorNotice, result: str) -> None:
        NOTICES.labels(notice.kind, result).inc()
        if result == "sent":
            log.info("notice sent", action=Action.NOTICE_SENT, kind=notice.kind)
        else:
            log.warning("notice not sent", action=Action.NOTICE_NOT_SENT, kind=notice.kind, result=result)


def open_outbox(settings: Settings) -> Outbox:
    """Return the outbox of these settings.

    Raises:
        SettingsError: Apprise is not installed, or knows no receiver of such a URL. The URL, a secret, is not shown.
    """
    urls = [url.get_secret_value() for url in settings.notify_urls]
    if not urls:
        return Outbox()
    try:
        import apprise
    except ImportError:
        raise SettingsError(
            "LORA_WORKER_NOTIFY_URLS is set, but Apprise is not installed: pip install '.[notify]' in the clone"
        ) from None
    # Its log repeats addresses of receivers.
    apprise.logger.setLevel("CRITICAL")
    asset = apprise.AppriseAsset(
        app_id="lora-worker",
        app_desc="LoRA training worker",
        app_url="",
        async_mode=False,
        storage_mode=apprise.PersistentStoreMode.MEMORY,
    )
    receivers = []
    for number, url in enumerate(urls, start=1):
        receiver = apprise.Apprise(asset=asset)
        if not receiver.add(url):
            raise SettingsError(
                f"LORA_WORKER_NOTIFY_URLS: its URL number {number} is none that Apprise {apprise.__version__} knows; "
                "see https://appriseit.com/services"
            )
        receivers.append(receiver)
    return Outbox(receivers, kinds=settings.notify_about, secrets=tuple(secrets_of(settings)))
