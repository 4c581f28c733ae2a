"""Whose dataset and job it is. The application's tables want a user, so an operator without one gets one."""

from __future__ import annotations

from uuid import UUID

import httpx

from lora_contract.connections import why_unreachable
from lora_worker.database.rest import api_headers
from lora_worker.errors import ArgumentError, ServiceRefusedError, ServiceUnavailableError
from lora_worker.services import Services

OPERATOR_MAIL = "operator@lora-worker.internal"
"""The user of jobs for whom none is named. It has no password, so nobody can sign in as it; no mail is sent there."""
_MARK = {"lora_worker": "operator"}
"""Metadata that only the secret key can write: they tell this user from one who signed up with its address."""

_SERVICE = "Supabase Auth"
_EXISTS = 422


async def find_owner(services: Services, named: str | None) -> UUID:
    """Return the id of a user, by id or mail address; of the operator's own user, made where it is missing, for None.

    Raises:
        ArgumentError: there is no such user, or somebody else has the operator's mail address.
        ServiceError: the database or Auth did not answer, or refused.
    """
    found = await services.queue.find_training_user(named or OPERATOR_MAIL)
    if found is None and named is not None:
        raise ArgumentError(f"--user: no user has the id or mail address {named!r}")
    if found is None:
        await _make_operator(services)
        found = await services.queue.find_training_user(OPERATOR_MAIL)
    if found is None:
        raise ServiceUnavailableError(
            _SERVICE, f"{_SERVICE} made the user {OPERATOR_MAIL}, and it is not there: try again"
        )
    if named is None and not found["is_operator"]:
        raise ArgumentError(
            f"the user {OPERATOR_MAIL} was not made by lora-worker: somebody may have signed up with that address, and "
            "would see what is stored for it. Delete it (Authentication → Users), or name a user with --user"
        )
    return found["user_id"]


async def _make_operator(services: Services) -> None:
    settings = services.settings
    try:
        answer = await services.http.post(
            f"{settings.supabase_url}/auth/v1/admin/users",
            headers=api_headers(settings.supabase_service_role_key.get_secret_value()),
            json={"email": OPERATOR_MAIL, "email_confirm": True, "app_metadata": _MARK},
        )
    except httpx.HTTPError as error:
        raise ServiceUnavailableError(_SERVICE, f"{_SERVICE} is not reachable: {why_unreachable(error)}") from None
    if answer.is_success or answer.status_code == _EXISTS:
        # Another command may have made it at the same moment.
        return
    if answer.is_server_error or answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
        raise ServiceUnavailableError(_SERVICE, f"{_SERVICE} is not available ({answer.status_code}): try again")
    raise ServiceRefusedError(
        _SERVICE,
        f"{_SERVICE} refused to make the user {OPERATOR_MAIL} ({answer.status_code}): name a user with --user",
        status=answer.status_code,
    )
