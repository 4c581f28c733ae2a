-- Undoes 20261126000061_run_speeds.sql. The functions that it replaced go with the files that made them.

drop function if exists public.training_estimate(
  jsonb, double precision, double precision, double precision, double precision, double precision, double precision,
  text, text, double precision);
drop function if exists public.training_run_speed(text, text);
drop function if exists public.training_measured_terms(jsonb, text, jsonb);
drop function if exists public.training_median_speed(jsonb, text, jsonb);
drop function if exists public.training_speed(jsonb, text, jsonb);
drop function if exists public.training_table_speed(jsonb, text, jsonb);
drop function if exists public.settle_run_2(uuid, uuid, jsonb);
drop function if exists public.training_note_speed(uuid, jsonb);
drop table if exists public.training_speeds;
