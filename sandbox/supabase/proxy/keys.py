"""Replaces the keys in a request's headers by those that the upstream server understands."""

from __future__ import annotations

import jwt
from starlette.datastructures import Headers, MutableHeaders

from sandbox.supabase.proxy.settings import ProxySettings


def swap_keys(headers: MutableHeaders, settings: ProxySettings) -> None:
    """Replace a legacy key by the `sb_…` key of the same role and drop its copy as a bearer token."""
    apikey = headers.get("apikey", "")
    bearer = headers.get("authorization", "").removeprefix("Bearer ")
    if bearer.startswith("sb_"):
        del headers["authorization"]
    if not apikey.startswith("eyJ"):
        return
    try:
        role = jwt.decode(apikey, settings.jwt_secret, algorithms=["HS256"], options={"verify_aud": False}).get("role")
    except jwt.InvalidTokenError:
        return  # The upstream server refuses such a key itself.
    swapped = {"anon": settings.publishable_key, "service_role": settings.secret_key}.get(str(role))
    if swapped is not None:
        headers["apikey"] = swapped
        if bearer == apikey:
            del headers["authorization"]


def has_expired(headers: Headers, settings: ProxySettings) -> bool:
    """Tell whether a legacy key is genuine but has expired: a gateway passes it on, and PostgREST refuses it."""
    for key in (headers.get("apikey", ""), headers.get("authorization", "").removeprefix("Bearer ")):
        if key.startswith("eyJ"):
            try:
                jwt.decode(key, settings.jwt_secret, algorithms=["HS256"], options={"verify_aud": False})
            except jwt.ExpiredSignatureError:
                return True
            except jwt.InvalidTokenError:
                continue
    return False
