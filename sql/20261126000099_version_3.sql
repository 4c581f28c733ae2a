-- Version 3 of the schema. The files before this one, from 20261126000002 on, bring what it holds: the operator's commands,
-- budgets, and what the worker's pages read. This file is the last of them, so that the version says that all are applied.

create or replace function public.worker_schema_version() returns int
language sql immutable set search_path = '' as $$ select 3 $$;

-- Whether the functions of version 3 are in the database (see worker_schema_1).
create or replace function public.worker_schema_3(dataset public.datasets) returns boolean
language sql immutable set search_path = '' as $$ select true $$;

revoke all on function public.worker_schema_3(public.datasets) from public, anon, authenticated, service_role;
grant execute on function public.worker_schema_3(public.datasets) to service_role;
