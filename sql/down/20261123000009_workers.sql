-- Undoes 20261123000009_workers.sql.

drop function if exists public.training_no_worker();
drop function if exists public.training_living_workers();
drop function if exists public.report_worker(text, jsonb);
