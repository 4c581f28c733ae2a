-- The end: the version, and the rights to call the functions.

-- The version of this schema. A worker refuses to start on one it does not know.
create or replace function public.worker_schema_version() returns int
language sql immutable set search_path = '' as $$ select 1 $$;

-- Whether the functions of version 1 are in the database, for a worker whose REST API does not know them: that API
-- keeps a copy of the schema, but passes the names of columns on unseen, and Postgres reads a column of this name,
-- selected from `datasets`, as a call of this function.
create or replace function public.worker_schema_1(dataset public.datasets) returns boolean
language sql immutable set search_path = '' as $$ select true $$;

call public.training_set_function_rights(open => true);
drop procedure public.training_set_function_rights(boolean);
