"""Checks the URLs of the settings. Calls with secret keys go there, so a wrong address must be found at the start."""

from __future__ import annotations

import re
from ipaddress import ip_address
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


def url_fault(url: str) -> str | None:
    """Explain why no API can be called at a URL, as the end of a sentence; None if one can."""
    if not url.startswith(("http://", "https://")):
        return "must begin with https:// (or http:// on your own machine or network)"
    if not is_base_url(url):
        return "is not a URL to call: it needs a host, may have a port's number and a path, and no more"
    if url.startswith("http://") and not is_private(host_of(url)):
        return "must begin with https://: by http all that is sent to this host could be read on the way"
    return None


def host_of(url: str) -> str:
    """Return the host that a URL is of, in small letters; empty if it has none."""
    return urlsplit(url).hostname or ""


_PRIVATE_DOMAINS = (
    *("localhost", "local", "internal", "home.arpa", "test"),
    *("lan", "home", "intranet", "localdomain"),
    "svc",
    "ts.net",
)
"""Reserved for private use (RFC 6761, RFC 6762, RFC 8375, and `internal` by ICANN); by custom so, and no domain of the
internet (RFC 6762, appendix G); a Kubernetes cluster's services; Tailscale's machines, whose traffic is encrypted."""


def is_private(host: str) -> bool:
    """Tell whether a host is of one's own machine or network: a private address, or a name that only a network knows.

    Names without a dot are those of a network of containers. A dot at the end changes nothing.
    """
    host = host.lower().removesuffix(".")
    try:
        return not ip_address(host).is_global
    except ValueError:
        # A number without dots is an address, too.
        is_name = re.fullmatch(r"[0-9]+|0x[0-9a-f]*", host) is None
        return is_name and ("." not in host or is_under(host, *_PRIVATE_DOMAINS))


def is_under(host: str, *domains: str) -> bool:
    """Tell whether a host is one of these domains, or inside one of them."""
    return any(host == domain or host.endswith(f".{domain}") for domain in domains)


def server_fault(url: str, instead: str) -> str | None:
    """Explain why no key goes to a URL as to a server of one's own, as the end of a sentence; None if it may.

    `instead` is what the URL should be of.
    """
    if fault := url_fault(url):
        return fault
    if is_under(urlsplit(url).hostname or "", "supabase.co", "runpod.ai", "runpod.io"):
        return f"is an address of Supabase or RunPod; set that of {instead}"
    return None


def supabase_fault(url: str) -> str | None:
    """Explain why a URL can't be that of a Supabase project, as the end of a sentence; None if it can."""
    host = urlsplit(url).hostname or ""
    if is_under(host, "runpod.ai", "runpod.io", "runpod.net"):
        return "is RunPod's address; set the project's URL, https://….supabase.co"
    if is_under(host, "supabase.com", "supabase.io"):
        return "is the dashboard's address; set the project's URL, https://….supabase.co"
    if host.startswith("db.") and is_under(host, "supabase.co"):
        return "is the database's address; set the project's URL, without db in front"
    return None


def project_of(url: str) -> str | None:
    """Return the reference of the Supabase project that a URL belongs to; None if it is no project's own URL."""
    host = urlsplit(url).hostname or ""
    return host.split(".")[0] if host.count(".") == 2 and is_under(host, "supabase.co") else None
