-- Several endpoints: what a worker knows of each before it chooses one, the slots of an endpoint over all workers, and runs
-- that leave an endpoint without a GPU.

do $migration$
begin
  if not exists (select from pg_attribute
                 where attrelid = 'public.training_runs'::regclass and attname = 'withdrawn_at') then
    -- All of the lock at once: one that is raised in the middle of a migration deadlocks with a live worker's renewals.
    lock table public.training_runs in access exclusive mode;
    -- When a run was taken from an endpoint where it waited for a GPU: none of its trainers may begin any more.
    alter table public.training_runs add column withdrawn_at timestamptz;
  end if;
  if not exists (select from pg_attribute
                 where attrelid = 'public.training_endpoints'::regclass and attname = 'without_gpu_since') then
    -- Since when jobs wait there without a GPU, and until when it is left out where another endpoint can be had.
    alter table public.training_endpoints add column without_gpu_since timestamptz, add column passed_over_until timestamptz;
  end if;
end
$migration$;

-- As note_endpoint, and also records whether jobs wait there without any GPU, or nobody answers. Returns
-- {starting_seconds, without_gpu_seconds}: for how long it has been so. If two calls are more than 15 minutes apart, the
-- time starts again.
create or replace function public.note_endpoint_2(
  launcher text, endpoint text, state text, problem text, without_gpu boolean
) returns jsonb
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  looked timestamptz := (select e.looked_at from public.training_endpoints e
                         where (e.launcher, e.endpoint) = (note_endpoint_2.launcher, note_endpoint_2.endpoint));
  answer jsonb := public.note_endpoint(note_endpoint_2.launcher, note_endpoint_2.endpoint, note_endpoint_2.state,
                                       note_endpoint_2.problem);
  since timestamptz;
begin
  update public.training_endpoints e
  set without_gpu_since = case
    when note_endpoint_2.without_gpu is not true then null
    when looked < now() - interval '15 minutes' then now()
    else coalesce(e.without_gpu_since, now()) end
  where (e.launcher, e.endpoint) = (note_endpoint_2.launcher, note_endpoint_2.endpoint)
  returning e.without_gpu_since into since;
  return answer || jsonb_build_object('without_gpu_seconds', coalesce(extract(epoch from now() - since), 0));
end
$$;

-- How many runs other than this one may have a launch at an endpoint that has not ended. A launch without an answer from
-- the launcher counts while its run is live and has not gone to another endpoint, which it only does once it was refused.
create or replace function public.training_launches_at(endpoint text, but_run_id uuid) returns int
language sql stable set search_path = '' as $$
  select count(*)::int from (
    select o.run_id from public.training_launches o
    where o.endpoint = training_launches_at.endpoint and o.ended_at is null and o.external_job_id is not null
    union
    select o.run_id from public.training_runs r join public.training_launches o on o.run_id = r.id
    where r.status in ('claimed', 'launched', 'running') and r.endpoint = training_launches_at.endpoint
      and o.endpoint = training_launches_at.endpoint and o.ended_at is null and o.external_job_id is null) l
  where l.run_id is distinct from training_launches_at.but_run_id
$$;

-- For how many more seconds an open breaker holds a run; 0 where it may pass. While another live run tries it, that is a
-- minute, to be looked at again. A run that was launched at another endpoint tries it no longer.
create or replace function public.training_breaker_seconds(breaker public.training_breakers, run_id uuid)
returns double precision
language sql stable set search_path = '' as $$
  select greatest(
    extract(epoch from breaker.probe_at - now()), 0,
    case when exists (
      select from public.training_runs r
      where r.id = breaker.probe_run_id and r.id is distinct from training_breaker_seconds.run_id
        and (r.status = 'claimed' or r.status in ('launched', 'running') and r.endpoint = breaker.endpoint))
    then 60 end)::double precision
$$;

-- As before; a run that tries a breaker holds others only until it was launched at another endpoint.
create or replace function public.pass_breakers(
  run_id uuid, lease_token uuid, base_model text, endpoint text, look_again_seconds int default 300
) returns jsonb
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  run public.training_runs;
  breaker public.training_breakers;
  job jsonb;
  sentence text;
