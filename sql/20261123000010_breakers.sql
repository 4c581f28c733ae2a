-- Circuit breakers. If a base model or an endpoint's image is broken, every job that needs it fails, each after a
-- cold start that costs money. When it has failed for a second user, its breaker opens: jobs that need it wait in the
-- queue without an attempt or a lease, and one job at a time tries again. Breakers are rows, so that all workers
-- share them and a restart keeps them.

-- Asked before a run is prepared: may it be launched with this base model at this endpoint? Returns {go: true}, also
-- for the one run that tries an open breaker; {go: false, reason: 'lease_lost'}; or {go: false, reason: 'held', kind,
-- name, message}. In the last case the job is back in the queue as before its claim: the run is deleted and no
-- attempt is counted. A run that was already launched goes on, because its trainer may be working.
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
      and (b.probe_at > now() or exists (
        select from public.training_runs r
        where r.id = b.probe_run_id and r.id <> run.id and r.status in ('claimed', 'launched', 'running')))
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

-- Records that a run failed because of its base model or image. blame is {kind, at_once, hold_seconds}, or null for
-- any other end. The breaker opens at the failure of a second user, or at the first one with at_once. Each time it
-- opens again, it stays open twice as long, up to one day. Failures older than a week are forgotten.
create or replace function public.training_note_breakers(run public.training_runs, blame jsonb, failure jsonb)
returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
  breaker public.training_breakers;
  opens boolean;
begin
  if blame is null or run.base_model is null or run.endpoint is null then
    return;
  end if;
  insert into public.training_breakers (kind, name, endpoint)
  values (blame->>'kind', case blame->>'kind' when 'base_model' then run.base_model else '' end, run.endpoint)
  on conflict (kind, name, endpoint) do update
  set user_ids = case when training_breakers.failed_at < now() - interval '7 days' then '{}'
                      else training_breakers.user_ids end
  returning * into breaker;
  if run.user_id <> all (breaker.user_ids) then
    breaker.user_ids := (breaker.user_ids || run.user_id)[1:10];
  end if;
  opens := case when breaker.opened_at is null
    then coalesce((blame->>'at_once')::boolean, false) or cardinality(breaker.user_ids) > 1
    -- Runs that were launched before it opened add no new information.
    else breaker.probe_run_id = run.id end;
  update public.training_breakers b
  set user_ids = breaker.user_ids, failed_at = now(),
      error_code = left(failure->>'error_code', 100), error_message = left(failure->>'error_message', 500),
      opened_at = case when opens then coalesce(b.opened_at, now()) else b.opened_at end,
      times_opened = b.times_opened + opens::int,
      probe_at = case when opens then now() + make_interval(secs => least(
        (blame->>'hold_seconds')::double precision * 2 ^ least(b.times_opened, 20), 86400)) else b.probe_at end,
      probe_run_id = case when opens then null else b.probe_run_id end
  where (b.kind, b.name, b.endpoint) = (breaker.kind, breaker.name, breaker.endpoint);
end
$$;

-- Closes the breakers of a run's base model and image, since the run trains. Jobs that waited for them may be
-- claimed.
create or replace function public.training_breakers_worked(run public.training_runs) returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
begin
  perform from public.training_breakers b
  where b.endpoint = run.endpoint and b.name in ('', run.base_model)
  order by b.kind, b.name for update;
  if found then
    delete from public.training_breakers b where b.endpoint = run.endpoint and b.name in ('', run.base_model);
    delete from public.training_holds h where h.endpoint = run.endpoint and h.name in ('', run.base_model);
  end if;
end
$$;

-- Closes the breakers of a base model or an endpoint, or all of them, after an operator has repaired the cause. Their
-- jobs may be claimed at once. Returns what was open: [{kind, name, endpoint, jobs}].
create or replace function public.resume_training(named text default null) returns jsonb
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  resumed jsonb;
begin
  perform from public.training_breakers b order by b.kind, b.name, b.endpoint for update;
  with gone as (
    delete from public.training_breakers b
    where resume_training.named is null or resume_training.named in (b.name, b.endpoint)
    returning b.kind, b.name, b.endpoint, b.opened_at
  ), released as (
    delete from public.training_holds h
    where resume_training.named is null or resume_training.named in (h.name, h.endpoint)
    returning h.kind, h.name, h.endpoint
  )
  select coalesce(jsonb_agg(jsonb_build_object('kind', g.kind, 'name', g.name, 'endpoint', g.endpoint, 'jobs', (
      select count(*) from released r where (r.kind, r.name, r.endpoint) = (g.kind, g.name, g.endpoint)))), '[]')
  into resumed from gone g where g.opened_at is not null;
  return resumed;
end
$$;

-- Records the state of an endpoint: 'starting' while jobs wait there and its machines start but none gets ready,
-- 'well' if one is ready or there is nothing to do, 'unknown' otherwise. Returns {starting_seconds}: for how long
-- they have been starting. If two calls are more than 15 minutes apart, the time starts again.
create or replace function public.note_endpoint(launcher text, endpoint text, state text, problem text)
returns jsonb
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  seen public.training_endpoints;
begin
  delete from public.training_endpoints e where e.looked_at < now() - interval '30 days';
  delete from public.training_holds h where h.held_until < now() - interval '1 day';
  insert into public.training_endpoints as e (launcher, endpoint, starting_since, problem)
  values (note_endpoint.launcher, note_endpoint.endpoint,
          case note_endpoint.state when 'starting' then now() end, left(note_endpoint.problem, 500))
  on conflict (launcher, endpoint) do update
  set looked_at = now(), problem = excluded.problem,
      starting_since = case
        when note_endpoint.state = 'well' then null
        when e.looked_at < now() - interval '15 minutes' then excluded.starting_since
        else coalesce(e.starting_since, excluded.starting_since) end
  returning * into seen;
  return jsonb_build_object('starting_seconds', coalesce(extract(epoch from now() - seen.starting_since), 0));
end
$$;

-- Returns the open breakers and the problems of endpoints, for queue_health.
create or replace function public.training_held() returns jsonb
language sql stable set search_path = '' as $$
  select jsonb_build_object(
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
      order by e.endpoint limit 20) x), '[]'))
$$;

call public.training_set_function_rights(open => false);
