-- Undoes 20261123000007_leases.sql.

drop function if exists public.release_training_runs(text);
drop function if exists public.begin_handling(uuid, uuid);
drop function if exists public.renew_training_runs(jsonb, int);
drop function if exists public.adopt_training_runs(text, int, int);
drop function if exists public.training_assignment(uuid);
drop function if exists public.training_assigned_job(jsonb, jsonb);
drop function if exists public.training_spent_cost(public.training_runs);
drop function if exists public.training_endpoints(uuid);
drop function if exists public.training_held_run(uuid, uuid);
drop function if exists public.training_check_lease_seconds(int);
