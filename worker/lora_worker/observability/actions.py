"""The stable names of what the log tells: each line has one as its `action`.

The `event` of a line is a sentence for people and may be reworded. Searches and alerts use the `action`, which is
renamed only with a note in the changelog. docs/telemetry.md lists them all; `test_actions.py` compares that list with
this one.
"""

from __future__ import annotations

from enum import StrEnum


class Action(StrEnum):
    """What a line of the log tells."""

    WORKER_STARTED = "worker.started"
    WORKER_STOPPED = "worker.stopped"
    WORKER_DRAINED = "worker.drained"
    WORKER_STOPPED_EARLY = "worker.stopped_early"
    LEASES_NOT_RELEASED = "worker.leases_not_released"
    PASS_DONE = "worker.pass_done"  # noqa: S105 (the name of an event)
    TRACES_OFF = "worker.traces_off"
    TERMS_WRITTEN = "worker.terms_written"

    LIBRARY_REPORTED = "library.reported"

    DUTY_PUT_OFF = "duty.put_off"
    DUTY_ERROR = "duty.error"
    FAULT_OVER = "fault.over"

    RUN_CLAIMED = "run.claimed"
    RUN_ADOPTED = "run.adopted"
    RUN_UNREADABLE = "run.unreadable"
    RUN_TOKEN_UNKNOWN = "run.token_unknown"  # noqa: S105 (the name of an event)
    RUN_PUT_OFF = "run.put_off"
    RUN_ERROR = "run.error"
    RUN_PUT_BACK = "run.put_back"
    PLACE_CHOSEN = "place.chosen"
    PLACE_LEFT = "place.left"
    PLACES_TAKEN = "place.all_taken"
    RUN_STATUS_UNKNOWN = "run.status_unknown"
    RUN_MISSING = "run.missing"
    RUN_SILENT = "run.silent"
    RUN_NEVER_READY = "run.never_ready"
    TRAINER_OUTDATED = "trainer.outdated"
    RUN_STOPPING = "run.stopping"
    RUN_NOT_STOPPING = "run.not_stopping"
    MACHINE_STOPPED = "machine.stopped"
    RUN_PROGRESS_REFUSED = "run.progress_refused"
    RUN_GIVEN_UP = "run.given_up"
    RUN_SETTLED = "run.settled"

    JOB_KEYS_UNREAD = "job.keys_unread"
    JOBS_HELD = "jobs.held"

    LAUNCH_ACCEPTED = "launch.accepted"
    LAUNCH_NOT_NEEDED = "launch.not_needed"
    LAUNCH_PUT_OFF = "launch.put_off"
    LAUNCH_IN_DOUBT = "launch.in_doubt"
    LAUNCH_REFUSED = "launch.refused"
    LAUNCH_KEY_WITHHELD = "launch.key_withheld"

    UPLOAD_GRANTED = "upload.granted"
    UPLOAD_PUT_OFF = "upload.put_off"
    UPLOAD_REQUEST_CHANGED = "upload.request_changed"
    UPLOAD_REQUEST_UNREADABLE = "upload.request_unreadable"
    SERVED_CHANGED = "served.changed"
    SERVED_NOT_CHANGED = "served.not_changed"
    SERVED_ASKED = "served.asked"

    UPLOADS_SWEPT = "uploads.swept"
    UPLOADS_NOT_SWEPT = "uploads.not_swept"

    ARTIFACT_REFUSED = "artifact.refused"
    ARTIFACT_FOREIGN = "artifact.foreign"
    STORAGE_REFUSED = "storage.refused"
    RUN_LOG_NOT_KEPT = "run_log.not_kept"
    CONTAINER_LOG_KEPT = "container_log.kept"
    CONTAINER_LOG_NOT_KEPT = "container_log.not_kept"
    OUTCOME_REFUSED = "outcome.refused"
    OUTCOME_ERROR = "outcome.error"
    BILL_GPU_CONTRADICTED = "bill.gpu_contradicted"
    BILL_SECONDS_CONTRADICTED = "bill.seconds_contradicted"

    OWNED_FOUND = "owned.found"
    OWNED_UNKNOWN = "owned.unknown"
    OWNED_ENDED = "owned.ended"

    STRAY_LEFT = "stray.left"
    STRAY_CANCELLED = "stray.cancelled"
    STRAY_PUT_OFF = "stray.put_off"
    STRAY_ERROR = "stray.error"

    ENDPOINT_PROBLEM = "endpoint.problem"
    CLOCK_DIFFERS = "clock.differs"
    ENDPOINT_RELEASED = "endpoint.released"

    ALIASES_SERVED = "aliases.served"
    ALIAS_NOT_SERVED = "alias.not_served"

    GPUS_UNLISTED = "gpus.unlisted"
    GPU_JOB_STARTED = "gpu_job.started"
    GPU_JOB_ENDED = "gpu_job.ended"

    DASHBOARD_ACTED = "dashboard.acted"
    DASHBOARD_PAGE_FAILED = "dashboard.page_failed"
    DASHBOARD_UNREAD = "dashboard.unread"
    NOTICE_SENT = "notice.sent"
    NOTICE_NOT_SENT = "notice.not_sent"
    WEBHOOK_NOT_DELIVERED = "webhook.not_delivered"

    DATASET_VALIDATED = "dataset.validated"
    DATASET_GIVEN_UP = "dataset.given_up"
    DATASET_NOT_SETTLED = "dataset.not_settled"
    DATASET_UNREADABLE = "dataset.unreadable"
    DATASET_PUT_OFF = "dataset.put_off"
    DATASET_ERROR = "dataset.error"
