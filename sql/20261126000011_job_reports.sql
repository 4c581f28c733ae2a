-- What operators read of jobs: lists of them, everything about one, and the state of the queue.

-- Records that a stage of a run begins, unless it is the run's latest one. A run has at most 50 of them, since containers
-- write them.
create or replace function public.training_enter_stage(run_id uuid, stage text, begun_at timestamptz) returns void
language sql volatile set search_path = '' as $$
  insert into public.training_stages (run_id, begun_at, stage)
  select training_enter_stage.run_id, training_enter_stage.begun_at, left(training_enter_stage.stage, 50)
  where (select count(*) from public.training_stages s where s.run_id = training_enter_stage.run_id) < 50
    and left(training_enter_stage.stage, 50) is distinct from (
      select s.stage from public.training_stages s where s.run_id = training_enter_stage.run_id
      order by s.begun_at desc limit 1)
  on conflict do nothing
$$;

-- Records a stage of which the worker tells, for a trainer whose heartbeats don't. What it tells may be late, so a stage
-- that is known already does not begin again.
create or replace function public.training_note_stage() returns trigger
language plpgsql set search_path = '' as $$
begin
  if old.checked_in_at is null and new.checked_in_at is not null then
    perform public.training_enter_stage(new.id, 'setup', new.checked_in_at);
  elsif new.checked_in_at is not null and new.stage is not null
     -- The worker may still write the stage of a launch that waits for its GPU.
     and new.stage not in ('initializing', 'waiting_for_gpu_provider', 'queued_on_gpu', 'waiting_for_gpu')
     and not exists (select from public.training_stages s where s.run_id = new.id and s.stage = left(new.stage, 50)) then
    perform public.training_enter_stage(new.id, new.stage, clock_timestamp());
  end if;
  return null;
end
$$;

-- As before; the stage of the progress is recorded, too. A trainer sends a heartbeat at once when a stage begins.
create or replace function public.heartbeat_run(token text, external_job_id text, execution_id uuid, progress jsonb)
returns jsonb
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  answer jsonb;
  stored boolean := false;
  run_id uuid;
begin
  answer := public.check_in_run(heartbeat_run.token, heartbeat_run.external_job_id, heartbeat_run.execution_id);
  -- The size comes first: it is known without reading the value.
  if (answer->>'may_train')::boolean and pg_column_size(heartbeat_run.progress) <= 320000 then
    progress := public.training_decoded(heartbeat_run.progress);
    if jsonb_typeof(heartbeat_run.progress) = 'object'
       and public.training_json_fault(heartbeat_run.progress, 40000) is null then
      run_id := (select r.id from public.training_run_of_token(heartbeat_run.token) r);
      insert into public.training_progress as p (run_id, progress, bytes)
      values (run_id, heartbeat_run.progress, octet_length(heartbeat_run.progress::text))
      on conflict (run_id) do update
      set progress = excluded.progress, bytes = excluded.bytes, number = p.number + 1, reported_at = clock_timestamp();
      if heartbeat_run.progress->>'stage' ~ '^[a-z_]{1,50}$' then
        perform public.training_enter_stage(run_id, heartbeat_run.progress->>'stage', clock_timestamp());
      end if;
      stored := true;
    end if;
  end if;
  return answer || jsonb_build_object('progress_stored', stored);
end
$$;

do $migration$
declare
  listed text;
begin
  if not exists (select from pg_trigger
                 where tgrelid = 'public.training_runs'::regclass and tgname = 'training_note_stage') then
    create trigger training_note_stage after update on public.training_runs for each row
    when (old.stage is distinct from new.stage or old.checked_in_at is distinct from new.checked_in_at)
    execute function public.training_note_stage();
  end if;
  -- The newer queue's table belongs to the application. Its index is created by the first `lora-worker migrate` after
  -- the table exists.
  foreach listed in array array['training_jobs', 'pipeline_training_jobs'] loop
    if to_regclass('public.' || listed) is not null
       and to_regclass(format('public.%s_listed_idx', listed)) is null then
      execute format('create index %s_listed_idx on public.%1$I ((coalesce(created_at, ''infinity'')), id)', listed);
    end if;
  end loop;
