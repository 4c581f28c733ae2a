-- Undoes 20261126000001_trainer_progress.sql.

drop trigger if exists training_forget_progress on public.training_runs;
drop function if exists public.worker_schema_2(public.datasets);
create or replace function public.worker_schema_version() returns int
language sql immutable set search_path = '' as $$ select 1 $$;
drop function if exists public.adopt_training_runs_2(text, int, int, text);
drop function if exists public.renew_training_runs_2(jsonb, int);
drop function if exists public.heartbeat_run(text, text, uuid, jsonb);
drop function if exists public.training_forget_progress();
drop table if exists public.training_progress;
