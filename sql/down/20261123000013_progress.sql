-- Undoes 20261123000013_progress.sql.

drop function if exists public.record_progress(jsonb);
drop function if exists public.training_apply_report(public.training_runs, jsonb);
drop function if exists public.training_advanced(jsonb, jsonb);
drop function if exists public.training_store_points(uuid, jsonb, int, boolean);
drop function if exists public.training_notify(public.training_runs, jsonb);
drop index if exists public.training_cost_records_job_idx;
drop index if exists public.training_cost_records_run_idx;
drop index if exists public.training_notifications_job_idx;
