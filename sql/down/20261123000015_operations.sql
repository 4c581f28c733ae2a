-- Undoes 20261123000015_operations.sql.

drop function if exists public.abandoned_uploads(text, int);
drop function if exists public.queue_health();
drop function if exists public.close_launches(jsonb);
drop function if exists public.stray_launches(int);
drop function if exists public.training_strays();
drop function if exists public.cancel_training_job(uuid);