end
$migration$;

-- Returns a timestamp for JSON: null for those that no calendar has.
create or replace function public.training_moment(moment timestamptz) returns timestamptz
language sql immutable set search_path = '' as $$
  select case when isfinite(moment) then moment end
$$;

-- Returns why a waiting job waits, as the end of a sentence that begins with "waits for". no_worker is the answer of
-- training_no_worker, most_of_user the highest number of live runs that any worker allows a user (null: no limit).
create or replace function public.training_waits_for(
  job_id uuid, user_id uuid, current_stage text, no_worker text, most_of_user int
) returns text
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
declare
  next_attempt_at timestamptz := (
    select max(r.next_attempt_at) from public.training_runs r
    where r.job_id = training_waits_for.job_id and r.next_attempt_at > now());
  barred text := public.training_barred(training_waits_for.user_id);
  held text := (select h.reason from public.training_holds h
                where h.job_id = training_waits_for.job_id and h.held_until > now());
  live int;
begin
  if barred is not null then
    return barred;
  elsif held is not null then
    return held;
  elsif next_attempt_at is not null then
    return 'retry at ' || to_char(next_attempt_at at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
      || coalesce(' (' || training_waits_for.current_stage || ')', '');
  elsif training_waits_for.current_stage = 'waiting_for_dataset' then
    return 'its dataset, which is being uploaded or validated';
  elsif training_waits_for.no_worker is not null then
    return 'a worker: ' || training_waits_for.no_worker || '; start one';
  end if;
  live := (select count(*) from public.training_runs r
           where r.user_id = training_waits_for.user_id and r.status in ('claimed', 'launched', 'running'));
  return case when live >= training_waits_for.most_of_user
              then case live when 1 then 'its user''s live run' else 'one of its user''s ' || live || ' live runs' end
                   || ' to end, since a user may have no more' else 'a free worker slot' end;
end
$$;

-- Returns the highest number of live runs that any living worker allows a user; null if one of them has no limit.
create or replace function public.training_most_of_user() returns int
language sql stable set search_path = '' as $$
  select case when bool_and(w.max_per_user is not null) then max(w.max_per_user) end
  from public.training_living_workers() w
$$;

-- Returns a job of either queue as operators see it in a list; null if there is no such job. Whatever a user can make
-- long is cut.
create or replace function public.training_job_entry(queue text, job_id uuid, no_worker text, most_of_user int)
returns jsonb
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
declare
  entry jsonb;
  latest public.training_runs;
begin
  if training_job_entry.queue = 'training_jobs' then
    entry := (
      select jsonb_build_object(
        'job_id', j.id, 'user_id', j.user_id, 'name', left(d.name, 200), 'status', left(j.status, 50),
        'stage', left(j.current_stage, 50), 'progress', j.progress, 'current_step', j.current_step,
        'total_steps', j.total_steps,
        'base_model', case when public.training_json_fault(j.hyperparameters, 8192) is null
                           then left(j.hyperparameters->>'base_model', 300) end,
        'created_at', public.training_moment(j.created_at), 'started_at', public.training_moment(j.started_at),
        'completed_at', public.training_moment(j.completed_at),
        'estimated_completion_at', public.training_moment(j.estimated_completion_at),
        'current_cost', nullif(j.current_cost, 'NaN'), 'final_cost', nullif(j.final_cost, 'NaN'),
        'error_message', left(j.error_message, 2000), 'retry_count', j.retry_count)
      from public.training_jobs j left join public.datasets d on d.id = j.dataset_id
      where j.id = training_job_entry.job_id);
  elsif to_regclass('public.pipeline_training_jobs') is not null then
    entry := (
      select jsonb_build_object(
        'job_id', j.id, 'user_id', coalesce(j.user_id, public.training_pipeline_maker(j.id)),
        'name', left(j.job_name, 200),
        'status', case j.status when 'pending' then 'queued' else left(j.status, 50) end,
        'stage', case when j.status = 'pending' and public.training_dataset_patience(
                   j.dataset_id, j.created_at::timestamptz) > 0 then 'waiting_for_dataset' end,
        'progress', j.progress, 'current_step', j.current_step, 'total_steps', j.total_steps, 'base_model', null,
        'created_at', public.training_moment(j.created_at::timestamptz),
        'started_at', public.training_moment(j.started_at::timestamptz),
        'completed_at', public.training_moment(j.completed_at::timestamptz), 'estimated_completion_at', null,
        'current_cost', nullif(j.actual_cost, 'NaN'),
        'final_cost', case when j.status in ('completed', 'failed', 'cancelled') then nullif(j.actual_cost, 'NaN') end,
        'error_message', left(j.error_message, 2000), 'retry_count', null)
      from public.pipeline_training_jobs j
      where j.id = training_job_entry.job_id);
  end if;
  if entry is null then
    return null;
  end if;
  select * into latest from public.training_runs r
  where r.job_id = training_job_entry.job_id order by r.attempt desc limit 1;
  return entry || jsonb_build_object(
    'queue', training_job_entry.queue,
    'stage', coalesce(entry->>'stage', case when latest.ended_at is null then left(latest.stage, 50) end),
    'base_model', coalesce(entry->>'base_model', latest.base_model,
                           (select left(t.document->>'default_base_model', 300) from public.training_terms t)),
    'retry_count', coalesce((entry->>'retry_count')::int, latest.attempt - 1, 0),
    'error_code', case when entry->>'status' not in ('queued', 'completed') then latest.error_code end,
    'run_id', latest.id, 'attempt', latest.attempt,
    'waits_for', case when entry->>'status' = 'queued' then public.training_waits_for(
      training_job_entry.job_id, (entry->>'user_id')::uuid, entry->>'stage', training_job_entry.no_worker,
      training_job_entry.most_of_user) end);
end
$$;

-- Lists the jobs of both queues, newest first: {jobs: [...], next_cursor}. filter is {statuses: [text], user_id,
-- base_model, error_code, since, until, id_prefix, cursor, limit}, each of which may be missing; the limit is 50, and
-- 200 at most. next_cursor is the cursor of the next page; null on the last one.
create or replace function public.list_training_jobs(filter jsonb) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
#variable_conflict use_column
declare
  asked jsonb := coalesce(public.training_decoded(list_training_jobs.filter), '{}');
  statuses text[];
  of_user uuid;
  since timestamptz;
  until timestamptz;
  most int;
  before timestamptz;
  before_id uuid;
  hex text := replace(asked->>'id_prefix', '-', '');
  least_id uuid;
  greatest_id uuid;
  no_worker text := public.training_no_worker();
  most_of_user int := public.training_most_of_user();
  found_jobs jsonb := '[]';
  next_cursor text;
  candidate record;
begin
  begin
    statuses := case when jsonb_typeof(asked->'statuses') = 'array'
                     then array(select jsonb_array_elements_text(asked->'statuses')) end;
    of_user := asked->>'user_id';
    since := coalesce((asked->>'since')::timestamptz, '-infinity');
    until := coalesce((asked->>'until')::timestamptz, 'infinity');
    most := least(greatest(coalesce((asked->>'limit')::int, 50), 1), 200);
    before := split_part(asked->>'cursor', '|', 1);
    before_id := split_part(asked->>'cursor', '|', 2);
  exception when data_exception then
    raise exception using errcode = 'PT400',
      message = 'a value of filter can''t be read: user_id is an id, since and until are times, limit is a number, '
                'and cursor is as this function returned it';
  end;
  if hex is not null then
    if hex !~ '^[0-9a-f]{1,32}$' then
      return jsonb_build_object('jobs', found_jobs, 'next_cursor', null);
    end if;
    least_id := rpad(hex, 32, '0')::uuid;
    greatest_id := rpad(hex, 32, 'f')::uuid;
  end if;
  for candidate in execute
    'select queue, id, created_at from (
       (select ''training_jobs'' as queue, j.id, coalesce(j.created_at, ''infinity'') as created_at
        from public.training_jobs j
        where ' || (case when statuses is null then 'true' else 'j.status = any ($1)' end) || '
          and ($2 is null or j.user_id = $2)
          and ($4 is null or $4 = (select r.error_code from public.training_runs r where r.job_id = j.id
                                   order by r.attempt desc limit 1))
          and coalesce(j.created_at, ''infinity'') between $5 and $6
          and ($7 is null or (coalesce(j.created_at, ''infinity''), j.id) < ($7, $8))
          and ($9 is null or j.id between $9 and $10)
          -- The entry takes a tenth of a millisecond, which is too much for each of a hundred thousand jobs.
          and ($3 is null or case when coalesce(
            case when pg_column_size(j.hyperparameters) <= 65536 then j.hyperparameters->>''base_model'' end, $3) = $3
            then $3 = public.training_job_entry(''training_jobs'', j.id, null, null)->>''base_model'' end)
        order by coalesce(j.created_at, ''infinity'') desc, j.id desc limit $11)'
    || case when to_regclass('public.pipeline_training_jobs') is null then '' else '
       union all
       (select ''pipeline_training_jobs'', j.id, coalesce(j.created_at, ''infinity'')::timestamptz
        from public.pipeline_training_jobs j
        where ' || (case when statuses is null then 'true'
                    else 'case j.status when ''pending'' then ''queued'' else j.status end = any ($1)' end) || '
          and ($2 is null or j.user_id = $2 or j.user_id is null and public.training_pipeline_maker(j.id) = $2)
          and ($4 is null or $4 = (select r.error_code from public.training_runs r where r.job_id = j.id
                                   order by r.attempt desc limit 1))
          and coalesce(j.created_at, ''infinity'') between $5 and $6
          and ($7 is null or (coalesce(j.created_at, ''infinity''), j.id) < ($7, $8))
          and ($9 is null or j.id between $9 and $10)
          and ($3 is null or $3 = coalesce(
            (select r.base_model from public.training_runs r where r.job_id = j.id order by r.attempt desc limit 1), $12))
        order by coalesce(j.created_at, ''infinity'') desc, j.id desc limit $11)' end || '
     ) both_queues order by created_at desc, id desc limit $11'
    using statuses, of_user, asked->>'base_model', asked->>'error_code', since, until, before, before_id, least_id, greatest_id, most + 1,
      (select left(t.document->>'default_base_model', 300) from public.training_terms t)
  loop
    if jsonb_array_length(found_jobs) = most then
      return jsonb_build_object('jobs', found_jobs, 'next_cursor', next_cursor);
    end if;
    found_jobs := found_jobs || coalesce(
      public.training_job_entry(candidate.queue, candidate.id, no_worker, most_of_user), '[]');
    next_cursor := candidate.created_at || '|' || candidate.id;
  end loop;
  return jsonb_build_object('jobs', found_jobs, 'next_cursor', null);
