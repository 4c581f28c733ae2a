"""The schema `public` of a database as lines that can be compared, without generated names."""

from __future__ import annotations

import psycopg

_TABLES = "select oid from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r'"

_QUERIES = {
    "column": f"""
        select attrelid::regclass || '.' || attname || ' ' || format_type(atttypid, atttypmod)
          || case when attnotnull then ' not null' else '' end || coalesce(' ' || pg_get_expr(adbin, adrelid), '')
        from pg_attribute left join pg_attrdef on adrelid = attrelid and adnum = attnum
        where attrelid in ({_TABLES}) and attnum > 0 and not attisdropped""",
    "constraint": f"""
        select conrelid::regclass || ' ' || pg_get_constraintdef(oid)
        from pg_constraint where conrelid in ({_TABLES})""",
    # The name of an index depends on who made it; only its definition is compared.
    "index": f"""
        select regexp_replace(pg_get_indexdef(indexrelid), 'INDEX \\S+ ON', 'INDEX ON')
        from pg_index where indrelid in ({_TABLES})""",
    "trigger": f"""
        select regexp_replace(pg_get_triggerdef(oid), 'TRIGGER \\S+ ', 'TRIGGER ')
        from pg_trigger where tgrelid in ({_TABLES}) and not tgisinternal""",
    "policy": """
        select concat_ws(' ', tablename, permissive, roles, cmd, 'using', qual, 'check', with_check)
        from pg_policies where schemaname = 'public'""",
    "security": f"select oid::regclass || ' ' || relrowsecurity from pg_class where oid in ({_TABLES})",
    "grant": f"""
        select oid::regclass || ' ' || grantee::regrole || ' ' || privilege_type
        from pg_class, aclexplode(relacl) where oid in ({_TABLES})""",
    "function": """
        select regexp_replace(pg_get_functiondef(oid), '\\s+', ' ', 'g')
        from pg_proc where pronamespace = 'public'::regnamespace""",
    "call": """
        select p.oid::regprocedure || ' ' || case grantee when 0 then 'public' else grantee::regrole::text end
        from pg_proc p, aclexplode(coalesce(proacl, acldefault('f', proowner)))
        where pronamespace = 'public'::regnamespace""",
}


def catalog(database_url: str) -> list[str]:
    """One sorted line for every column, constraint, index, trigger, policy, grant and function."""
    with psycopg.connect(database_url) as connection:
        return sorted(
            f"{kind}: {line}" for kind, query in _QUERIES.items() for (line,) in connection.execute(query.encode())
        )
