-- Undoes 20261126000080_measured_runs.sql.

drop function if exists public.training_note_measured(uuid, jsonb, jsonb);
alter table if exists public.training_runs drop column if exists measured;
