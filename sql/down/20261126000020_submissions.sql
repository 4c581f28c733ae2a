-- Undoes 20261126000020_submissions.sql.

drop function if exists public.training_published_run(uuid);
drop function if exists public.submit_training_job(jsonb);
drop function if exists public.find_training_user(text);
drop function if exists public.training_is_operator(uuid);
