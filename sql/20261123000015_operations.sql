-- Operations: cancelling jobs, finding stray launches, and showing the state of the queue.

-- Cancels a job of either queue: the caller's own, or any job for the service role. Returns whether this call
-- cancelled it; a job that has ended stays as it is. The worker stops the GPU in its next cycle, as it does when the
-- application sets the status itself.
create or replace function public.cancel_training_job(job_id uuid) returns boolean
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  queue text;
  job jsonb;
begin
  foreach queue in array array['training_jobs', 'pipeline_training_jobs'] loop
    job := public.training_job_row(queue, cancel_training_job.job_id, locked => true);
    if job->>'status' in ('queued', 'initializing', 'running')
       -- `role` is still the caller's here, but current_user is the owner of this function.
       and ((job->>'user_id')::uuid = auth.uid()
            or current_setting('role', true) in ('service_role', 'none', 'postgres')) then
      perform public.training_write_job(queue, cancel_training_job.job_id, jsonb_build_object(
        'status', 'cancelled', 'current_stage', 'cancelled', 'completed_at', now(),
        'final_cost', coalesce((job->>'current_cost')::numeric, 0)));
      return true;
    end if;
  end loop;
  return false;
end
$$;

-- Returns launches that may still cost money but belong to no live run: their run has ended, or another launch of it
-- owns it.
create or replace function public.training_strays() returns setof public.training_launches
language sql stable set search_path = '' as $$
  select l.* from public.training_launches l
  join public.training_runs r on r.id = l.run_id
  where l.ended_at is null and l.external_job_id is not null
    and (r.status not in ('claimed', 'launched', 'running')
      or (r.checked_in_at is not null and r.external_job_id <> l.external_job_id))
$$;

-- Returns the strays that were looked at the longest ago. The worker cancels each at its launcher until that reports
-- its end. With this order all get their turn, even if many of them never end.
create or replace function public.stray_launches(max_launches int) returns jsonb
language sql volatile security definer set search_path = '' as $$
  with chosen as (
    select l.id from public.training_launches l
    where l.id in (select s.id from public.training_strays() s)
    order by coalesce(l.looked_at, l.posted_at), l.id
    limit stray_launches.max_launches
    for update skip locked
  ), given as (
    update public.training_launches l set looked_at = clock_timestamp()
    from chosen c where l.id = c.id
    returning l.*
  )
  select coalesce(jsonb_agg(jsonb_build_object(
    'run_id', g.run_id, 'launcher', g.launcher, 'endpoint', g.endpoint, 'external_job_id', g.external_job_id,
    'endpoints', public.training_endpoints(g.run_id),
    'age_seconds', extract(epoch from now() - g.posted_at)) order by g.id), '[]')
  from given g
$$;

-- Records that launches have ended: [{external_job_id, gpu_seconds}]. If the run is already settled, its cost record
-- is updated with these seconds, or inserted if it was settled without GPU time, and the job's cost grows with it.
-- The actual_cost of a completed job in the newer queue is not changed: an update of a completed row would start its
-- deployment again.
create or replace function public.close_launches(reports jsonb) returns int
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  report record;
  run public.training_runs;
  job jsonb;
  total_cost numeric;
  closed int := 0;
begin
  reports := public.training_decoded(reports);
  -- Runs are locked first, in order of id, as everywhere. So a run that is being settled is billed either with these
  -- seconds or before them.
  perform from public.training_runs r
  where r.id in (select l.run_id from public.training_launches l
                 where l.external_job_id in (select c->>'external_job_id' from jsonb_array_elements(reports) c))
  order by r.id for update;
  for report in
    select l.id, l.run_id, r.queue, r.job_id, (c->>'gpu_seconds')::numeric as gpu_seconds
    from jsonb_array_elements(reports) c
    join public.training_launches l on l.external_job_id = c->>'external_job_id'
    join public.training_runs r on r.id = l.run_id
    order by r.job_id, l.id
  loop
    update public.training_launches l
    set ended_at = now(),
        gpu_seconds = greatest(l.gpu_seconds, public.training_launch_seconds(l, report.gpu_seconds))
    where l.id = report.id and l.ended_at is null;
    continue when not found;
    closed := closed + 1;
    select * into run from public.training_runs r where r.id = report.run_id;
    continue when run.ended_at is null;
    job := public.training_job_row(run.queue, run.job_id, locked => true);
    total_cost := public.training_bill_run(run, run.status, null);
    if run.queue = 'training_jobs' then
      update public.training_jobs j
      set current_cost = greatest(j.current_cost, total_cost),
          final_cost = case when j.final_cost is not null then total_cost end
      where j.id = run.job_id and (j.current_cost < total_cost or j.final_cost < total_cost);
    elsif ((job->>'current_cost')::numeric >= total_cost) is not true then
      perform public.training_write_job(run.queue, run.job_id, jsonb_build_object('current_cost', total_cost));
    end if;
  end loop;
  return closed;
end
$$;

