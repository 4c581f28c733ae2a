"""Start and end of a resumable upload (TUS protocol), by which a client finds out which sizes are allowed.

No bytes can be sent: the upstream server has no resumable uploads.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from uuid import uuid4

import httpx
from starlette.responses import Response

from sandbox.supabase.proxy import storage_rules
from sandbox.supabase.proxy.answer import Answer
from sandbox.supabase.proxy.settings import ProxySettings

PATH = "/storage/v1/upload/resumable"


async def answer_resumable(
    method: str, headers: Mapping[str, str], client: httpx.AsyncClient, settings: ProxySettings
) -> Response:
    """Answer a call under `PATH`; `headers` have the keys that the upstream server understands."""
    if method == "DELETE":
        return Response(status_code=204)
    try:
        names = {key: base64.b64decode(value).decode() for key, _, value in _pairs(headers["upload-metadata"])}
        length, bucket = int(headers["upload-length"]), names["bucketName"]
    except (KeyError, ValueError):
        return Response("Upload-Length or Upload-Metadata header required\n", 400)
    keys = {name: headers[name] for name in ("apikey", "authorization") if name in headers}
    found = await client.get(f"/storage/v1/bucket/{bucket}", headers=keys)
    if found.status_code != 200:
        return _response(storage_rules.spell_refusal(Answer(found.status_code, found.content)))
    if length > min(json.loads(found.content).get("file_size_limit") or length, settings.file_size_limit):
        return Response("Maximum size exceeded\n", 413)
    upload = base64.urlsafe_b64encode(f"{bucket}/{names.get('objectName')}/{uuid4()}".encode()).decode().rstrip("=")
    return Response(status_code=201, headers={"location": f"http://127.0.0.1:{settings.port}{PATH}/{upload}"})


def _pairs(metadata: str) -> list[tuple[str, str, str]]:
    return [pair.strip().partition(" ") for pair in metadata.split(",")]


def _response(answer: Answer) -> Response:
    return Response(answer.body, answer.status, media_type="application/json")