begin
  select * into run from public.training_held_run(pass_breakers.run_id, pass_breakers.lease_token);
  if not found then
    return jsonb_build_object('go', false, 'reason', 'lease_lost');
  end if;
  if not exists (select from public.training_launches l where l.run_id = run.id) then
    -- Always in the same order, so that two runs can't deadlock.
    perform from public.training_breakers b
    where b.endpoint = pass_breakers.endpoint and b.opened_at is not null
      and b.name in ('', pass_breakers.base_model)
    order by b.kind, b.name for update;
    select b.* into breaker from public.training_breakers b
    where b.endpoint = pass_breakers.endpoint and b.opened_at is not null
      and b.name in ('', pass_breakers.base_model)
      and public.training_breaker_seconds(b, run.id) > 0
    order by b.probe_at desc, b.kind limit 1;
  end if;
  job := public.training_job_row(run.queue, run.job_id, locked => true);
  if breaker.kind is null or job->>'status' is distinct from 'initializing' then
    update public.training_breakers b set probe_run_id = run.id
    where b.endpoint = pass_breakers.endpoint and b.opened_at is not null
      and b.name in ('', pass_breakers.base_model);
    update public.training_runs r
    set base_model = pass_breakers.base_model, endpoint = coalesce(r.endpoint, pass_breakers.endpoint)
    where r.id = run.id;
    delete from public.training_holds h where h.job_id = run.job_id;
    if found then
      perform public.training_write_job(run.queue, run.job_id, '{"error_message": null}');
    end if;
    return '{"go": true}';
  end if;
  sentence := case breaker.kind
    when 'base_model' then 'Trainings on ' || breaker.name || ' fail on the GPU at the moment, for several users.'
    else 'The GPU machines can''t begin trainings at the moment.' end
    || ' The job waits without counting an attempt, and is tried again by itself.';
  insert into public.training_holds (job_id, kind, name, endpoint, reason, held_until)
  values (run.job_id, breaker.kind, breaker.name, breaker.endpoint, sentence,
          case when breaker.probe_at > now() then breaker.probe_at
               else now() + make_interval(secs => pass_breakers.look_again_seconds) end)
  on conflict (job_id) do update
  set kind = excluded.kind, name = excluded.name, endpoint = excluded.endpoint, reason = excluded.reason,
      held_until = excluded.held_until;
  delete from public.training_runs r where r.id = run.id;
  perform public.training_write_job(run.queue, run.job_id, jsonb_build_object(
    'status', 'queued', 'retry_count', run.attempt - 1, 'error_message', sentence,
    'current_stage', case breaker.kind when 'base_model' then 'waiting_for_base_model' else 'waiting_for_gpu' end));
  return jsonb_build_object('go', false, 'reason', 'held', 'kind', breaker.kind, 'name', breaker.name,
                            'message', sentence);
end
$$;

-- What is known of each of these endpoints, for the choice of a run's place: [{endpoint, launches, without_gpu_seconds,
-- passed_over_seconds, held_seconds, was_left, problem}]. held_seconds is how much longer jobs on this base model are held
-- there by a breaker, and was_left whether the run's job has left it for want of a GPU in the last six hours. What was not
-- looked at for 15 minutes is not known.
create or replace function public.training_places(endpoints jsonb, base_model text, run_id uuid) returns jsonb
language sql stable security definer set search_path = '' as $$
  select coalesce(jsonb_agg(jsonb_build_object(
    'endpoint', n.endpoint,
    'launches', public.training_launches_at(n.endpoint, training_places.run_id),
    'without_gpu_seconds', coalesce(case when e.looked_at > now() - interval '15 minutes'
                                         then extract(epoch from now() - e.without_gpu_since) end, 0),
    'passed_over_seconds', greatest(extract(epoch from e.passed_over_until - now()), 0),
    'held_seconds', coalesce((
      select max(public.training_breaker_seconds(b, training_places.run_id)) from public.training_breakers b
      where b.endpoint = n.endpoint and b.opened_at is not null and b.name in ('', training_places.base_model)), 0),
    'was_left', exists (
      select from public.training_runs r join public.training_runs e on e.job_id = r.job_id
      where r.id = training_places.run_id and e.endpoint = n.endpoint and e.error_code = 'no_gpu_there'
        and e.ended_at > now() - interval '6 hours'),
    'problem', case when e.looked_at > now() - interval '15 minutes' then e.problem end) order by n.number), '[]')
  from (
    select a.endpoint, a.number
    from jsonb_array_elements_text(public.training_decoded(training_places.endpoints)) with ordinality a (endpoint, number)
    limit 100) n
  left join lateral (
    select p.* from public.training_endpoints p where p.endpoint = n.endpoint order by p.looked_at desc limit 1) e on true
