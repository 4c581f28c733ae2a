-- Undoes 20261126000085_served_adapters.sql. Adapters that are served now stay where they are.

drop trigger if exists training_keep_served on public.training_runs;
drop function if exists public.training_keep_served();
drop function if exists public.end_serving_errand(uuid, uuid, jsonb);
drop function if exists public.record_serving_errand(uuid, uuid, text, text);
drop function if exists public.claim_serving_errand(text, text, text, int, int);
drop function if exists public.training_list_removals();
drop function if exists public.training_forget_unserved();
drop function if exists public.training_unwanted_adapters();
drop function if exists public.training_may_be_served(public.training_runs);
drop index if exists public.training_runs_asked_name;
drop table if exists public.training_serving_errands;
drop table if exists public.training_served_removals;
