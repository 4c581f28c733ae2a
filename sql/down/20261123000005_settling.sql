-- Undoes 20261123000005_settling.sql.

drop function if exists public.settle_run(uuid, uuid, jsonb);
drop function if exists public.training_lineage(public.training_runs, uuid, jsonb);
drop function if exists public.training_bill_run(public.training_runs, text, numeric);
drop function if exists public.training_launch_seconds(public.training_launches, numeric);
drop function if exists public.training_spent_cost(public.training_runs);
drop function if exists public.record_progress(jsonb);
drop function if exists public.training_apply_report(public.training_runs, jsonb);
drop function if exists public.training_advanced(jsonb, jsonb);
drop function if exists public.training_store_points(uuid, jsonb, int, boolean);
drop index if exists public.training_cost_records_job_idx;
drop index if exists public.training_cost_records_run_idx;
drop index if exists public.training_notifications_job_idx;
drop function if exists public.training_notify(public.training_runs, jsonb);
