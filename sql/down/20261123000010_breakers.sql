-- Undoes 20261123000010_breakers.sql. Whoever waits for a breaker waits in the queue like any other job afterwards.

drop function if exists public.training_held();
drop function if exists public.note_endpoint(text, text, text, text);
drop function if exists public.resume_training(text);
drop function if exists public.training_breakers_worked(public.training_runs);
drop function if exists public.training_note_breakers(public.training_runs, jsonb, jsonb);
drop function if exists public.pass_breakers(uuid, uuid, text, text, int);
