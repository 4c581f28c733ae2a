-- Undoes 20261126000093_several_launchers.sql.

drop function if exists public.adopt_training_runs_3(text, int, int, text[]);
