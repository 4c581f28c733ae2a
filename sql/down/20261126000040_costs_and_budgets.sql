-- Undoes 20261126000040_costs_and_budgets.sql.

create or replace function public.training_lock_waiting_job(queue text, job_id uuid) returns boolean
language plpgsql set search_path = '' as $$
#variable_conflict use_column
begin
  if training_lock_waiting_job.queue = 'training_jobs' then
    perform from public.training_jobs j
    where j.id = training_lock_waiting_job.job_id and j.status = 'queued' for update skip locked;
  else
    perform from public.pipeline_training_jobs j
    where j.id = training_lock_waiting_job.job_id and j.status = 'pending' for update skip locked;
  end if;
  return found and not exists (
    select from public.training_runs r
    where r.job_id = training_lock_waiting_job.job_id
      and (r.status in ('claimed', 'launched', 'running') or r.next_attempt_at > now()))
    and not exists (
      select from public.training_holds h
      where h.job_id = training_lock_waiting_job.job_id and h.held_until > now());
end
$$;

drop function if exists public.training_budget_state();
drop function if exists public.remove_training_budget(uuid);
drop function if exists public.set_training_budget(uuid, numeric);
drop function if exists public.training_fits_budget(text, uuid);
drop function if exists public.training_may_cost(text, uuid);
drop function if exists public.training_spending(uuid);
drop function if exists public.training_budget(uuid);
drop function if exists public.training_failures(timestamptz);
drop function if exists public.training_costs(timestamptz, timestamptz, text);
drop function if exists public.training_bills(timestamptz, uuid);
drop index if exists public.training_runs_ended_idx;
drop index if exists public.cost_records_billing_period_idx;
drop table if exists public.training_erased_costs;
drop table if exists public.training_reservations;
drop table if exists public.training_budgets;
