"""Makes users with the secret key, as Auth's administration does. The upstream server only lets users sign up."""

from __future__ import annotations

import json
import secrets
from typing import Any

import httpx
import psycopg
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response

from sandbox.supabase.proxy.settings import ProxySettings

PATH = "/auth/v1/admin/users"


def asks_for_user(method: str, path: str) -> bool:
    """Tell whether the request makes a user."""
    return method == "POST" and path == PATH


async def make_user(headers: Headers, body: bytes, client: httpx.AsyncClient, settings: ProxySettings) -> Response:
    """Answer such a request: with the user, whose address counts as confirmed, or with 401 for any other key."""
    if headers.get("apikey") != settings.secret_key:
        return JSONResponse({"code": 401, "error_code": "no_authorization", "msg": "Invalid API key"}, 401)
    asked = json.loads(body)
    made = await client.post(
        "/auth/v1/signup",
        headers={"apikey": settings.publishable_key},
        json={"email": asked["email"], "password": asked.get("password") or secrets.token_urlsafe(24)},
    )
    if made.is_error:
        exists = {
            "code": 422,
            "error_code": "email_exists",
            "msg": "A user with this email address has already been registered",
        }
        return JSONResponse(exists, 422)
    user = made.json()["user"]
    if asked.get("app_metadata"):
        await _write_metadata(settings.database_url, user["id"], asked["app_metadata"])
    return JSONResponse(user)


async def _write_metadata(database_url: str, user_id: str, metadata: dict[str, Any]) -> None:
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        # The upstream server keeps JSON as a JSON string.
        await connection.execute(
            """update auth.users set raw_app_meta_data =
               to_jsonb((coalesce(raw_app_meta_data #>> '{}', '{}')::jsonb || %s::jsonb)::text) where id = %s""",
            [json.dumps(metadata), user_id],
        )
