-- Undoes 20261126000094_machines.sql. The functions that it replaced go with the files that made them.

drop function if exists public.note_owned_launches(text, text, jsonb);
drop function if exists public.training_note_owned(public.training_runs, text, text, text);
drop function if exists public.finish_run(text, text, uuid, jsonb);
drop table if exists public.training_results;
