-- Undoes 20261123000010_pipeline_queue.sql.

drop function if exists public.training_waiting_jobs();
drop function if exists public.training_revise_points(text, uuid, int[], jsonb, boolean);
drop function if exists public.training_write_points(text, uuid, jsonb, boolean);
drop function if exists public.training_pipeline_columns(jsonb);
drop function if exists public.training_write_job(text, uuid, jsonb);
drop function if exists public.training_order_dataset(jsonb, uuid);
drop function if exists public.training_dataset_row(uuid);
drop function if exists public.training_job_order(text, uuid);
drop function if exists public.training_job_row(text, uuid, boolean);
drop function if exists public.training_job_status(text, uuid);
drop function if exists public.training_pipeline_maker(uuid);