$$;

-- The same for many runs in one call, from [{run_id, base_model}], at most 1000: {run id: what training_places returns}.
create or replace function public.training_places_of_runs(endpoints jsonb, runs jsonb) returns jsonb
language sql stable security definer set search_path = '' as $$
  select coalesce(jsonb_object_agg(r.run->>'run_id', public.training_places(
    training_places_of_runs.endpoints, r.run->>'base_model', (r.run->>'run_id')::uuid)), '{}')
  from (select n.run from jsonb_array_elements(public.training_decoded(training_places_of_runs.runs)) n (run) limit 1000) r
$$;

-- As begin_launch, at an endpoint of so many slots (null: of any number): may_launch is false with the reason 'full' while
-- so many other runs have launches there, and with 'withdrawn' where the run was taken from its endpoint. Workers that ask
-- at the same time take turns, so that none gets a slot twice.
create or replace function public.begin_launch_2(
  run_id uuid, lease_token uuid, launcher text, token_sha256 text, launched_with jsonb, endpoint text, slots int
) returns jsonb
language plpgsql security definer set search_path = '' as $$
begin
  if exists (select from public.training_runs r
             where (r.id, r.lease_token) = (begin_launch_2.run_id, begin_launch_2.lease_token)
               and r.withdrawn_at is not null) then
    -- Its trainers are refused, so that a launch would cost money for nothing.
    return jsonb_build_object('may_launch', false, 'reason', 'withdrawn');
  end if;
  if begin_launch_2.slots is not null then
    -- Before any row is locked, in every transaction that takes this lock: so it is in no deadlock.
    perform pg_advisory_xact_lock(hashtextextended('training slots ' || begin_launch_2.endpoint, 0));
    if public.training_launches_at(begin_launch_2.endpoint, begin_launch_2.run_id) >= begin_launch_2.slots then
      return jsonb_build_object('may_launch', false, 'reason', 'full');
    end if;
  end if;
  return public.begin_launch(begin_launch_2.run_id, begin_launch_2.lease_token, begin_launch_2.launcher,
                             begin_launch_2.token_sha256, begin_launch_2.launched_with, begin_launch_2.endpoint);
end
$$;

-- Puts a job whose run was never sent to a launcher back into the queue as before its claim: the run is deleted, and no
-- attempt is counted. It may be claimed again after `seconds`, or later where many jobs are held; until then `reason` tells
-- why it waits. Returns 'put_back'; 'launched' where the run was sent before, or its job is no longer waiting for it, and
-- then nothing changes; or 'lease_lost'.
create or replace function public.put_back_run(run_id uuid, lease_token uuid, reason text, seconds int) returns text
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  run public.training_runs;
  job jsonb;
  of_user int;
  of_all int;
