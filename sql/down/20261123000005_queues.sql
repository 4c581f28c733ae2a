-- Undoes 20261123000005_queues.sql.

drop function if exists public.training_revise_points(text, uuid, int[], jsonb, boolean);
drop function if exists public.training_write_points(text, uuid, jsonb, boolean);
drop function if exists public.training_write_job(text, uuid, jsonb);
drop function if exists public.training_written_columns(text);
drop function if exists public.training_pipeline_columns(jsonb);
drop function if exists public.training_job_patience(text, uuid, uuid);
drop function if exists public.training_dataset_patience(uuid, timestamptz);
drop function if exists public.training_order_dataset(jsonb, uuid);
drop function if exists public.training_dataset_row(uuid);
drop function if exists public.training_job_order(text, uuid);
drop function if exists public.training_job_row(text, uuid, boolean);
drop function if exists public.training_job_status(text, uuid);
drop function if exists public.training_pipeline_maker(uuid);
