-- Undoes 20261126000011_job_reports.sql. The functions that it replaced go with the files that made them.

drop function if exists public.training_spent_today();
drop function if exists public.training_live_costs();
drop function if exists public.training_job_details(uuid);
drop function if exists public.training_job_points(text, uuid);
drop function if exists public.training_run_stages(public.training_runs, timestamptz);
drop function if exists public.list_training_jobs(jsonb);
drop function if exists public.training_job_entry(text, uuid, text, int);
drop function if exists public.training_most_of_user();
drop function if exists public.training_waits_for(uuid, uuid, text, text, int);
drop function if exists public.training_moment(timestamptz);
drop index if exists public.pipeline_training_jobs_listed_idx;
drop index if exists public.training_jobs_listed_idx;
drop trigger if exists training_note_stage on public.training_runs;
drop function if exists public.training_note_stage();
drop function if exists public.training_enter_stage(uuid, text, timestamptz);