end
$$;

-- Returns the stages of a run in order, [{stage, begun_at, seconds}]: its time in the queue since `waited_since`, its
-- launch, the start of its GPU machine, and what its trainer reported. The last one ends with the run, or now.
create or replace function public.training_run_stages(run public.training_runs, waited_since timestamptz)
returns jsonb
language sql stable set search_path = '' as $$
  select coalesce(jsonb_agg(jsonb_build_object(
    'stage', m.stage, 'begun_at', m.begun_at,
    'seconds', round(extract(epoch from greatest(m.ends_at - m.begun_at, interval '0')), 3))
    order by m.begun_at, m.place), '[]')
  from (
    select t.*, coalesce(lead(t.begun_at) over (order by t.begun_at, t.place), (run).ended_at, now()) as ends_at
    from (
      select 1 as place, 'queue' as stage, training_run_stages.waited_since as begun_at
      union all select 2, 'launch', (run).created_at
      union all select 3, 'cold_start', least((run).launched_at, (run).checked_in_at)
      -- A run from before stages were recorded.
      union all select 4, 'running', case when not exists (
        select from public.training_stages s where s.run_id = (run).id) then (run).checked_in_at end
      union all select 5, s.stage, s.begun_at from public.training_stages s where s.run_id = (run).id
    ) t
    where isfinite(t.begun_at)
  ) m
