-- Undoes 20261123000006_estimate.sql. Jobs keep the keys and the estimates that they were given.

drop function if exists public.training_complete_job();
drop function if exists public.training_priced_gpu(jsonb, jsonb);
drop function if exists public.estimate_training_job(uuid);
drop function if exists public.estimate_training_cost(uuid, jsonb, jsonb);
drop function if exists public.training_estimate_of(public.datasets, jsonb, jsonb);
drop function if exists public.training_both_shapes(jsonb, jsonb);
drop function if exists public.training_estimate(jsonb, double precision, double precision, double precision,
  double precision, double precision, double precision, text, text);
drop function if exists public.training_gpu(jsonb, text);
drop function if exists public.publish_training_terms(jsonb, text);
