-- Undoes 20261123000017_guards.sql.

drop function if exists public.training_drop_foreign_row();
drop function if exists public.training_keep_job();
drop function if exists public.training_is_ours(uuid, text);
drop function if exists public.training_guard_notification();
drop function if exists public.training_guard_job();