$$;

-- Returns the points of a job's curve, a thousand at the most: [{step, epoch, loss, validation_loss, learning_rate,
-- gradient_norm, throughput, gpu_utilization, at}].
create or replace function public.training_job_points(queue text, job_id uuid) returns jsonb
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
begin
  if training_job_points.queue = 'training_jobs' then
    return coalesce((
      select jsonb_agg(jsonb_build_object(
        'step', m.step, 'epoch', m.epoch, 'loss', nullif(m.training_loss, 'NaN'),
        'validation_loss', nullif(m.validation_loss, 'NaN'), 'learning_rate', nullif(m.learning_rate, 'NaN'),
        'gradient_norm', nullif(m.gradient_norm, 'NaN'), 'throughput', nullif(m.throughput, 'NaN'),
        'gpu_utilization', nullif(m.gpu_utilization, 'NaN'), 'at', public.training_moment(m.timestamp)) order by m.step)
      from (select * from public.metrics_points p where p.job_id = training_job_points.job_id
            order by p.step limit 1000) m), '[]');
  elsif to_regclass('public.pipeline_training_metrics') is null then
    return '[]';
  end if;
  return coalesce((
    select jsonb_agg(jsonb_build_object(
      'step', p.step_number, 'epoch', p.epoch_number, 'loss', p.metrics->'training_loss',
      'validation_loss', p.metrics->'validation_loss', 'learning_rate', p.metrics->'learning_rate',
      'gradient_norm', p.metrics->'gradient_norm', 'throughput', p.metrics->'throughput',
      'gpu_utilization', p.metrics->'gpu_utilization', 'at', public.training_moment(p.at)) order by p.step_number)
    from (
      select m.step_number, min(m.epoch_number) as epoch_number, min(m.measured_at::timestamptz) as at,
             -- NaN and infinity are no JSON.
             jsonb_object_agg(left(m.metric_id, 50), case when m.value not in ('NaN', 'infinity', '-infinity')
                                                          then m.value end) as metrics
      from public.pipeline_training_metrics m
      where m.job_id = training_job_points.job_id and m.measurement_method = 'training_log'
        and m.metric_id in ('training_loss', 'validation_loss', 'learning_rate', 'gradient_norm', 'throughput',
                            'gpu_utilization')
      group by m.step_number order by m.step_number limit 1000) p), '[]');
