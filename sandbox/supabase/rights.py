"""What a Supabase project grants before anybody's migrations run."""

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
"""Since 2026-10-30 a hosted project grants nothing on new tables and functions, to `service_role` neither."""

ALL_BY_DEFAULT = """
alter default privileges in schema public grant all on tables to anon, authenticated, service_role;
alter default privileges in schema public grant all on sequences to anon, authenticated, service_role;
alter default privileges in schema public grant execute on functions to anon, authenticated, service_role;
"""
"""What projects granted before that day, and self-hosted ones still do."""


def default_grants(*, generous: bool) -> str:
    """The statements for a project of before that day (`generous`) or of today."""
    return ALL_BY_DEFAULT if generous else NOTHING_BY_DEFAULT
