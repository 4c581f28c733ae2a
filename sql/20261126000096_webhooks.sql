-- Outgoing webhooks. A change of a job's status leaves an event here in its own transaction, so that none is lost and none is
-- told of a change that was rolled back. Workers deliver the events to the endpoints of their settings: at least once, and
-- those of one job in order. URLs and secrets stay in the settings; an endpoint is known here by its name.

create table if not exists public.training_webhook_endpoints (
  name text primary key check (length(name) between 1 and 100),
  added_at timestamptz not null default now(),
  -- When a worker last had it in its settings. After seven days without one it gets no new events.
  seen_at timestamptz not null default now(),
  -- Since when it wants no more events: it has answered 410. `webhooks enable` clears it.
  disabled_at timestamptz,
  -- Since when each delivery to it has failed; null while they arrive.
  failing_since timestamptz,
  last_delivered_at timestamptz,
  problem text check (length(problem) <= 500)
);

create table if not exists public.training_webhook_events (
  id bigint generated always as identity primary key,
  -- The receiver's webhook-id. It is the same at each delivery of the event.
  event text not null unique check (length(event) <= 64),
  type text not null check (length(type) <= 50),
  job_id uuid not null,
  user_id uuid,
  occurred_at timestamptz not null default now(),
  -- What is sent, byte for byte the same at each delivery.
  body text not null check (length(body) <= 4000)
);

create table if not exists public.training_webhook_deliveries (
  event_id bigint not null references public.training_webhook_events (id) on delete cascade,
  endpoint text not null references public.training_webhook_endpoints (name) on delete cascade,
  job_id uuid not null,
  state text not null default 'waiting' check (state in ('waiting', 'delivered', 'given_up')),
  -- Those that were begun: a worker that dies while it delivers has used one.
  attempts int not null default 0,
  next_at timestamptz not null default now(),
  lease_token uuid,
  lease_expires_at timestamptz,
  status int,
  problem text check (length(problem) <= 500),
  settled_at timestamptz,
  primary key (event_id, endpoint)
);

do $migration$
declare
  own_table text;
begin
  foreach own_table in array array[
    'training_webhook_endpoints', 'training_webhook_events', 'training_webhook_deliveries']
  loop
    if not (select relrowsecurity from pg_class where oid = format('public.%I', own_table)::regclass) then
      execute format('alter table public.%I enable row level security', own_table);
    end if;
    execute format('revoke all on public.%I from public, anon, authenticated, service_role', own_table);
    execute format('grant select on public.%I to service_role', own_table);
  end loop;
  if to_regclass('public.training_webhook_deliveries_waiting_idx') is null then
    create index training_webhook_deliveries_waiting_idx
      on public.training_webhook_deliveries (endpoint, job_id, event_id) where state = 'waiting';
  end if;
  if to_regclass('public.training_webhook_deliveries_failed_idx') is null then
    create index training_webhook_deliveries_failed_idx
      on public.training_webhook_deliveries (endpoint, event_id desc) where state = 'given_up';
  end if;
  if to_regclass('public.training_webhook_events_user_idx') is null then
    create index training_webhook_events_user_idx on public.training_webhook_events (user_id);
  end if;
end
$migration$;

-- Leaves an event for the endpoints when a job's status changes, by whomever. It tells ids, codes and figures, and no text of
-- a user, of a dataset or of an error. job.retrying: a run has ended, and the job waits for its next attempt.
create or replace function public.training_note_event() returns trigger
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  job jsonb;
  run public.training_runs;
  event_type text;
  new_event text;
  new_id bigint;
  moment timestamptz := clock_timestamp();
