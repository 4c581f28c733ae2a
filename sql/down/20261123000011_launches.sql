-- Undoes 20261123000011_launches.sql.

drop function if exists public.record_launch(uuid, uuid, text, text, text);
drop function if exists public.training_note_launch(uuid, text, text, text, boolean);
drop function if exists public.training_check_external_job_id(text);
drop function if exists public.begin_launch(uuid, uuid, text, text, jsonb, text);
