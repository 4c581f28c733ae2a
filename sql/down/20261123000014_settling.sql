-- Undoes 20261123000014_settling.sql.

drop function if exists public.settle_run(uuid, uuid, jsonb);
drop function if exists public.training_lineage(public.training_runs, uuid, jsonb);
drop function if exists public.training_bill_run(public.training_runs, text, numeric);
drop function if exists public.training_launch_seconds(public.training_launches, numeric);
