-- Undoes 20261123000013_waiting_for_dataset.sql. Jobs keep the stage that they were given.

drop trigger if exists training_mark_waiting on public.training_jobs;
drop trigger if exists training_mark_waiting_jobs on public.datasets;
drop function if exists public.training_mark_waiting();
drop function if exists public.training_mark_waiting_jobs();
drop function if exists public.training_job_patience(text, uuid, uuid);
drop function if exists public.training_dataset_patience(uuid, timestamptz);
