-- Leases: which worker may write for a run, and until when. All functions lock in the same order to avoid deadlocks:
-- runs by id, then jobs. A claim takes only jobs without a live run.

-- Rejects a lease_seconds outside the allowed range.
create or replace function public.training_check_lease_seconds(lease_seconds int) returns void
language plpgsql immutable set search_path = '' as $$
begin
  if lease_seconds is null or lease_seconds not between 1 and 3600 then
    raise exception using errcode = 'PT400', message = 'lease_seconds must lie between 1 and 3600';
  end if;
end
$$;

-- Locks a run and returns it, if the lease is still held; otherwise no row.
create or replace function public.training_held_run(run_id uuid, lease_token uuid)
returns setof public.training_runs
language sql volatile set search_path = '' as $$
  select r.* from public.training_runs r
  where r.id = training_held_run.run_id
    and r.lease_token = training_held_run.lease_token
    and r.lease_expires_at > now()
    and r.status in ('claimed', 'launched', 'running')
  for update
$$;

-- Returns the endpoints where a run was launched, the latest first, ten at most.
create or replace function public.training_endpoints(run_id uuid) returns jsonb
language sql stable set search_path = '' as $$
  select coalesce(jsonb_agg(e.endpoint order by e.latest desc), '[]')
  from (select l.endpoint, max(l.id) as latest from public.training_launches l
        where l.run_id = training_endpoints.run_id and l.endpoint is not null
        group by l.endpoint order by max(l.id) desc limit 10) e
$$;

-- Returns what all runs of this run's job have cost so far, in USD.
create or replace function public.training_spent_cost(run public.training_runs) returns numeric
language plpgsql stable set search_path = '' as $$
begin
  if run.queue = 'training_jobs' then
    return (select coalesce(sum(c.amount), 0) from public.cost_records c
            where c.job_id = run.job_id and c.cost_type = 'training_compute');
  end if;
  return (select coalesce(sum(c.amount), 0) from public.cost_records c
          where c.user_id = run.user_id and c.details->>'job_id' = run.job_id::text
            and c.cost_type = 'training_compute');
end
$$;

-- The columns of a job that a worker gets: some of its row, some of what was ordered with it. Null without a job. A
-- later migration that gives the worker one more column replaces this function alone.
create or replace function public.training_assigned_job(job jsonb, ordered jsonb) returns jsonb
language sql immutable set search_path = '' as $$
  select case when training_assigned_job.job is not null then jsonb_build_object(
    'id', training_assigned_job.job->'id', 'user_id', training_assigned_job.job->'user_id',
    'dataset_id', training_assigned_job.ordered->'dataset_id', 'preset_id', training_assigned_job.job->'preset_id',
    'hyperparameters', training_assigned_job.ordered->'hyperparameters',
    'gpu_config', training_assigned_job.ordered->'gpu_config', 'status', training_assigned_job.job->'status',
    'total_epochs', training_assigned_job.job->'total_epochs',
    'total_steps', training_assigned_job.job->'total_steps') end
$$;

-- Returns a run as a worker sees it: the run with totals of the job's earlier runs, the job, the dataset, and in
-- words what of job and dataset can't be read. By token_sha256 a worker that adopts the run sees whether it knows the
-- token of the run's trainer. Values that a user or a container can make very long are left out or cut.
create or replace function public.training_assignment(run_id uuid) returns jsonb
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
declare
  run public.training_runs;
  job jsonb;
  ordered jsonb;
  dataset jsonb;
begin
  select * into run from public.training_runs r where r.id = training_assignment.run_id;
  job := public.training_job_row(run.queue, run.job_id);
  ordered := public.training_job_order(run.queue, run.job_id);
  if run.launched_with ? 'hyperparameters' then
    -- The trainer works with what it was sent, even if the job's row has changed since.
    ordered := ordered - 'unreadable' || (
      select jsonb_object_agg(w.key, w.value) from jsonb_each(run.launched_with) w
      where w.key in ('dataset_id', 'dataset_file_path', 'hyperparameters', 'gpu_config'));
  end if;
  dataset := coalesce(
    public.training_dataset_row(public.training_order_dataset(ordered, (job->>'user_id')::uuid)),
    -- A job of the newer queue may name only a file in the bucket for training files.
    case when ordered->>'dataset_file_path' is not null then jsonb_build_object(
      'id', job->'id', 'name', coalesce(ordered->>'dataset_name', 'your dataset'), 'status', 'ready',
      'training_ready', true, 'storage_bucket', 'training-files', 'storage_path', ordered->'dataset_file_path') end);
  return jsonb_build_object(
    'run', to_jsonb(run) - array['upload_grant', 'upload_request', 'former_execution_ids', 'point_steps']
      || jsonb_build_object(
      'transient_failures', (select count(*) from public.training_runs e
                             where e.job_id = run.job_id and e.fault = 'transient'),
      'infrastructure_failures', (select count(*) from public.training_runs e
                                  where e.job_id = run.job_id and e.fault = 'infrastructure'),
      'launches', (select count(*) from public.training_launches l where l.run_id = run.id),
      'endpoints', public.training_endpoints(run.id),
      'posted_seconds_ago', (select extract(epoch from now() - max(l.posted_at))
                             from public.training_launches l where l.run_id = run.id),
      'spent_cost', public.training_spent_cost(run),
      'spent_seconds', (select coalesce(sum(e.gpu_seconds), 0) from public.training_runs e
                        where e.job_id = run.job_id and e.id <> run.id),
      'used_seconds', extract(epoch from run.last_seen_at - run.checked_in_at),
      'dataset_patience_seconds', public.training_job_patience(run.queue, run.job_id, (dataset->>'id')::uuid),
      'age_seconds', extract(epoch from now() - run.created_at)),
    'job', public.training_assigned_job(job, ordered),
    'dataset', dataset - 'unreadable',
    'unreadable', nullif(concat_ws(', ', ordered->>'unreadable', dataset->>'unreadable'), ''));