begin
  select * into run from public.training_held_run(put_back_run.run_id, put_back_run.lease_token);
  if not found then
    return 'lease_lost';
  end if;
  job := public.training_job_row(run.queue, run.job_id, locked => true);
  if job->>'status' is distinct from 'initializing'
     or exists (select from public.training_launches l where l.run_id = run.id) then
    return 'launched';
  end if;
  if run.queue = 'training_jobs' then
    select count(*) into of_user from public.training_holds h join public.training_jobs j on j.id = h.job_id
    where j.user_id = run.user_id and h.kind = 'places' and h.held_until > now() - interval '5 minutes';
  else
    select count(*) into of_user from public.training_holds h join public.pipeline_training_jobs j on j.id = h.job_id
    where coalesce(j.user_id, public.training_pipeline_maker(j.id)) = run.user_id
      and h.kind = 'places' and h.held_until > now() - interval '5 minutes';
  end if;
  -- Only jobs that wait for a place count, and such as ended their wait not long ago: the others come back by themselves.
  select count(*) into of_all from public.training_holds h
  where h.kind = 'places' and h.held_until > now() - interval '5 minutes';
  insert into public.training_holds (job_id, kind, name, endpoint, reason, held_until)
  values (run.job_id, 'places', '', '', left(put_back_run.reason, 500),
          -- A worker claims every ten seconds, the oldest jobs first: as few of a user as one, and as few in all as it has
          -- slots. So held jobs come back more slowly than that, or younger jobs for a free place would never be claimed.
          now() + make_interval(secs => least(
            greatest(put_back_run.seconds, 1, 12 * of_user, 2 * of_all), 3600)))
  on conflict (job_id) do update
  set kind = excluded.kind, name = excluded.name, endpoint = excluded.endpoint, reason = excluded.reason,
      held_until = excluded.held_until;
  delete from public.training_runs r where r.id = run.id;
  perform public.training_write_job(run.queue, run.job_id, jsonb_build_object(
    'status', 'queued', 'retry_count', run.attempt - 1, 'error_message', left(put_back_run.reason, 500),
    'current_stage', 'waiting_for_gpu'));
  return 'put_back';
end
$$;

-- As before, for workers of 0.1: they look for each launch at RunPod, and send a run that was taken from its endpoint again.
-- So they adopt neither runs of other launchers nor such as were taken.
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
      and coalesce(r.launcher, 'runpod') = 'runpod' and r.withdrawn_at is null
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

-- Takes a run from an endpoint where it waits for a GPU, so that its job can go to another one: from then on check_in_run
-- refuses its trainers. Returns whether that is so; false where a trainer was faster, or the lease is lost, and then
-- nothing changes. The endpoint is left out for pass_over_seconds.
create or replace function public.withdraw_launch(run_id uuid, lease_token uuid, pass_over_seconds int) returns boolean
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  run public.training_runs;
begin
  -- Under the lock that check_in_run takes, too: one of the two comes first.
  select * into run from public.training_held_run(withdraw_launch.run_id, withdraw_launch.lease_token);
  if not found or run.checked_in_at is not null then
    return false;
  end if;
  update public.training_runs r set withdrawn_at = coalesce(r.withdrawn_at, clock_timestamp()) where r.id = run.id;
  if run.launcher is not null and run.endpoint is not null then
    insert into public.training_endpoints as e (launcher, endpoint, passed_over_until)
    values (run.launcher, run.endpoint,
            now() + make_interval(secs => least(greatest(withdraw_launch.pass_over_seconds, 1), 604800)))
    on conflict (launcher, endpoint) do update set passed_over_until = excluded.passed_over_until;
  end if;
  return true;
end
$$;

-- As before, and it refuses the trainers of a run that was taken from its endpoint before any of them came.
-- The fence, and later the trainer's heartbeat. The first launcher id that checks in owns the run. If the same id
-- comes with a new execution, the launcher has restarted a crashed job: the new execution takes over, and the earlier
-- one is refused. It is refused itself if the run is already published, since then only the result was lost. anon may
-- call this function: the token is the key.
create or replace function public.check_in_run(token text, external_job_id text, execution_id uuid)
returns jsonb
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  run public.training_runs;
  launch public.training_launches;
  job jsonb;
  job_status text;
  refusal text;
  moment timestamptz;
