"""Where Google's access token may be sent: rows name endpoints, and no row may steer the token to another host."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lora_worker.configuration.addresses import url_fault
from lora_worker.launchers.addresses import split_endpoint

_GOOGLE = re.compile(
    r"https://(?P<region>[a-z]{2,20}-[a-z]{2,20}[0-9]{1,2})-aiplatform\.googleapis\.com"
    r"/v1/projects/(?P<project>[a-z0-9][a-z0-9.:-]{1,62})/locations/(?P=region)"
)
_LOCATION = re.compile(r".+/v1/projects/(?P<project>[a-z0-9][a-z0-9.:-]{1,62})/locations/[a-z0-9-]{1,63}")


def location_fault(url: str) -> str | None:
    """Explain why an address can't be that of a project's region, as the end of a sentence; None if it can."""
    if fault := url_fault(url):
        return fault
    if not _LOCATION.fullmatch(url.rstrip("/")):
        return "must end with /v1/projects/PROJECT/locations/REGION"
    return None


def project_of(address: str) -> str:
    """The project in the address of a project's region."""
    found = _LOCATION.fullmatch(address)
    assert found is not None
    return found["project"]


class Locations:
    """The region of the settings, the same project's other regions at Google, and those that a setting names."""

    def __init__(self, present: str, former: Iterable[str] = ()) -> None:
        self.present = present
        self._named = {present, *former}
        own = _GOOGLE.fullmatch(present)
        self._project = own["project"] if own else None

    def of(self, endpoint: str | None) -> str | None:
        """The address to call for an endpoint as a row names it; None where the token must not go there."""
        if endpoint is None:
            return self.present
        address, _ = split_endpoint(endpoint)
        if address in self._named:
            return address
        found = _GOOGLE.fullmatch(address)
        return address if found and found["project"] == self._project else None
