-- Settling: one transaction closes a run, with everything that follows from its end.

-- Returns the GPU seconds of a launch: the measured ones, but at most the time from the run's first request until the
-- end of the launch, since it may be unknown which request the launch belongs to.
create or replace function public.training_launch_seconds(launch public.training_launches, measured numeric)
returns numeric
language sql stable set search_path = '' as $$
  select round(least(greatest(training_launch_seconds.measured, 0),
                     extract(epoch from coalesce((launch).ended_at, now()) - (
                       select min(p.posted_at) from public.training_launches p where p.run_id = (launch).run_id))), 3)
$$;

-- Inserts the cost record of a run, or updates it when more of its launches have ended. Returns what the whole job
-- has cost so far, in USD. The seconds are those of all launches of the run, also of those that lost the race; GPU,
-- price and limit are those of the launch. All records of a job together stay within its limit: the caller has locked
-- the job's row, so that no two bills of a job are computed at the same time. A run that used no GPU gets no record;
-- a run that checked in did use one, even if the launcher forgot it and nobody knows for how long. A deleted job is
-- billed, too, but not a deleted user, whose records are deleted with the user.
create or replace function public.training_bill_run(run public.training_runs, run_status text, storage_fee numeric)
returns numeric
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
  seconds numeric := (select coalesce(sum(l.gpu_seconds), 0) from public.training_launches l where l.run_id = run.id);
  price numeric := (run.launched_with->>'price_per_hour')::numeric;
  gpu_count int := (run.launched_with->>'gpu_count')::int;
  spent numeric := public.training_spent_cost(run);
  fee numeric;
  uncapped numeric;
  capped numeric;
  known public.cost_records;
  new_details jsonb;
begin
  update public.training_runs r set gpu_seconds = seconds where r.id = run.id;
  select * into known from public.cost_records c
  where c.user_id = run.user_id and c.cost_type = 'training_compute' and c.details->>'run_id' = run.id::text;
  if known.id is null and ((seconds = 0 and run.checked_in_at is null)
                           or not exists (select from auth.users u where u.id = run.user_id)) then
    return spent;
  end if;
  fee := coalesce(training_bill_run.storage_fee, (known.details->>'storage_fee')::numeric, 0);
  uncapped := round(seconds / 3600 * price * gpu_count + fee, 2);
  capped := least(uncapped, greatest((run.launched_with->>'max_cost')::numeric - spent + coalesce(known.amount, 0), 0));
  new_details := jsonb_build_object(
      'gpu_type', run.launched_with->>'gpu_type', 'gpu_count', gpu_count,
      'duration_hours', round(seconds / 3600, 6), 'gpu_seconds', seconds,
      'price_per_hour', price, 'outcome', training_bill_run.run_status, 'job_id', run.job_id,
      'run_id', run.id, 'attempt', run.attempt)
    || case when fee > 0 then jsonb_build_object('storage_fee', fee) else '{}' end
    || case when uncapped > capped then jsonb_build_object('amount_before_cap', uncapped) else '{}' end;
  if known.id is not null then
    update public.cost_records c set amount = capped, details = new_details where c.id = known.id;
  else
    insert into public.cost_records (user_id, job_id, cost_type, amount, details, billing_period)
    -- The column refers to the older queue's table only.
    values (run.user_id, (select j.id from public.training_jobs j where j.id = run.job_id), 'training_compute',
            capped, new_details, (now() at time zone 'utc')::date);
  end if;
  return spent - coalesce(known.amount, 0) + capped;
end
$$;

-- Adds the version and the parent to an artifact. The parent is the user's latest model of the same dataset that is
-- not deleted; the version is its version with the middle number increased by one. Without a parent the version is
-- 1.0.0. A lock makes runs that settle at the same time take turns, so that no two get the same version.
create or replace function public.training_lineage(run public.training_runs, dataset_id uuid, artifact jsonb)
returns jsonb
language plpgsql volatile set search_path = '' as $$
#variable_conflict use_column
declare
  parent_id uuid;
  numbers int[];
