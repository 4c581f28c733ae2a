-- Undoes 20261123000004_launches.sql.

drop function if exists public.grant_upload(uuid, uuid, jsonb, text);
drop function if exists public.upload_grant(text, uuid);
drop function if exists public.request_upload(text, uuid, jsonb, boolean);
drop function if exists public.check_in_run(text, text, uuid);
drop function if exists public.training_is_file(jsonb);
drop function if exists public.training_is_crowded(public.training_runs, text, uuid);
drop function if exists public.training_is_published(public.training_runs);
drop function if exists public.training_run_of_token(text);
drop function if exists public.training_endpoints(uuid);
drop function if exists public.training_note_launch(uuid, text, text, text, boolean);
drop function if exists public.record_launch(uuid, uuid, text, text, text);
drop function if exists public.training_check_external_job_id(text);
drop function if exists public.begin_launch(uuid, uuid, text, text, jsonb, jsonb, text);
drop function if exists public.training_held_run(uuid, uuid);
