-- Adopting, renewing and releasing: who may write for a run, and until when.
-- Lock order everywhere: runs in order of id, then jobs. A claim takes only jobs without a live run.

-- Refuses leases that no clock can keep.
create or replace function public.training_check_lease_seconds(lease_seconds int) returns void
language plpgsql immutable set search_path = '' as $$
begin
  if lease_seconds is null or lease_seconds not between 1 and 3600 then
    raise exception using errcode = 'PT400', message = 'lease_seconds must lie between 1 and 3600';
  end if;
end
$$;

-- Locks the run for a write under a lease and answers it; no row when the lease is not held any more.
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

-- Where a run was launched, the latest first.
create or replace function public.training_endpoints(run_id uuid) returns jsonb
language sql stable set search_path = '' as $$
  select coalesce(jsonb_agg(e.endpoint order by e.latest desc), '[]')
  from (select l.endpoint, max(l.id) as latest from public.training_launches l
        where l.run_id = training_endpoints.run_id and l.endpoint is not null
        group by l.endpoint order by max(l.id) desc limit 10) e
$$;

-- What the job of a run has cost so far, all its runs together, in USD.
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

-- A worker's view of a run: the run with what its job's earlier runs say, the job, the dataset, and in words what
-- of the two can't be read. By token_sha256 an adopter sees whether it speaks the token that the run's trainer
-- holds. Whatever a user or a container can make long is left out, or bounded where it is read.
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
    -- A job that somebody changes while it is trained is still what its trainer was sent.
    ordered := ordered - 'unreadable' || (
      select jsonb_object_agg(w.key, w.value) from jsonb_each(run.launched_with) w
      where w.key in ('dataset_id', 'dataset_file_path', 'hyperparameters', 'gpu_config'));
  end if;
  dataset := coalesce(
    public.training_dataset_row(public.training_order_dataset(ordered, (job->>'user_id')::uuid)),
    -- A job of the newer queue may name no more than a file in the bucket for training files.
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
    'job', case when job is not null then jsonb_build_object(
      'id', job->'id', 'user_id', job->'user_id', 'dataset_id', ordered->'dataset_id', 'preset_id', job->'preset_id',
      'hyperparameters', ordered->'hyperparameters', 'gpu_config', ordered->'gpu_config', 'status', job->'status',
      'total_epochs', job->'total_epochs', 'total_steps', job->'total_steps') end,
    'dataset', dataset - 'unreadable',
    'unreadable', nullif(concat_ws(', ', ordered->>'unreadable', dataset->>'unreadable'), ''));
end
$$;

-- Takes up to max_runs live runs whose lease ran out, each with a new token: the former holder's
-- writes change nothing from here on.
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

-- Renews all leases of a worker in one call and says what changed beside it: leases is
-- [{run_id, lease_token}]; a lease that is lost or ran out answers held = false and stays lost.
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
      -- As many as fit a megabyte, and others the next time: containers write them.
      select a.id, a.upload_request,
             sum(octet_length(a.upload_request::text)) over (order by random() rows unbounded preceding) as bytes
      from public.training_runs a
      where a.id in (select (l->>'run_id')::uuid from jsonb_array_elements(leases) l)
        and a.upload_request is not null and a.upload_grant is null
    ) u on u.id = r.id and u.bytes <= 1000000), '[]');
end
$$;

-- Counts that a worker begins work on a run that might kill the worker, and answers how often that has
-- been; null when the lease is lost. A run that kills every worker shows here, and only that run: the
-- count begins anew when the launch is known, and a worker that stops in good order takes its own back.
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

-- Gives up every lease of a worker that stops in good order; the next worker adopts at once.
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