begin
  perform pg_advisory_xact_lock(hashtextextended(
    'model_artifacts ' || run.user_id || ' ' || training_lineage.dataset_id, 0));
  select a.id, v.numbers into parent_id, numbers
  from public.model_artifacts a,
       -- The order is by version, not by created_at, which is the start of a transaction and may have another order.
       lateral (select case when a.version ~ '^\d{1,6}(\.\d{1,6}){2}$'
                            then string_to_array(a.version, '.')::int[] end as numbers) v
  where a.user_id = run.user_id and a.dataset_id = training_lineage.dataset_id
    and a.deleted_at is null and a.id <> run.id
  order by v.numbers desc nulls last, a.created_at desc, a.id
  limit 1;
  return training_lineage.artifact || jsonb_build_object(
    'parent_model_id', parent_id,
    'version', coalesce(numbers[1] || '.' || numbers[2] + 1 || '.0', '1.0.0'));
end
$$;

-- Closes a run: the end of the run and of its job, artifact, cost and notifications are written together or not at
-- all. Returns the job's status afterwards; null if the lease is not held, and then nothing is changed. A repeated
-- call with the same lease token returns the same status, since the first answer may have been lost.
-- outcome: {run_status, job_status: completed|failed|cancelled|queued, fault, error_code, error_message,
--   blame: {kind, at_once, hold_seconds}, retry_after_seconds, waiting_stage, gpu_seconds, storage_fee,
--   launcher_ended, job: {columns}, points, most_points, points_are_whole, artifact: {columns, archive},
--   notices, notices_if_cancelled}
-- A cancelled job stays cancelled, whatever the outcome says, but its GPU time is billed.
create or replace function public.settle_run(run_id uuid, lease_token uuid, outcome jsonb) returns text
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  run public.training_runs;
  job jsonb;
  verdict text;
  run_status text;
  news jsonb;
  total_cost numeric;
  trained_on uuid;
  shown_gpu jsonb;