end
$$;

-- Returns everything about a job of either queue for operators: {job, runs, points, artifact, measured, costs}; null if
-- there is no such job. Of its runs and costs the latest hundred; `measured` as in 20261126000080_measured_runs.sql.
create or replace function public.training_job_details(job_id uuid) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
#variable_conflict use_column
declare
  queue text;
  entry jsonb;
  ordered jsonb;
begin
  foreach queue in array array['training_jobs', 'pipeline_training_jobs'] loop
    entry := public.training_job_entry(queue, training_job_details.job_id, public.training_no_worker(),
                                       public.training_most_of_user());
    exit when entry is not null;
  end loop;
  if entry is null then
    return null;
  end if;
  ordered := public.training_job_order(queue, training_job_details.job_id);
  return jsonb_build_object(
    'job', entry || jsonb_build_object(
      'dataset_id', ordered->'dataset_id', 'hyperparameters', ordered->'hyperparameters',
      'gpu_config', ordered->'gpu_config',
      'current_metrics', public.training_job_row(queue, training_job_details.job_id)->'current_metrics',
      'retried_at', (select t.retried_at from public.training_retries t where t.job_id = training_job_details.job_id),
      'estimate', public.estimate_training_job(training_job_details.job_id)),
    'runs', coalesce((
      select jsonb_agg(jsonb_build_object(
        'run_id', r.id, 'attempt', r.attempt, 'status', r.status, 'worker', r.worker, 'endpoint', r.endpoint,
        'launcher', r.launcher, 'external_job_id', r.external_job_id, 'created_at', r.created_at,
        'launched_at', r.launched_at, 'checked_in_at', r.checked_in_at, 'last_seen_at', r.last_seen_at,
        'ended_at', r.ended_at, 'stage', r.stage,
        'current_step', r.current_step, 'total_steps', entry->'total_steps', 'gpu_seconds', r.gpu_seconds,
        'gpu_type', left(r.launched_with->>'gpu_type', 200), 'price_per_hour', r.launched_with->'price_per_hour',
        'fault', r.fault, 'error_code', r.error_code, 'error_message', left(r.error_message, 2000),
        'problem', r.problem, 'next_attempt_at', public.training_moment(r.next_attempt_at),
        'stages', public.training_run_stages(r, greatest(
          coalesce((select e.ended_at from public.training_runs e
                    where e.job_id = r.job_id and e.attempt = r.attempt - 1),
                   least((entry->>'created_at')::timestamptz, r.created_at)),
          (select t.retried_at from public.training_retries t
           where t.job_id = r.job_id and t.retried_at <= r.created_at and t.after_attempt = r.attempt - 1))))
        order by r.attempt)
      from public.training_runs r
      where r.job_id = training_job_details.job_id
        and r.attempt > (select max(a.attempt) - 100 from public.training_runs a
                         where a.job_id = training_job_details.job_id)), '[]'),
    'points', public.training_job_points(queue, training_job_details.job_id),
    'artifact', (
      select jsonb_build_object(
        'id', a.id, 'name', left(a.name, 200), 'version', left(a.version, 50), 'status', left(a.status, 50),
        'created_at', public.training_moment(a.created_at), 'deleted_at', public.training_moment(a.deleted_at),
        'quality_metrics', case when public.training_json_fault(a.quality_metrics, 16384) is null
                                then a.quality_metrics end,
        'training_summary', case when public.training_json_fault(a.training_summary, 32768) is null
                                 then a.training_summary end,
        'artifacts', case when public.training_json_fault(a.artifacts, 131072) is null then a.artifacts end)
      from public.model_artifacts a where a.job_id = training_job_details.job_id),
    'measured', (
      select r.measured from public.training_runs r
      where r.job_id = training_job_details.job_id and r.status = 'succeeded' and r.settled_as = 'completed'
      order by r.attempt desc limit 1),
    'costs', coalesce((
      select jsonb_agg(jsonb_build_object(
        'run_id', left(c.details->>'run_id', 36), 'cost_type', left(c.cost_type, 50), 'amount', nullif(c.amount, 'NaN'),
        'recorded_at', public.training_moment(c.recorded_at), 'gpu_seconds', c.details->'gpu_seconds',
        'outcome', left(c.details->>'outcome', 50)) order by c.recorded_at)
      from (select * from public.cost_records o
            where o.user_id = (entry->>'user_id')::uuid
              and (o.job_id = training_job_details.job_id or o.details->>'job_id' = training_job_details.job_id::text)
              and public.training_json_fault(o.details, 16384) is null
            order by o.recorded_at desc limit 100) c), '[]'));