begin
  if not exists (select from public.training_webhook_endpoints p
                 where p.disabled_at is null and p.seen_at > now() - interval '7 days') then
    return null;
  end if;
  select r.* into run from public.training_runs r where r.job_id = new.id order by r.attempt desc limit 1;
  event_type := case
    when new.status = 'running' then 'job.started'
    when new.status in ('completed', 'failed', 'cancelled') then 'job.' || new.status
    -- Settled in this transaction, after a failed attempt. A job that was only put back, for a hold or since its run has left
    -- a place without a GPU, is not retried.
    when new.status in ('queued', 'pending') and run.settled_as = 'queued' and run.fault is not null
         and run.ended_at = now() then 'job.retrying'
  end;
  if event_type is null then
    return null;
  end if;
  job := public.training_job_row(tg_table_name, new.id);
  new_event := 'msg_' || replace(gen_random_uuid()::text, '-', '');
  insert into public.training_webhook_events (event, type, job_id, user_id, occurred_at, body)
  values (new_event, event_type, new.id, (job->>'user_id')::uuid, moment, jsonb_build_object(
    'type', event_type,
    'timestamp', to_char(moment at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
    'data', jsonb_build_object(
      'job_id', new.id, 'user_id', job->>'user_id', 'status', job->>'status', 'run_id', run.id, 'attempt', run.attempt,
      'error_code', case when event_type in ('job.failed', 'job.retrying') then left(run.error_code, 100) end,
      'model_id', case when event_type = 'job.completed' then job->>'artifact_id' end,
      'cost_usd', (job->>'current_cost')::numeric))::text)
  returning id into new_id;
  insert into public.training_webhook_deliveries (event_id, endpoint, job_id)
  select new_id, p.name, new.id from public.training_webhook_endpoints p
  where p.disabled_at is null and p.seen_at > now() - interval '7 days';
  return null;
end
$$;

do $migration$
declare
  queue text;
begin
  -- The newer queue's table belongs to the application. Its trigger is made by the first `lora-worker migrate` after the
  -- table exists.
  foreach queue in array array['training_jobs', 'pipeline_training_jobs'] loop
    if to_regclass('public.' || queue) is not null and not exists (
      select from pg_trigger t where t.tgrelid = to_regclass('public.' || queue) and t.tgname = 'training_note_event')
    then
      execute format('create trigger training_note_event after update on public.%I for each row
                      when (old.status is distinct from new.status) execute function public.training_note_event()', queue);
    end if;
  end loop;
end
$migration$;

-- Gives a worker the deliveries that are due to the endpoints of its settings, up to max_deliveries for each of them, and
-- keeps other workers from them for lease_seconds: [{event, endpoint, type, body, attempt, lease_token}]. An event waits for
-- the earlier ones of its job. What was begun ten times without an end is given up. Events are kept for 30 days, the newest
-- 100,000 of them.
create or replace function public.claim_webhook_deliveries(endpoints jsonb, max_deliveries int, lease_seconds int)
returns jsonb
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  told jsonb := public.training_decoded(claim_webhook_deliveries.endpoints);
  asked text[];
  known text[];
  claimed jsonb;
begin
  -- The array is read only when it is one.
  asked := array(select jsonb_array_elements_text(case
    when jsonb_typeof(told) = 'array' and jsonb_array_length(told) <= 10 then told else '[""]' end));
  if asked = array[''] or claim_webhook_deliveries.max_deliveries not between 0 and 100
     or claim_webhook_deliveries.lease_seconds not between 1 and 3600 then
    raise exception using errcode = 'PT400',
      message = 'there is an array of at most 10 endpoints, 100 deliveries to each, and an hour for them';
  end if;
  insert into public.training_webhook_endpoints as p (name)
  select distinct left(n, 100) from unnest(asked) n where n <> '' order by 1
  on conflict (name) do update set seen_at = now() where p.seen_at < now() - interval '1 hour';
  delete from public.training_webhook_events e where e.id = any (array(
    select o.id from public.training_webhook_events o
    -- Ids rise with time, so the old ones are among the first: the whole table is not read at each claim.
    where o.id = any (array(select h.id from public.training_webhook_events h order by h.id limit 200))
      and (o.occurred_at < now() - interval '30 days'
           or o.id <= (select max(m.id) - 100000 from public.training_webhook_events m))
    order by o.id for update skip locked));
  delete from public.training_webhook_endpoints p where p.seen_at < now() - interval '60 days';
  known := array(select p.name from public.training_webhook_endpoints p
                 where p.name = any (asked) and p.disabled_at is null);
  update public.training_webhook_deliveries d
  set state = 'given_up', settled_at = now(), lease_token = null,
      problem = coalesce(d.problem, 'each worker that delivered it ended before its answer')
  where d.state = 'waiting' and d.endpoint = any (known) and d.attempts >= 10 and d.lease_expires_at <= now();
  with due as (
    select c.event_id, c.endpoint from unnest(known) k (name) cross join lateral (
      select d.event_id, d.endpoint from public.training_webhook_deliveries d
      where d.endpoint = k.name and d.state = 'waiting' and d.next_at <= now()
        and (d.lease_expires_at is null or d.lease_expires_at <= now())
        and not exists (select from public.training_webhook_deliveries b
                        where b.endpoint = d.endpoint and b.job_id = d.job_id and b.state = 'waiting'
                          and b.event_id < d.event_id)
      order by d.event_id limit claim_webhook_deliveries.max_deliveries for update skip locked) c),
  taken as (
    update public.training_webhook_deliveries d
    set attempts = d.attempts + 1, lease_token = gen_random_uuid(),
        lease_expires_at = now() + make_interval(secs => claim_webhook_deliveries.lease_seconds)
    from due where d.event_id = due.event_id and d.endpoint = due.endpoint
    returning d.event_id, d.endpoint, d.attempts, d.lease_token)
  select jsonb_agg(jsonb_build_object(
    'event', e.event, 'endpoint', t.endpoint, 'type', e.type, 'body', e.body, 'attempt', t.attempts,
    'lease_token', t.lease_token) order by e.id)
  into claimed
  from taken t join public.training_webhook_events e on e.id = t.event_id;
  return coalesce(claimed, '[]');
end
$$;

-- Writes down what came of a delivery; false where it is another worker's by now, or settled. outcome: {delivered, gone,
-- status, problem, retry_after_seconds}. A failed one is tried again by the schedule that Standard Webhooks recommends: after
-- 5 seconds, 5 and 30 minutes, 2, 5, 10, 14, 20 and 24 hours, or later where the endpoint asks for that. `gone`: the endpoint
-- wants no more events.
create or replace function public.note_webhook_delivery(event text, endpoint text, lease_token uuid, outcome jsonb)
returns boolean
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  told jsonb := public.training_decoded(note_webhook_delivery.outcome);
  is_delivered boolean := coalesce((told->>'delivered')::boolean, false);
  is_gone boolean := coalesce((told->>'gone')::boolean, false);
  waits constant int[] := array[5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400];
  reason text := left(told->>'problem', 500);
begin
  -- First of all, as whoever answers 410 does, too: two notes that took their deliveries first would wait for each other.
  perform from public.training_webhook_endpoints p where p.name = note_webhook_delivery.endpoint for no key update;
  update public.training_webhook_deliveries d
  set state = case when is_delivered then 'delivered' when is_gone or waits[d.attempts] is null then 'given_up'
                   else 'waiting' end,
      settled_at = case when is_delivered or is_gone or waits[d.attempts] is null then now() end,
      -- Spread, so that what failed together does not return together.
      next_at = now() + make_interval(secs => greatest(
        coalesce(waits[d.attempts], 0) * (1 + random() * 0.1),
        least(coalesce(public.training_number(told->'retry_after_seconds', 0, 86400), 0), 86400)::double precision)),
      status = public.training_number(told->'status', 100, 999)::int,
      problem = case when not is_delivered then coalesce(reason, 'it failed') end,
      lease_token = null, lease_expires_at = null
  from public.training_webhook_events e
  where e.id = d.event_id and e.event = note_webhook_delivery.event and d.endpoint = note_webhook_delivery.endpoint
    and d.lease_token = note_webhook_delivery.lease_token and d.state = 'waiting';
  if not found then
    return false;
  end if;
  update public.training_webhook_endpoints p
  set last_delivered_at = case when is_delivered then now() else p.last_delivered_at end,
      failing_since = case when not is_delivered then coalesce(p.failing_since, now()) end,
      disabled_at = case when is_gone then coalesce(p.disabled_at, now()) else p.disabled_at end,
      problem = case when not is_delivered then coalesce(reason, 'it failed') end
  where p.name = note_webhook_delivery.endpoint;
  if is_gone then
    update public.training_webhook_deliveries d
    set state = 'given_up', settled_at = now(), lease_token = null, lease_expires_at = null,
        problem = 'the endpoint has answered 410: it wants no more events'
    where d.endpoint = note_webhook_delivery.endpoint and d.state = 'waiting';
  end if;
  return true;
end
$$;

-- Lets events be delivered again, also those that were delivered, each with the id and body that it had; returns how many
-- deliveries. filter: {event: its id} or {failed: true}, those that were given up, or {since: a time}; {endpoint: a name}
-- narrows it. An endpoint that was added after an event gets it, too. 10,000 at most, the newest of them.
create or replace function public.replay_webhook_events(filter jsonb) returns int
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  wanted jsonb := public.training_decoded(replay_webhook_events.filter);
  replayed int;
begin
  insert into public.training_webhook_deliveries as d (event_id, endpoint, job_id)
  select e.id, p.name, e.job_id
  from public.training_webhook_events e cross join public.training_webhook_endpoints p
  left join public.training_webhook_deliveries b on b.event_id = e.id and b.endpoint = p.name
  where p.disabled_at is null and p.name = coalesce(wanted->>'endpoint', p.name)
    and b.state is distinct from 'waiting'
    and case when wanted ? 'event' then e.event = wanted->>'event'
             when wanted ? 'since' then e.occurred_at >= (wanted->>'since')::timestamptz
             else (wanted->>'failed')::boolean and b.state = 'given_up' end
  order by e.id desc limit 10000
  on conflict (event_id, endpoint) do update
  set state = 'waiting', attempts = 0, next_at = now(), lease_token = null, lease_expires_at = null, settled_at = null;
  get diagnostics replayed = row_count;
  return replayed;
end
$$;

-- Lets an endpoint get events again that has answered 410; false if there is none of this name, or it gets them.
create or replace function public.enable_webhook_endpoint(name text) returns boolean
language plpgsql security definer set search_path = '' as $$
begin
  update public.training_webhook_endpoints p set disabled_at = null, failing_since = null, problem = null
  where p.name = enable_webhook_endpoint.name and p.disabled_at is not null;
  return found;
end
$$;

-- Returns the endpoints that workers have in their settings, or had in the last 60 days, each with its last ten failures.
create or replace function public.training_webhook_state() returns jsonb
language sql stable security definer set search_path = '' as $$
  select coalesce(jsonb_agg(jsonb_build_object(
    'name', p.name, 'is_enabled', p.disabled_at is null, 'added_at', p.added_at, 'seen_at', p.seen_at,
    'failing_since', p.failing_since,
    'last_delivered_at', p.last_delivered_at, 'problem', p.problem,
    'waiting', c.waiting, 'given_up', c.given_up, 'oldest_waiting_at', c.oldest,
    'failures', coalesce((
      select jsonb_agg(jsonb_build_object(
        'event', f.event, 'type', f.type, 'job_id', f.job_id, 'state', f.state, 'attempts', f.attempts,
        'status', f.status, 'problem', f.problem, 'next_at', case when f.state = 'waiting' then f.next_at end,
        'settled_at', f.settled_at))
      from (
        select e.event, e.type, e.job_id, d.state, d.attempts, d.status, d.problem, d.next_at, d.settled_at
        -- Each state has an index of its own.
        from ((select g.* from public.training_webhook_deliveries g
               where g.endpoint = p.name and g.state = 'given_up' and g.problem is not null
               order by g.event_id desc limit 10)
              union all
              (select w.* from public.training_webhook_deliveries w
               where w.endpoint = p.name and w.state = 'waiting' and w.problem is not null
               order by w.event_id desc limit 10)) d
        join public.training_webhook_events e on e.id = d.event_id
        order by d.event_id desc limit 10) f), '[]')
  ) order by p.name), '[]')
  from public.training_webhook_endpoints p
  cross join lateral (
    select w.waiting, g.given_up,
           (select e.occurred_at from public.training_webhook_events e where e.id = w.first_id) as oldest
    from (select count(*) as waiting, min(d.event_id) as first_id from public.training_webhook_deliveries d
          where d.endpoint = p.name and d.state = 'waiting') w
    cross join (select count(*) as given_up from public.training_webhook_deliveries d
                where d.endpoint = p.name and d.state = 'given_up') g) c
$$;

revoke all on function public.training_note_event(), public.claim_webhook_deliveries(jsonb, int, int),
  public.note_webhook_delivery(text, text, uuid, jsonb), public.replay_webhook_events(jsonb),
  public.enable_webhook_endpoint(text), public.training_webhook_state()
  from public, anon, authenticated, service_role;
grant execute on function public.claim_webhook_deliveries(jsonb, int, int),
  public.note_webhook_delivery(text, text, uuid, jsonb), public.replay_webhook_events(jsonb),
  public.enable_webhook_endpoint(text), public.training_webhook_state() to service_role;
