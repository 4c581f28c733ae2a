-- Undoes 20261123000012_trainers.sql.

drop function if exists public.grant_upload(uuid, uuid, jsonb, text);
drop function if exists public.upload_grant(text, uuid);
drop function if exists public.request_upload(text, uuid, jsonb, boolean);
drop function if exists public.training_is_file(jsonb);
drop function if exists public.check_in_run(text, text, uuid);
drop function if exists public.training_is_published(public.training_runs);
drop function if exists public.training_is_crowded(public.training_runs, text, uuid);
drop function if exists public.training_run_of_token(text);
