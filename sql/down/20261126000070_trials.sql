-- Undoes 20261126000070_trials.sql.

drop function if exists public.remove_training_trial(uuid);
drop function if exists public.training_trial_files(uuid);
drop function if exists public.training_ended_trials();
drop function if exists public.training_is_trial(uuid);
