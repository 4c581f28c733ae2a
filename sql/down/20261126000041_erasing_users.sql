-- Undoes 20261126000041_erasing_users.sql.

drop function if exists public.erase_training_user(uuid);
drop function if exists public.training_user_objects(uuid, text, int);
drop function if exists public.stop_user_training(uuid);
drop function if exists public.training_user_state(uuid);
drop function if exists public.training_pipeline_jobs_of(uuid);
drop trigger if exists training_keep_erased_costs on public.cost_records;
drop function if exists public.training_keep_erased_costs();