begin
  perform public.training_check_external_job_id(external_job_id);
  select * into run from public.training_run_of_token(check_in_run.token);
  if not found then
    return jsonb_build_object('may_train', false, 'reason', 'unknown_token');
  end if;
  -- The time under the run's lock, not that of the call, which may have waited until its launch was recorded.
  moment := clock_timestamp();
  if public.training_is_crowded(run, check_in_run.external_job_id, check_in_run.execution_id)
     -- With such an id the worker would poll and cancel another run's launch.
     or exists (select from public.training_launches l
                where l.external_job_id = check_in_run.external_job_id and l.run_id <> run.id) then
    return jsonb_build_object('may_train', false, 'reason', 'superseded', 'cancel_requested', false,
                              'attempt', run.attempt);
  end if;
  select * into launch from public.training_note_launch(
    run.id, run.launcher, check_in_run.external_job_id, run.endpoint, guessed => true);
  job_status := coalesce(public.training_job_status(run.queue, run.job_id), 'cancelled');
  refusal := case
    when run.status = 'cancelled' or job_status = 'cancelled' then 'cancelled'
    when run.status not in ('claimed', 'launched', 'running') or run.withdrawn_at is not null then 'ended'
    when run.checked_in_at is not null and run.external_job_id <> check_in_run.external_job_id
      then 'superseded'
    when check_in_run.execution_id = any (run.former_execution_ids) then 'superseded'
    when run.execution_id <> check_in_run.execution_id and public.training_is_published(run) then 'ended'
  end;
  if refusal is not null then
    -- The owner of a cancelled run is still recorded, since its seconds are billed until it ends.
    update public.training_runs r set last_seen_at = moment
    where r.id = run.id and r.execution_id = check_in_run.execution_id and r.ended_at is null;
    -- The run was given up, but its launch did get a GPU: it is billed when the launch is closed.
    update public.training_runs r set checked_in_at = moment
    where r.id = run.id and r.ended_at is not null and r.checked_in_at is null;
    return jsonb_build_object('may_train', false, 'reason', refusal,
                              'cancel_requested', refusal = 'cancelled', 'attempt', run.attempt);
  end if;
  update public.training_runs r
  set status = 'running',
      external_job_id = check_in_run.external_job_id,
      endpoint = launch.endpoint,
      execution_id = check_in_run.execution_id,
      former_execution_ids = case
        when r.execution_id is distinct from check_in_run.execution_id and r.execution_id is not null
        then r.former_execution_ids || r.execution_id else r.former_execution_ids end,
      -- A grant for an earlier execution will have expired before this one publishes.
      upload_request = case when r.execution_id = check_in_run.execution_id then r.upload_request end,
      upload_grant = case when r.execution_id = check_in_run.execution_id then r.upload_grant end,
      checked_in_at = coalesce(r.checked_in_at, moment),
      -- If the trainer was faster than the launcher's answer, its check-in shows that it was launched.
      launched_at = least(coalesce(r.launched_at, moment), moment),
      last_seen_at = moment,
      handlings = case when r.checked_in_at is null then 0 else r.handlings end
  where r.id = run.id;
  if run.checked_in_at is null then
    job := public.training_job_row(run.queue, run.job_id, locked => true);
    if job->>'status' in ('queued', 'initializing', 'running') then
      perform public.training_write_job(run.queue, run.job_id, jsonb_build_object(
        'status', 'running', 'current_stage', 'setup', 'external_job_id', check_in_run.external_job_id,
        'started_at', coalesce((job->>'started_at')::timestamptz, moment)));
    end if;
  end if;
  return jsonb_build_object('may_train', true, 'reason', 'ok', 'cancel_requested', false,
                            'attempt', run.attempt);
end
$$;

revoke all on function public.note_endpoint_2(text, text, text, text, boolean),
  public.training_launches_at(text, uuid), public.training_places(jsonb, text, uuid),
  public.training_places_of_runs(jsonb, jsonb),
  public.training_breaker_seconds(public.training_breakers, uuid),
  public.begin_launch_2(uuid, uuid, text, text, jsonb, text, int), public.put_back_run(uuid, uuid, text, int),
  public.withdraw_launch(uuid, uuid, int)
  from public, anon, authenticated, service_role;
grant execute on function public.note_endpoint_2(text, text, text, text, boolean),
  public.training_places(jsonb, text, uuid), public.training_places_of_runs(jsonb, jsonb),
  public.begin_launch_2(uuid, uuid, text, text, jsonb, text, int), public.put_back_run(uuid, uuid, text, int),
  public.withdraw_launch(uuid, uuid, int) to service_role;
