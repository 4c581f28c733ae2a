"""A Supabase project as its users see it: an address, keys, users. Local or not, all the same."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field

import httpx

from sandbox.errors import SandboxError


@dataclass
class Project:
    """Where a Supabase project answers and with which keys. The local one is `LocalSupabase`."""

    url: str
    database_url: str = field(repr=False)
    """The superuser's direct connection."""
    publishable_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    """A key for the role `service_role`."""
    anon_jwt: str | None = field(default=None, repr=False)
    """The legacy key for `anon`, where the project has one."""
    service_role_jwt: str | None = field(default=None, repr=False)
    """The legacy key for `service_role`, where the project has one."""
    _user_jwts: dict[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def from_environment(cls) -> Project | None:
        """The project of `SUPABASE_URL`, its keys and `LORA_WORKER_DATABASE_URL`; None where no URL is set.

        Raises:
            SandboxError: a URL is set, but not all that belongs to it.
        """
        url = os.environ.get("SUPABASE_URL")
        if not url:
            return None
        service = os.environ.get("SUPABASE_SERVICE_ROLE_KEY")
        public = os.environ.get("SUPABASE_PUBLISHABLE_KEY") or os.environ.get("SUPABASE_ANON_KEY")
        database_url = os.environ.get("LORA_WORKER_DATABASE_URL") or os.environ.get("SUPABASE_DB_URL")
        if not (service and public and database_url):
            raise SandboxError(
                "SUPABASE_URL is set: set SUPABASE_SERVICE_ROLE_KEY, SUPABASE_PUBLISHABLE_KEY (or "
                "SUPABASE_ANON_KEY) and LORA_WORKER_DATABASE_URL too, or unset it to use the local Supabase"
            )
        return cls(
            url=url.rstrip("/"),
            database_url=database_url,
            publishable_key=public,
            secret_key=service,
            anon_jwt=public if public.startswith("eyJ") else None,
            service_role_jwt=service if service.startswith("eyJ") else None,
        )

    def create_user(self, email: str) -> str:
        """Sign a new user up; the user's id.

        Raises:
            SandboxError: the project refused, or wants the address confirmed first.
        """
        answer = httpx.post(
            f"{self.url}/auth/v1/signup",
            headers={"apikey": self.publishable_key},
            json={"email": email, "password": secrets.token_urlsafe(24)},
            timeout=30,
        )
        if answer.is_error or "access_token" not in answer.json():
            raise SandboxError(
                f"no user could be signed up (HTTP {answer.status_code}); allow sign-up without confirmation"
            )
        user_id = str(answer.json()["user"]["id"])
        self._user_jwts[user_id] = answer.json()["access_token"]
        return user_id

    @property
    def user_ids(self) -> list[str]:
        """The ids of all users that this object made."""
        return list(self._user_jwts)

    def user_jwt(self, user_id: str) -> str:
        """The access token of a user made by `create_user` of this object."""
        return self._user_jwts[user_id]

    def client(self, user_id: str | None = None) -> httpx.Client:
        """An HTTP client based on the project's URL, acting as the user, or else as `service_role`."""
        if user_id is not None:
            headers = {"apikey": self.publishable_key, "authorization": f"Bearer {self.user_jwt(user_id)}"}
        else:
            headers = {"apikey": self.secret_key}
            if self.secret_key.startswith("eyJ"):
                headers["authorization"] = f"Bearer {self.secret_key}"
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)
