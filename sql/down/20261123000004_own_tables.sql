-- Undoes 20261123000004_own_tables.sql: the worker's own tables go with the history in them. What
-- users see (jobs, metrics, artifacts, costs, notices) is in the application's tables and stays.

do $down$
declare
  live int;
  open_launches int;
begin
  if to_regclass('public.training_runs') is null or to_regclass('public.training_launches') is null then
    return;
  end if;
  -- These rows are the only thing that knows which GPU is to be stopped.
  lock table public.training_runs, public.training_launches in access exclusive mode;
  select count(*) into live from public.training_runs where status in ('claimed', 'launched', 'running');
  select count(*) into open_launches from public.training_launches
  where ended_at is null and external_job_id is not null;
  if live + open_launches > 0 then
    raise exception using errcode = '55006',
      message = format('%s runs live and %s launches are not known to have ended: cancel their jobs, and let '
                       'a worker run until `lora-worker status` shows none', live, open_launches);
  end if;
end
$down$;

drop table if exists public.dataset_validations;
drop table if exists public.training_terms;
drop table if exists public.training_workers;
drop table if exists public.training_holds;
drop table if exists public.training_breakers;
drop table if exists public.training_endpoints;
drop table if exists public.training_waiting_users;
drop table if exists public.training_launches;
drop table if exists public.training_runs;
