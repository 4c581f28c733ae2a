"""The roles and default grants that a Supabase project has before any migration runs."""

from __future__ import annotations

ROLES = """
do $$ begin
  if to_regrole('anon') is null then create role anon nologin; end if;
  if to_regrole('authenticated') is null then create role authenticated nologin; end if;
  if to_regrole('service_role') is null then create role service_role nologin bypassrls; end if;
end $$;
grant usage on schema public to anon, authenticated, service_role;
"""

NOTHING_BY_DEFAULT = """
alter default privileges in schema public revoke all on tables from anon, authenticated, service_role;
alter default privileges in schema public revoke all on sequences from anon, authenticated, service_role;
alter default privileges in schema public revoke execute on functions from anon, authenticated, service_role;
alter default privileges revoke execute on functions from public;
"""
"""Since 2026-10-30 hosted projects grant nothing on new tables and functions, not even to `service_role`."""

ALL_BY_DEFAULT = """
alter default privileges in schema public grant all on tables to anon, authenticated, service_role;
alter default privileges in schema public grant all on sequences to anon, authenticated, service_role;
alter default privileges in schema public grant execute on functions to anon, authenticated, service_role;
"""
"""Before that day projects granted everything, and self-hosted ones still do."""


def default_grants(*, generous: bool) -> str:
    """Return the statements for the default grants of older projects (`generous`) or of today's."""
    return ALL_BY_DEFAULT if generous else NOTHING_BY_DEFAULT
