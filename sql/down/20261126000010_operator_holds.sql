-- Undoes 20261126000010_operator_holds.sql. The functions that it replaced go with the files that made them.

drop function if exists public.retry_training_job(uuid);
drop function if exists public.claim_training_jobs_2(text, int, int, int);
drop function if exists public.report_worker_2(text, jsonb);
drop function if exists public.training_is_drained(text);
drop function if exists public.drain_training_workers(text);
drop function if exists public.release_training(uuid);
drop function if exists public.hold_training(uuid, text);
drop function if exists public.training_barred(uuid);
drop function if exists public.training_pause_claims();
drop table if exists public.training_stages;
drop table if exists public.training_retries;
drop table if exists public.training_drains;
drop table if exists public.training_operator_holds;
