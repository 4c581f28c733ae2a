-- Undoes 20261126000071_methods_and_adapters.sql. The functions that it replaced go with the files that made them.

drop function if exists public.training_estimates(jsonb, public.datasets, jsonb, jsonb);
drop function if exists public.training_asked_gpus(jsonb);
drop function if exists public.training_estimate_with(jsonb, public.datasets, jsonb, jsonb);
drop function if exists public.training_init_adapter(uuid, uuid);
