"""Checks the kinds of the keys: Supabase's legacy keys end on its hosted platform."""

from __future__ import annotations

from datetime import UTC, datetime

from lora_worker.configuration.addresses import project_of
from lora_worker.configuration.settings import Settings, variable_of
from lora_worker.doctor.check import Check

_LEGACY_ENDS = datetime(2027, 1, 1, tzinfo=UTC)
"""Hosted projects take the JWT keys `anon` and `service_role` until the end of 2026 (Supabase's announcement of its
new API keys). A self-hosted project has no other kind."""

_SOON_DAYS = 30
_KEYS = ("supabase_service_role_key", "supabase_publishable_key")


def examine_keys(settings: Settings, now: datetime) -> list[Check]:
    """Find keys of the legacy kind in the settings for a hosted project."""
    if project_of(settings.supabase_url) is None:
        return []
    legacy = [name for name in _KEYS if getattr(settings, name).get_secret_value().startswith("eyJ")]
    days = (_LEGACY_ENDS - now).days
    when = f"end in {days} days" if days > 0 else "have ended"
    return [
        Check(
            "keys",
            False if days <= _SOON_DAYS else None,
            f"{variable_of(name)} holds a legacy key, and those {when} (with 2026)",
            f"make {'an sb_secret_…' if name == _KEYS[0] else 'an sb_publishable_…'} key in the project's API settings",
        )
        for name in legacy
    ]
