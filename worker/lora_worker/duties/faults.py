"""What an exception means for a duty's round, and for the work on one run, stray or dataset.

The first line that fits counts:

    exception             meaning  in a round                        in the work on one run, stray or dataset
    ────────────────────  ───────  ────────────────────────────────  ─────────────────────────────────────────────
    LeaseLostError        LOST     (no round raises it)              this worker lets go of it: another one has it
    SchemaMissingError    RETRY    logged once; the next round       logged once; its next turn tries again
                                   tries again; /readyz says it
    SchemaMismatchError   END      the worker ends                   as RETRY: the next round ends the worker
    ServiceError          RETRY    as above                          as above
    any other             BUG      logged once with its traceback;   logged once with its traceback; a run is given
                                   then as RETRY                     up after several in a row

"Logged once" is what `Repeats` does: again when it changes, and every half hour while it lasts.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

import structlog

from lora_worker.errors import LeaseLostError, SchemaMismatchError, SchemaMissingError, ServiceError
from lora_worker.observability.actions import Action
from lora_worker.observability.metrics import FAULTS_SEEN
from lora_worker.observability.repeats import Repeats, place_of

log = structlog.get_logger(__name__)


class Meaning(Enum):
    """What follows from an exception."""

    LOST = auto()
    RETRY = auto()
    END = auto()
    BUG = auto()


def meaning_of(error: Exception) -> Meaning:
    """What an exception means; see the table above."""
    match error:
        case LeaseLostError():
            return Meaning.LOST
        case SchemaMissingError():
            return Meaning.RETRY
        case SchemaMismatchError():
            return Meaning.END
        case ServiceError():
            return Meaning.RETRY
        case _:
            return Meaning.BUG


@dataclass(frozen=True, slots=True)
class Work:
    """Some work that may fail, as it is named in the log."""

    kind: str
    key: str
    """The name of the duty, or the id of the run, stray or dataset."""
    key_name: str
    """What the log calls the key."""
    put_off: str
    """The log's event when a service failed in it."""
    put_off_action: Action
    failed: str
    """The log's event when an exception came that nobody expected."""
    failed_action: Action

    @property
    def about(self) -> dict[str, str]:
        """What the log says it is about."""
        return {self.key_name: self.key}


def round_work(name: str) -> Work:
    """A round of a duty."""
    return Work(
        "round", name, "round",
        "service fault", Action.DUTY_PUT_OFF, "a round failed", Action.DUTY_ERROR,
    )  # fmt: skip


def run_work(run_id: str) -> Work:
    """The work on a held run."""
    return Work(
        "run", run_id, "run_id",
        "put off to the next cycle", Action.RUN_PUT_OFF, "work on a run failed", Action.RUN_ERROR,
    )  # fmt: skip


def stray_work(external_job_id: str) -> Work:
    """The work on a launch that no run owns."""
    return Work(
        "stray", external_job_id, "external_job_id",
        "a stray is put off", Action.STRAY_PUT_OFF, "work on a stray failed", Action.STRAY_ERROR,
    )  # fmt: skip


def dataset_work(dataset_id: str) -> Work:
    """The validation of a dataset."""
    return Work(
        "dataset", dataset_id, "dataset_id",
        "dataset put off", Action.DATASET_PUT_OFF, "work on a dataset failed", Action.DATASET_ERROR,
    )  # fmt: skip


class Faults:
    """Logs and counts the faults of duties, each once while it lasts."""

    def __init__(self, repeats: Repeats) -> None:
        self._repeats = repeats

    def note(self, work: Work, error: Exception) -> Meaning:
        """Log an exception, unless it goes on or only means a lost lease; what it means."""
        meaning = meaning_of(error)
        subject = (work.kind, work.key)
        if meaning is Meaning.BUG:
            if self._repeats.is_due(subject, place_of(error)):
                log.error(work.failed, action=work.failed_action, exc_info=error, **work.about)
        elif isinstance(error, ServiceError):
            FAULTS_SEEN.labels(error.service).inc()
            if self._repeats.is_due(subject, str(error)):
                log.warning(
                    work.put_off,
                    action=work.put_off_action,
                    service=error.service,
                    problem=str(error),
                    **work.about,
                )
        return meaning

    def over(self, work: Work) -> None:
        """Note that the work went well; where it had failed several times in a row, the log says how often."""
        times = self._repeats.clear((work.kind, work.key))
        if times > 1:
            log.info("fault over", action=Action.FAULT_OVER, times=times, **work.about)
