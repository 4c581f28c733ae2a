"""Endpoints of SageMaker as rows note them: `sagemaker:<region>:<account>`, perhaps with `#<instance type>` behind.

The calls go to Amazon's own address of the region, which boto3 makes of its name. The account is that of the role: with
another account's credentials every launch would look as if it were gone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

REGION = r"[a-z]{2}(?:-[a-z]{2,12}){1,3}-[0-9]{1,2}"
_ENDPOINT = re.compile(rf"sagemaker:({REGION})(?::([0-9]{{12}}))?(?:#(ml\.[a-z0-9.-]{{3,40}}))?")


@dataclass(frozen=True, slots=True)
class Address:
    """Where launches go: a region of an account, and the instance type where that is not chosen by the GPU."""

    region: str
    account: str
    instance_type: str = ""

    def __str__(self) -> str:
        behind = f"#{self.instance_type}" if self.instance_type else ""
        return f"sagemaker:{self.region}:{self.account}{behind}"


def read_endpoint(endpoint: str, account: str) -> Address | None:
    """The address that an endpoint names, of this account where it names none; None where it is no endpoint of ours."""
    found = _ENDPOINT.fullmatch(endpoint)
    return Address(found[1], found[2] or account, found[3] or "") if found else None


def account_of(role: str) -> str:
    """The account of a role's ARN."""
    return role.split(":")[4]
