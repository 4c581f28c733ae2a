"""What a migration changes in a database: its objects are looked at before and after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import psycopg

_Objects = dict[tuple[str, str], str]
"""A fingerprint for each object, by its kind and name."""

# Rights are part of a fingerprint, in any order: Postgres appends what was granted last.
_QUERY = """
select 'function' as kind, p.oid::regprocedure::text as name, md5(concat(
  pg_get_functiondef(p.oid), (select string_agg(a::text, ',' order by a::text) from unnest(p.proacl) a)))
from pg_proc p where p.pronamespace = 'public'::regnamespace and p.prokind in ('f', 'p')
union all
select 'table', c.relname, md5(concat(
  c.relrowsecurity, (select string_agg(a::text, ',' order by a::text) from unnest(c.relacl) a),
  (select string_agg(concat_ws(' ', t.attname, format_type(t.atttypid, t.atttypmod), t.attnotnull), ','
                     order by t.attnum)
   from pg_attribute t where t.attrelid = c.oid and t.attnum > 0 and not t.attisdropped)))
from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')
union all
select 'index', i.indexname, md5(i.indexdef) from pg_indexes i where i.schemaname = 'public'
union all
select 'trigger', t.tgname || ' on ' || t.tgrelid::regclass, md5(pg_get_triggerdef(t.oid))
from pg_trigger t join pg_class c on c.oid = t.tgrelid
where not t.tgisinternal and c.relnamespace = 'public'::regnamespace
union all
select 'policy', p.policyname || ' on ' || p.schemaname || '.' || p.tablename, md5(to_jsonb(p)::text)
from pg_policies p where p.schemaname in ('public', 'storage')
"""
_BUCKETS = "select 'bucket', id, '' from storage.buckets"


@dataclass(frozen=True, slots=True)
class Change:
    """One object that a migration added, changed or removed."""

    kind: str
    name: str
    change: Literal["added", "changed", "removed"]


def list_objects(connection: psycopg.Connection) -> _Objects:
    """Return the functions, tables, indexes, triggers, policies and buckets as they are now."""
    rows = connection.execute(_QUERY.encode()).fetchall()
    has_buckets = connection.execute("select to_regclass('storage.buckets') is not null").fetchone()
    if has_buckets and has_buckets[0]:
        rows += connection.execute(_BUCKETS).fetchall()
    return {(kind, name): fingerprint for kind, name, fingerprint in rows}


def compare(before: _Objects, after: _Objects) -> list[Change]:
    """Return what differs, sorted by kind and name."""
    changes = []
    for kind, name in sorted(before.keys() | after.keys()):
        was, now = before.get((kind, name)), after.get((kind, name))
        if was is None:
            changes.append(Change(kind, name, "added"))
        elif now is None:
            changes.append(Change(kind, name, "removed"))
        elif was != now:
            changes.append(Change(kind, name, "changed"))
    return changes