end
$$;

-- As before, and beside it what operators have held.
create or replace function public.training_held() returns jsonb
language sql stable set search_path = '' as $$
  select jsonb_build_object(
    'operator_holds', coalesce((select jsonb_agg(x) from (
      select h.user_id, h.reason, extract(epoch from now() - h.held_at) as held_seconds
      from public.training_operator_holds h order by h.user_id nulls first limit 50) x), '[]'),
    'breakers', coalesce((select jsonb_agg(x) from (
      select b.kind, b.name, b.endpoint, b.error_code, b.error_message,
        cardinality(b.user_ids) as users, extract(epoch from now() - b.opened_at) as open_seconds,
        greatest(extract(epoch from b.probe_at - now()), 0) as probe_in_seconds,
        (select count(*) from public.training_holds h
         where (h.kind, h.name, h.endpoint) = (b.kind, b.name, b.endpoint)) as jobs
      from public.training_breakers b where b.opened_at is not null
      order by b.opened_at limit 50) x), '[]'),
    'endpoint_problems', coalesce((select jsonb_agg(x) from (
      select e.launcher, e.endpoint, e.problem, extract(epoch from now() - e.looked_at) as looked_seconds_ago,
        extract(epoch from now() - e.starting_since) as starting_seconds
      from public.training_endpoints e
      where e.problem is not null and e.looked_at > now() - interval '15 minutes'
      order by e.endpoint limit 100) x), '[]'))
