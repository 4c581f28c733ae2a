-- Undoes 20261126000099_version_3.sql.

drop function if exists public.worker_schema_3(public.datasets);
create or replace function public.worker_schema_version() returns int
language sql immutable set search_path = '' as $$ select 2 $$;
