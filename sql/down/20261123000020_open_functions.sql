-- Undoes 20261123000020_open_functions.sql. Other rights go with their functions.

drop function if exists public.worker_schema_1(public.datasets);
drop function if exists public.worker_schema_version();
