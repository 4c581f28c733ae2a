-- The last file: the version of the schema, and the rights to call the functions.

-- Returns the version of this schema. Each later migration raises it.
create or replace function public.worker_schema_version() returns int
language sql immutable set search_path = '' as $$ select 1 $$;

-- Exists for as long as the database serves workers of version 1. As a column of `datasets` in a query, its name
-- reaches the database even if PostgREST's copy of the schema is old, and Postgres reads it as a call of this
-- function.
create or replace function public.worker_schema_1(dataset public.datasets) returns boolean
language sql immutable set search_path = '' as $$ select true $$;

call public.training_set_function_rights(open => true);
drop procedure public.training_set_function_rights(boolean);
