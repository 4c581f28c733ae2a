"""How arguments name a job, a user or a moment: an id or its beginning, an id, an age or a date."""

from __future__ import annotations

import re
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from typing import Protocol
from uuid import UUID

from lora_worker.database.job_reports import JobDetails, JobFilter, JobPage
from lora_worker.errors import ArgumentError

_MOST_SHOWN = 40
"""Of a wrong argument, so many characters are repeated."""
_AGES = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_MOST_DAYS = 36_500


class Lists(Protocol):
    """What finding a job needs of `DatabaseCalls`."""

    def list_training_jobs(self, wanted: JobFilter) -> Awaitable[JobPage]:
        """List the jobs that the filter asks for."""


class Asks(Lists, Protocol):
    """What reading a job needs beside that."""

    def training_job_details(self, job_id: UUID) -> Awaitable[JobDetails | None]:
        """Return everything about a job; None if there is no such job."""


async def find_job(queue: Lists, text: str) -> UUID:
    """Return the id of the job that is meant: its whole id, or a beginning that only one job's id has.

    A whole id is returned without asking whether there is such a job.

    Raises:
        ArgumentError: no job's id begins so, or those of several jobs do.
        ServiceError: the database did not answer.
    """
    try:
        return UUID(text)
    except ValueError:
        pass
    digits = text.strip().lower().replace("-", "")
    if not re.fullmatch("[0-9a-f]{1,32}", digits):
        raise ArgumentError(f"{text[:_MOST_SHOWN]!r} is neither a job's id nor the beginning of one")
    found = (await queue.list_training_jobs({"id_prefix": digits, "limit": 4}))["jobs"]
    if not found:
        raise ArgumentError(f"no job's id begins with {text[:_MOST_SHOWN]}")
    if len(found) > 1:
        ids = ", ".join(job["job_id"] for job in found[:3])
        raise ArgumentError(f"the ids of several jobs begin with {text}: {ids}{', …' if len(found) > 3 else ''}")
    return UUID(found[0]["job_id"])


async def job_details(queue: Asks, text: str) -> JobDetails:
    """Return everything about the job that is meant.

    Raises:
        ArgumentError: there is no such job, or several are meant.
        ServiceError: the database did not answer.
    """
    job_id = await find_job(queue, text)
    details = await queue.training_job_details(job_id)
    if details is None:
        raise ArgumentError(f"there is no job {job_id}")
    return details


def user_id(text: str) -> UUID:
    """Return a user's id.

    Raises:
        ArgumentError: the text is none.
    """
    try:
        return UUID(text)
    except ValueError:
        raise ArgumentError(f"{text[:_MOST_SHOWN]!r} is no user's id, as column user_id of the jobs has it") from None


def moment(text: str, now: datetime) -> datetime:
    """Return the time that is meant: an age such as 30m, 24h, 7d or 2w, or a date, or a date and a time.

    Without a zone a time is one of UTC.

    Raises:
        ArgumentError: the text is none of these.
    """
    age = re.fullmatch("([0-9]{1,6})([mhdw])", text.strip())
    if age:
        back = timedelta(**{_AGES[age[2]]: int(age[1])})
        return now - min(back, timedelta(days=_MOST_DAYS))
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ArgumentError(
            f"{text[:_MOST_SHOWN]!r} is no time: give an age such as 24h or 7d, or a date such as 2026-11-26"
        ) from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
