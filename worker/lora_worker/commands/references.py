"""How arguments name a job, a user or a moment: an id or its beginning, an id, an age or a date."""

from __future__ import annotations

import re
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from typing import Protocol
from uuid import UUID

from lora_worker.database.job_reports import JobDetails, JobFilter, JobPage
from lora_worker.database.submission_rows import FoundUser
from lora_worker.errors import ArgumentError

_MOST_SHOWN = 40
"""Of a wrong argument, so many characters are repeated."""
_AGES = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_MOST_DAYS = 36_500
_CURSOR = r"(-?infinity|[0-9]{4,6}-[0-9 :.+-]{6,40})\|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
"""When a job was created, and its id."""


class Lists(Protocol):
    """What finding a job needs of `DatabaseCalls`."""

    def list_training_jobs(self, wanted: JobFilter) -> Awaitable[JobPage]:
        """List the jobs that the filter asks for."""


class Asks(Lists, Protocol):
    """What reading a job needs beside that."""

    def training_job_details(self, job_id: UUID) -> Awaitable[JobDetails | None]:
        """Return everything about a job; None if there is no such job."""


class KnowsUsers(Protocol):
    """What finding a user needs of `DatabaseCalls`."""

    def find_training_user(self, named: str) -> Awaitable[FoundUser | None]:
        """Return the user with this id or mail address."""


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


async def find_user(queue: KnowsUsers, text: str) -> UUID:
    """Return the id of the user that is meant, by id or mail address.

    An id is returned without asking for it: an account may be gone whose jobs are still there.

    Raises:
        ArgumentError: no user has this mail address.
        ServiceError: the database did not answer.
    """
    try:
        return UUID(text)
    except ValueError:
        pass
    found = await queue.find_training_user(text)
    if found is None:
        raise ArgumentError(f"no user has the id or mail address {text[:_MOST_SHOWN]!r}")
    return found["user_id"]


def page_cursor(text: str) -> str:
    """Return the cursor of a page of jobs, as the page before has told it.

    Raises:
        ArgumentError: the text is none.
    """
    if not re.fullmatch(_CURSOR, text.strip()):
        raise ArgumentError(f"--cursor: {text[:_MOST_SHOWN]!r} is none that `lora-worker jobs` has printed")
    return text.strip()


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