-- Returns the state of both queues for operators: how many jobs wait and since when, what is running, and why each of
-- the first hundred waiting jobs waits. All times are computed with the database's clock.
create or replace function public.queue_health() returns jsonb
language plpgsql stable security definer set search_path = '' as $$
begin
  return (
    with waiting as (
      select j.id, j.user_id, j.current_stage, j.retry_count,
        -- A row may contain 'infinity', for which no waiting time can be computed.
        case when isfinite(j.created_at) then j.created_at else now() end as created_at,
        (select max(r.next_attempt_at) from public.training_runs r
         where r.job_id = j.id and r.next_attempt_at > now()) as next_attempt_at,
        (select h.reason from public.training_holds h where h.job_id = j.id and h.held_until > now()) as hold
      from public.training_waiting_jobs() j
    ), live as (
      select r.* from public.training_runs r where r.status in ('claimed', 'launched', 'running')
    )
    select jsonb_build_object(
      'queued', (select count(*) from waiting),
      'oldest_wait_seconds', (select extract(epoch from now() - min(created_at)) from waiting
                              where next_attempt_at is null),
      'live_runs', (select count(*) from live),
      'expired_leases', (select count(*) from live where lease_expires_at <= now()),
      'stray_launches', (select count(*) from (select from public.training_strays() limit 1000) s),
      -- All launches that may cost money now, by endpoint. A launch without an answer from the launcher counts as
      -- one.
      'endpoints', coalesce((select jsonb_agg(e) from (
        select l.launcher, l.endpoint, count(*) as launches,
          count(*) filter (where r.status not in ('claimed', 'launched', 'running')) as without_run
        from (select o.* from public.training_launches o where o.ended_at is null and o.external_job_id is not null
              union all
              select o.* from live join public.training_launches o on o.run_id = live.id
              where o.ended_at is null and o.external_job_id is null) l
        join public.training_runs r on r.id = l.run_id
        group by l.launcher, l.endpoint order by count(*) desc limit 20) e), '[]'),
      'held', public.training_held(),
      'waiting', coalesce((select jsonb_agg(w) from (
        select id as job_id, retry_count, extract(epoch from now() - created_at) as wait_seconds,
          case when hold is not null then hold
               when next_attempt_at is not null then 'retry at ' || to_char(
                 next_attempt_at at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
                 || coalesce(' (' || current_stage || ')', '')
               when current_stage = 'waiting_for_dataset' then 'its dataset, which is being uploaded or validated'
               when no_worker is not null then 'a worker: ' || no_worker || '; start one'
               when live_of_user >= most_of_user then 'its user has ' || live_of_user || ' live runs, and may have no more'
               else 'a free worker slot' end as waits_for
        from (select * from waiting order by created_at, id limit 100) waiting
        cross join (select public.training_no_worker() as no_worker) n
        -- The highest limit of all workers; null if one of them has no limit.
        cross join (select case when bool_and(s.max_per_user is not null) then max(s.max_per_user) end as most_of_user
                    from public.training_living_workers() s) m
        cross join lateral (select count(*) as live_of_user from public.training_runs r
                            where r.user_id = waiting.user_id and r.status in ('claimed', 'launched', 'running')) l
        order by created_at, id) w), '[]'),
      'no_worker', public.training_no_worker(),
      'had_worker', exists (select from public.training_workers),
      'workers', coalesce((select jsonb_agg(w) from (
        select s.name, s.version, extract(epoch from now() - s.started_at) as running_seconds,
          extract(epoch from now() - s.seen_at) as seen_seconds_ago, s.slots, s.held, s.max_per_user, s.problem,
          s.single_pass
        from public.training_living_workers() s
        order by s.seen_at desc, s.name limit 50) w), '[]'),
      'runs', coalesce((select jsonb_agg(w) from (
        select l.id as run_id, l.job_id, l.attempt, l.status, l.worker, l.stage, l.launcher, l.endpoint,
          l.external_job_id, l.problem,
          (j.row->>'progress')::numeric as progress, (j.row->>'current_step')::int as current_step,
          (j.row->>'total_steps')::int as total_steps, (j.row->>'current_cost')::numeric as current_cost,
          extract(epoch from l.lease_expires_at - now()) as lease_seconds_left,
          extract(epoch from now() - l.created_at) as age_seconds,
          extract(epoch from now() - l.last_seen_at) as seen_seconds_ago
        from live l cross join lateral (select public.training_job_row(l.queue, l.job_id) as row) j
        order by l.created_at limit 500) w), '[]')));
end
$$;

-- Returns names of uploads that are no longer needed, for the worker to delete: those of runs that ended more than
-- three hours ago, or that never existed. Settling copies what is kept, and upload URLs stay valid for up to two
-- hours after the run.
create or replace function public.abandoned_uploads(bucket text, max_objects int) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  names jsonb := '[]';
begin
  if to_regclass('storage.objects') is not null then
    execute $query$
      select coalesce(jsonb_agg(u.name), '[]') from (
        select o.name from storage.objects o
        where o.bucket_id = $1 and o.name like 'uploads/%' and o.updated_at < now() - interval '3 hours'
          and not exists (
            select from public.training_runs r
            where r.id = case when split_part(o.name, '/', 2) ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
                              then split_part(o.name, '/', 2)::uuid end
              and (r.status in ('claimed', 'launched', 'running') or r.ended_at > now() - interval '3 hours'))
        order by o.name limit least(greatest($2, 0), 1000)) u
    $query$ into names using abandoned_uploads.bucket, abandoned_uploads.max_objects;
  end if;
  return names;
end
$$;

call public.training_set_function_rights(open => false);
