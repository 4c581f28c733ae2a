"""A Supabase project, hosted or local, as its users see it: an address, keys and users."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field

import httpx

from sandbox.errors import SandboxError


@dataclass
class Project:
    """The address and the keys of a Supabase project. `LocalSupabase` is a local one."""

    url: str
    database_url: str = field(repr=False)
    """The URL of a direct connection as superuser."""
    publishable_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    """The key for the role `service_role`."""
    anon_jwt: str | None = field(default=None, repr=False)
    """The legacy key for the role `anon`, if the project has one."""
    service_role_jwt: str | None = field(default=None, repr=False)
    """The legacy key for the role `service_role`, if the project has one."""
    _user_jwts: dict[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def from_environment(cls) -> Project | None:
        """Return the project that is set by `SUPABASE_URL`, its keys and `LORA_WORKER_DATABASE_URL`; None without URL.

        Raises:
            SandboxError: the URL is set, but a key or the database's URL is missing.
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
        """Sign up a new user; returns the user's id.

        Raises:
            SandboxError: the project refused, or requires that the address is confirmed first.
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
        """The ids of all users that `create_user` of this object has created."""
        return list(self._user_jwts)

    def user_jwt(self, user_id: str) -> str:
        """Return the access token of a user that `create_user` of this object has created."""
        return self._user_jwts[user_id]

    def client(self, user_id: str | None = None) -> httpx.Client:
        """Return an HTTP client for the project that acts as the user, or without `user_id` as `service_role`."""
        if user_id is not None:
            headers = {"apikey": self.publishable_key, "authorization": f"Bearer {self.user_jwt(user_id)}"}
        else:
            headers = {"apikey": self.secret_key}
            if self.secret_key.startswith("eyJ"):
                headers["authorization"] = f"Bearer {self.secret_key}"
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)
