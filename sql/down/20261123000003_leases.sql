-- Undoes 20261123000003_leases.sql.

drop function if exists public.release_training_runs(text);
drop function if exists public.begin_handling(uuid, uuid);
drop function if exists public.renew_training_runs(jsonb, int);
drop function if exists public.adopt_training_runs(text, int, int);
drop function if exists public.training_check_lease_seconds(int);
drop function if exists public.training_name_faults(jsonb);
drop function if exists public.training_text_fault(text, int);
drop function if exists public.training_json_fault(jsonb, int);
drop function if exists public.training_decoded(jsonb);
drop function if exists public.training_assignment(uuid);
drop function if exists public.worker_schema_version();
drop function if exists public.worker_schema_1(public.datasets);
