-- Undoes 20261123000014_workers.sql.

drop function if exists public.training_no_worker();
drop function if exists public.training_living_workers();
drop function if exists public.report_worker(text, jsonb);
drop table if exists public.training_workers;