$$;

-- Returns what live runs have cost so far in USD, beyond what is billed.
create or replace function public.training_live_costs() returns numeric
language sql stable set search_path = '' as $$
  select coalesce(sum(greatest((j.row->>'current_cost')::numeric - public.training_spent_cost(r), 0)), 0)
  from public.training_runs r
  cross join lateral (select public.training_job_row(r.queue, r.job_id) as row) j
  where r.status in ('launched', 'running') and (j.row->>'current_cost')::numeric <> 'NaN'
$$;

-- Returns what all trainings have cost today (UTC) in USD: what is billed, and what live runs have cost beyond that.
create or replace function public.training_spent_today() returns numeric
language sql stable set search_path = '' as $$
  select coalesce((select sum(c.amount) from public.cost_records c
                   where c.billing_period = (now() at time zone 'utc')::date and c.cost_type = 'training_compute'
                     and c.amount <> 'NaN'), 0) + public.training_live_costs()
$$;

-- As before, and beside it the jobs that failed in the last day, what was spent today, what operators hold, and which
-- workers are being drained.
create or replace function public.queue_health() returns jsonb
language plpgsql stable security definer set search_path = '' as $$
begin
  return (
    with waiting as (
      select j.id, j.user_id, j.current_stage, j.retry_count,
        -- A row may contain 'infinity', for which no waiting time can be computed.
        case when isfinite(j.created_at) then j.created_at else now() end as created_at,
        exists (select from public.training_runs r
                where r.job_id = j.id and r.next_attempt_at > now()) as waits_for_retry
      from public.training_waiting_jobs() j
    ), live as (
      select r.* from public.training_runs r where r.status in ('claimed', 'launched', 'running')
    ), failed as (
      select r.* from public.training_runs r
      where r.status = 'failed' and r.ended_at > now() - interval '1 day' and r.settled_as = 'failed'
    )
    select jsonb_build_object(
      'queued', (select count(*) from waiting),
      'oldest_wait_seconds', (select extract(epoch from now() - min(created_at)) from waiting
                              where not waits_for_retry),
      'live_runs', (select count(*) from live),
      'expired_leases', (select count(*) from live where lease_expires_at <= now()),
      'stray_launches', (select count(*) from (select from public.training_strays() limit 1000) s),
      'spent_today', public.training_spent_today(),
      'failed_today', (select count(*) from failed),
      'failed', coalesce((select jsonb_agg(f) from (
        select r.job_id, r.id as run_id, r.user_id, r.error_code, left(r.error_message, 500) as error_message,
          extract(epoch from now() - r.ended_at) as seconds_ago
        from failed r
        where public.training_job_status(r.queue, r.job_id) = 'failed'
        order by r.ended_at desc, r.id limit 20) f), '[]'),
      -- All launches that may cost money now, by endpoint. A launch without an answer from the launcher counts as
      -- one, unless its run has gone to another endpoint, which it only does once it was refused.
      'endpoints', coalesce((select jsonb_agg(e) from (
        select l.launcher, l.endpoint, count(*) as launches,
          count(*) filter (where r.status not in ('claimed', 'launched', 'running')) as without_run
        from (select o.run_id, o.launcher, o.endpoint from public.training_launches o
              where o.ended_at is null and o.external_job_id is not null
              union all
              select o.run_id, o.launcher, o.endpoint from live join public.training_launches o on o.run_id = live.id
              where o.ended_at is null and o.external_job_id is null and o.endpoint is not distinct from live.endpoint
              union all
              -- An errand belongs to no run.
              select null, a.launcher, a.endpoint from public.training_serving_errands a where a.ended_at is null) l
        left join public.training_runs r on r.id = l.run_id
        group by l.launcher, l.endpoint order by count(*) desc limit 100) e), '[]'),
      'held', public.training_held(),
      'waiting', coalesce((select jsonb_agg(w) from (
        select waiting.id as job_id, waiting.user_id, waiting.retry_count,
          extract(epoch from now() - waiting.created_at) as wait_seconds,
          public.training_waits_for(waiting.id, waiting.user_id, waiting.current_stage, n.no_worker,
                                    n.most_of_user) as waits_for
        from (select * from waiting order by created_at, id limit 100) waiting
        cross join (select public.training_no_worker() as no_worker,
                           public.training_most_of_user() as most_of_user offset 0) n
        order by waiting.created_at, waiting.id) w), '[]'),
      'no_worker', public.training_no_worker(),
      'had_worker', exists (select from public.training_workers),
      'workers', coalesce((select jsonb_agg(w) from (
        select s.name, s.version, extract(epoch from now() - s.started_at) as running_seconds,
          extract(epoch from now() - s.seen_at) as seen_seconds_ago, s.slots, s.held, s.max_per_user, s.problem,
          s.single_pass, public.training_is_drained(s.name) as draining
        from public.training_living_workers() s
        order by s.seen_at desc, s.name limit 50) w), '[]'),
      'runs', coalesce((select jsonb_agg(w) from (
        select l.id as run_id, l.job_id, l.user_id, l.attempt, l.status, l.worker, l.stage, l.launcher, l.endpoint,
          l.external_job_id, l.problem, l.base_model,
          (j.row->>'progress')::numeric as progress, (j.row->>'current_step')::int as current_step,
          (j.row->>'total_steps')::int as total_steps, (j.row->>'current_cost')::numeric as current_cost,
          j.row->>'estimated_completion_at' as estimated_completion_at,
          extract(epoch from l.lease_expires_at - now()) as lease_seconds_left,
          extract(epoch from now() - l.created_at) as age_seconds,
          extract(epoch from now() - l.last_seen_at) as seen_seconds_ago
        from live l cross join lateral (select public.training_job_row(l.queue, l.job_id) as row) j
        order by l.created_at limit 500) w), '[]')));
end
$$;

revoke all on function public.training_enter_stage(uuid, text, timestamptz), public.training_note_stage(), public.training_moment(timestamptz),
  public.training_waits_for(uuid, uuid, text, text, int), public.training_most_of_user(),
  public.training_job_entry(text, uuid, text, int), public.list_training_jobs(jsonb),
  public.training_run_stages(public.training_runs, timestamptz), public.training_job_points(text, uuid),
  public.training_job_details(uuid), public.training_spent_today(),
  public.training_live_costs()
  from public, anon, authenticated, service_role;
grant execute on function public.list_training_jobs(jsonb), public.training_job_details(uuid) to service_role;