begin
  outcome := public.training_decoded(outcome);
  verdict := outcome->>'job_status';
  run_status := outcome->>'run_status';
  news := coalesce(outcome->'job', '{}');
  select * into run from public.training_held_run(settle_run.run_id, settle_run.lease_token);
  if not found then
    return (select r.settled_as from public.training_runs r
            where r.id = settle_run.run_id and r.lease_token = settle_run.lease_token);
  end if;
  job := public.training_job_row(run.queue, run.job_id, locked => true);
  if job is null or job->>'status' = 'cancelled' then
    verdict := 'cancelled';
    run_status := 'cancelled';
  elsif job->>'status' in ('completed', 'failed') then
    -- Another process has ended the job. It stays as it is; only the run is closed and billed.
    verdict := job->>'status';
  end if;
  if verdict not in ('completed', 'failed', 'cancelled', 'queued') then
    raise exception using errcode = 'PT400', message = 'job_status of an outcome must end the run';
  end if;

  update public.training_runs r
  set status = run_status, settled_as = verdict, ended_at = now(), lease_expires_at = now(), worker = null,
      fault = outcome->>'fault', error_code = outcome->>'error_code',
      error_message = outcome->>'error_message',
      next_attempt_at = case when verdict = 'queued'
        then now() + make_interval(secs => (outcome->>'retry_after_seconds')::double precision) end,
      upload_request = null, upload_grant = null
  where r.id = run.id;
  update public.training_launches l
  set ended_at = coalesce(l.ended_at, case when (outcome->>'launcher_ended')::boolean then now() end),
      gpu_seconds = greatest(l.gpu_seconds, public.training_launch_seconds(l, (outcome->>'gpu_seconds')::numeric))
  where l.run_id = run.id and l.external_job_id = run.external_job_id;

  if run_status = 'succeeded' then
    perform public.training_breakers_worked(run);
  else
    perform public.training_note_breakers(run, nullif(outcome->'blame', 'null'), outcome);
  end if;

  -- If another process ended the job, no model is stored, so there is no fee.
  total_cost := public.training_bill_run(run, run_status,
    case when verdict = 'completed' and job->>'status' <> 'completed' then (outcome->>'storage_fee')::numeric end);
  if job is null or job->>'status' in ('completed', 'failed') then
    return verdict;
  end if;
  perform public.training_store_points(run.id, outcome->'points', (outcome->>'most_points')::int,
                                       coalesce((outcome->>'points_are_whole')::boolean, false));
  if verdict = 'completed' and run.queue = 'training_jobs' then
    -- The dataset of the launch. The job may name another one now, and that of the launch may be deleted.
    trained_on := coalesce((select d.id from public.datasets d where d.id = (run.launched_with->>'dataset_id')::uuid),
                           (job->>'dataset_id')::uuid);
    insert into public.model_artifacts (id, user_id, job_id, dataset_id, name, version, description,
                                        quality_metrics, training_summary, configuration, artifacts,
                                        parent_model_id)
    select run.id, run.user_id, run.job_id, trained_on, a->>'name', a->>'version', a->>'description',
           a->'quality_metrics',
           coalesce(a->'training_summary', '{}') || jsonb_build_object('total_cost', total_cost),
           a->'configuration', a->'artifacts', (a->>'parent_model_id')::uuid
    from (select public.training_lineage(run, trained_on, outcome->'artifact') as a) x
    on conflict (job_id) do nothing;
  end if;
  if run.queue = 'training_jobs' and verdict <> 'queued' then
    -- For a job that was inserted before any price was known, and ended without a launch.
    shown_gpu := public.training_job_order(run.queue, run.job_id)->'gpu_config';
    shown_gpu := case when jsonb_typeof(shown_gpu) = 'object' then public.training_priced_gpu(
      (select t.document from public.training_terms t), shown_gpu) end;
    if public.training_json_fault(shown_gpu, 4096) is not null then
      shown_gpu := null;
    end if;
  end if;
  -- All columns are written in one update: in the newer queue, the first update that shows the job as completed
  -- starts its deployment, which needs the archive's path.
  perform public.training_write_job(run.queue, run.job_id, public.training_advanced(job, news) || case verdict
    when 'completed' then jsonb_build_object(
      'progress', 100, 'final_loss', news->'final_loss', 'training_time_seconds', news->'training_time_seconds',
      'adapter_file_path', outcome->'artifact'->'archive')
    when 'queued' then '{"progress": 0, "current_epoch": 0, "current_step": 0}'
    else '{}' end || case when shown_gpu is not null then jsonb_build_object('gpu_config', shown_gpu)
    else '{}' end || jsonb_build_object(
    'status', verdict,
    'current_stage', coalesce(case verdict when 'queued' then outcome->>'waiting_stage' end, verdict),
    'retry_count', case verdict when 'queued' then run.attempt else (job->>'retry_count')::int end,
    'completed_at', case when verdict <> 'queued' then coalesce((job->>'completed_at')::timestamptz, now()) end,
    'estimated_completion_at', case when verdict = 'completed' then now() end,
    'current_cost', total_cost,
    'final_cost', case when verdict <> 'queued' then total_cost end,
    'external_job_id', case when verdict <> 'queued' then job->>'external_job_id' end,
    'artifact_id', coalesce((select a.id from public.model_artifacts a where a.job_id = run.job_id),
                            (job->>'artifact_id')::uuid),
    'error_message', case verdict when 'failed' then outcome->>'error_message' end,
    'error_stack', null));
  perform public.training_notify(run, case
    when verdict = outcome->>'job_status' then outcome->'notices'
    when verdict = 'cancelled' then outcome->'notices_if_cancelled' end);
  return verdict;
end
$$;

call public.training_set_function_rights(open => false);
