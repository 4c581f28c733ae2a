"""Checks the URLs of the settings. Calls with secret keys go there, so a wrong address must be found at the start."""

from __future__ import annotations

import re
from urllib.parse import urlsplit


def is_base_url(url: str) -> bool:
    """Tell whether paths can be appended to a URL: it has a host, perhaps a port and a path, and nothing else."""
    try:
        parts = urlsplit(url)
        # Encoding fails for a host with an empty or too long label, as it would in every call.
        return bool(
            (parts.hostname or "").encode("idna")
            and (parts.port is None or parts.port > 0)
            and not re.search(r"[\s?#@]", url)
        )
    except ValueError:
        return False


def _is_under(host: str, *domains: str) -> bool:
    return any(host == domain or host.endswith(f".{domain}") for domain in domains)


def supabase_fault(url: str) -> str | None:
    """Explain why a URL can't be that of a Supabase project, as the end of a sentence; None if it can."""
    host = urlsplit(url).hostname or ""
    if _is_under(host, "runpod.ai", "runpod.io", "runpod.net"):
        return "is RunPod's address; set the project's URL, https://….supabase.co"
    if _is_under(host, "supabase.com", "supabase.io"):
        return "is the dashboard's address; set the project's URL, https://….supabase.co"
    if host.startswith("db.") and _is_under(host, "supabase.co"):
        return "is the database's address; set the project's URL, without db in front"
    return None


def endpoint_fault(url: str) -> str | None:
    """Explain why a URL can't be that of a RunPod endpoint, as the end of a sentence; None if it can."""
    host = urlsplit(url).hostname or ""
    if _is_under(host, "supabase.co", "supabase.com", "supabase.in"):
        return "is Supabase's address; set the endpoint's URL, https://api.runpod.ai/v2/<endpoint>"
    if _is_under(host, "runpod.io") or host in {"runpod.ai", "www.runpod.ai", "console.runpod.ai"}:
        return "is the console's address; set the endpoint's URL, https://api.runpod.ai/v2/<endpoint>"
    return None


def project_of(url: str) -> str | None:
    """Return the reference of the Supabase project that a URL belongs to; None if it is no project's own URL."""
    host = urlsplit(url).hostname or ""
    return host.split(".")[0] if host.count(".") == 2 and _is_under(host, "supabase.co") else None