end
$$;

-- Adopts up to max_runs live runs whose lease has expired. Each gets a new lease token, so that writes of its former
-- holder have no effect.
create or replace function public.adopt_training_runs(worker text, max_runs int, lease_seconds int)
returns jsonb
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  adopted uuid[];
begin
  perform public.training_check_lease_seconds(lease_seconds);
  with expired as (
    select r.id from public.training_runs r
    where r.status in ('claimed', 'launched', 'running') and r.lease_expires_at <= now()
    order by r.lease_expires_at
    limit greatest(adopt_training_runs.max_runs, 0)
    for update skip locked
  ), taken as (
    update public.training_runs r
    set worker = adopt_training_runs.worker,
        lease_token = gen_random_uuid(),
        lease_expires_at = now() + make_interval(secs => adopt_training_runs.lease_seconds)
    from expired e where r.id = e.id
    returning r.id, r.created_at
  )
  select array_agg(id order by created_at, id) into adopted from taken;
  return coalesce(
    (select jsonb_agg(public.training_assignment(id)) from unnest(adopted) as id), '[]');
end
$$;

-- Renews all leases of a worker in one call, and returns what has changed: leases is [{run_id, lease_token}]. A lease
-- that is lost or has expired is returned with held = false, and is not renewed.
create or replace function public.renew_training_runs(leases jsonb, lease_seconds int) returns jsonb
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
begin
  perform public.training_check_lease_seconds(lease_seconds);
  leases := public.training_decoded(leases);
  perform from public.training_runs r
  where r.id in (select (l->>'run_id')::uuid from jsonb_array_elements(leases) l)
  order by r.id for update;
  update public.training_runs r
  set lease_expires_at = now() + make_interval(secs => renew_training_runs.lease_seconds)
  from jsonb_array_elements(leases) l
  where r.id = (l->>'run_id')::uuid
    and r.lease_token = (l->>'lease_token')::uuid
    and r.lease_expires_at > now()
    and r.status in ('claimed', 'launched', 'running');
  return coalesce((
    select jsonb_agg(jsonb_build_object(
      'run_id', l->>'run_id',
      'held', coalesce(r.lease_token = (l->>'lease_token')::uuid
                       and r.lease_expires_at > now()
                       and r.status in ('claimed', 'launched', 'running'), false),
      'status', r.status,
      'settled_as', case when r.lease_token = (l->>'lease_token')::uuid then r.settled_as end,
      'cancel_requested', coalesce(public.training_job_status(r.queue, r.job_id), 'cancelled') = 'cancelled',
      'external_job_id', r.external_job_id,
      'endpoint', r.endpoint,
      'checked_in_at', r.checked_in_at,
      'last_seen_at', r.last_seen_at,
      'seen_seconds_ago', extract(epoch from now() - r.last_seen_at),
      'used_seconds', extract(epoch from r.last_seen_at - r.checked_in_at),
      'posted_seconds_ago', (select extract(epoch from now() - min(o.posted_at)) from public.training_launches o
                             where o.run_id = r.id),
      'upload_request', u.upload_request))
    from jsonb_array_elements(leases) l
    left join public.training_runs r on r.id = (l->>'run_id')::uuid
    left join (
      -- Requests are written by containers, so one answer contains at most one megabyte of them. The others follow in
      -- later answers; the order is random so that each gets its turn.
      select a.id, a.upload_request,
             sum(octet_length(a.upload_request::text)) over (order by random() rows unbounded preceding) as bytes
      from public.training_runs a
      where a.id in (select (l->>'run_id')::uuid from jsonb_array_elements(leases) l)
        and a.upload_request is not null and a.upload_grant is null
    ) u on u.id = r.id and u.bytes <= 1000000), '[]');
end
$$;

-- Counts that a worker starts a step of a run that could crash the worker, and returns the count; null if the lease
-- is lost. The count identifies a run that crashes every worker. It is set to 0 when the launch is known, and a
-- worker that stops in an orderly way takes back its own count.
create or replace function public.begin_handling(run_id uuid, lease_token uuid) returns int
language sql security definer set search_path = '' as $$
  update public.training_runs r
  set handlings = r.handlings + 1
  where r.id = begin_handling.run_id
    and r.lease_token = begin_handling.lease_token
    and r.lease_expires_at > now()
    and r.status in ('claimed', 'launched', 'running')
  returning r.handlings
$$;

-- Releases all leases of a worker that stops in an orderly way, so that other workers can adopt its runs at once.
create or replace function public.release_training_runs(worker text) returns int
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  released int;
begin
  perform from public.training_runs r
  where r.worker = release_training_runs.worker and r.status in ('claimed', 'launched', 'running')
  order by r.id for update;
  update public.training_runs r
  set worker = null, lease_expires_at = now(), handlings = greatest(r.handlings - 1, 0)
  where r.worker = release_training_runs.worker and r.status in ('claimed', 'launched', 'running');
  get diagnostics released = row_count;
  return released;
end
$$;

call public.training_set_function_rights(open => false);
