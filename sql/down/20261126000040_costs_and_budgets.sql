-- Undoes 20261126000040_costs_and_budgets.sql.

create or replace function public.claim_training_jobs(
  worker text, max_jobs int, lease_seconds int, max_per_user int default null
) returns jsonb
-- A plan made while the tables were small would read whole tables for each job of a large batch.
language plpgsql security definer set search_path = '' set enable_seqscan = off as $$
#variable_conflict use_column
declare
  candidate record;
  found_some boolean;
  owner uuid;
  live_runs jsonb := '{}';
  live int;
  tried_jobs uuid[] := '{}';
  tried_users uuid[] := '{}';
  run_id uuid;
  claimed uuid[] := '{}';
begin
  perform public.training_check_lease_seconds(lease_seconds);
  perform public.training_keep_waiting_users();
  -- Jobs that others have locked are skipped. Each round looks at more jobs than the one before.
  for round in 1..20 loop
    exit when cardinality(claimed) >= claim_training_jobs.max_jobs;
    found_some := false;
    for candidate in
      select * from public.training_candidates(
        claim_training_jobs.max_per_user, claim_training_jobs.max_jobs - cardinality(claimed) + 10 * (round - 1),
        tried_jobs, tried_users)
      order by waits_since, id
    loop
      found_some := true;
      tried_jobs := tried_jobs || candidate.id;
      owner := case when candidate.user_id = '00000000-0000-0000-0000-000000000000'
                    then public.training_pipeline_maker(candidate.id) else candidate.user_id end;
      continue when owner = any (tried_users);
      live := (live_runs->>owner::text)::int;
      if live is null and claim_training_jobs.max_per_user is not null then
        if pg_try_advisory_xact_lock(hashtextextended('training_jobs ' || owner, 0)) then
          -- The count is exact only under the user's lock.
          live := public.training_live_runs(owner);
        end if;
      end if;
      if (coalesce(live, claim_training_jobs.max_per_user) >= claim_training_jobs.max_per_user) is true then
        tried_users := tried_users || owner;
        continue;
      end if;
      continue when not public.training_lock_waiting_job(candidate.queue, candidate.id);
      if owner is null then
        perform public.training_write_job(candidate.queue, candidate.id, jsonb_build_object(
          'status', 'failed', 'completed_at', now(),
          'error_message', 'The job belongs to no user, so nobody could get its result: sign in and start it again.'));
        continue;
      end if;
      insert into public.training_runs (queue, job_id, user_id, attempt, worker, lease_expires_at)
      select candidate.queue, candidate.id, owner, coalesce(max(r.attempt), 0) + 1, claim_training_jobs.worker,
             now() + make_interval(secs => claim_training_jobs.lease_seconds)
      from public.training_runs r
      where r.job_id = candidate.id
      returning id into run_id;
      perform public.training_write_job(candidate.queue, candidate.id, jsonb_build_object(
        'status', 'initializing', 'current_stage', 'initializing', 'external_job_id', null,
        'retry_count', (select r.attempt - 1 from public.training_runs r where r.id = run_id)));
      claimed := claimed || run_id;
      if live is not null then
        live_runs := live_runs || jsonb_build_object(owner, live + 1);
      end if;
      exit when cardinality(claimed) >= claim_training_jobs.max_jobs;
    end loop;
    exit when not found_some;
  end loop;
  return coalesce((select jsonb_agg(public.training_assignment(c.id) order by c.place)
                   from unnest(claimed) with ordinality c (id, place)), '[]');
end
$$;

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
drop function if exists public.training_bills(timestamptz);
drop function if exists public.training_bill_details(public.cost_records);
drop index if exists public.training_runs_ended_idx;
drop index if exists public.cost_records_billing_period_idx;
drop table if exists public.training_erased_costs;
drop table if exists public.training_reservations;
drop table if exists public.training_budgets;
