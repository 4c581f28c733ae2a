-- Claims. A claim must find the oldest waiting jobs without reading every waiting job, since a user at the limit may
-- have thousands, and without reading the jobs that have ended, which stay in the indexes for as long as any
-- transaction is open. So a table holds the users that may have waiting jobs, with the time of the oldest.

-- Records that a user has a waiting job. The transaction that inserts the job holds a lock on the user's row until
-- its end, so that nobody deletes the row, or moves its time forward, without having seen the job.
create or replace function public.training_note_waiting() returns trigger
language plpgsql security definer set search_path = '' as $$
declare
  owner uuid := coalesce(new.user_id, '00000000-0000-0000-0000-000000000000');
  since timestamptz := coalesce(new.created_at, 'infinity');
begin
  perform from public.training_waiting_users w where w.user_id = owner and w.waits_since <= since for share;
  if not found then
    insert into public.training_waiting_users as w (user_id, waits_since) values (owner, since)
    on conflict (user_id) do update set waits_since = least(w.waits_since, excluded.waits_since);
  end if;
  return null;
end
$$;

-- Brings the rows of up to ten users up to date, those with the oldest looked_at first. It skips users for whom a job
-- is being inserted at the moment.
create or replace function public.training_keep_waiting_users() returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
  known public.training_waiting_users;
  oldest timestamptz;
begin
  for known in
    select * from public.training_waiting_users w
    where w.looked_at < now() - interval '30 seconds'
    order by w.looked_at limit 10 for update skip locked
  loop
    oldest := (select coalesce(j.created_at, 'infinity') from public.training_jobs j
               where j.user_id = known.user_id and j.status = 'queued'
                 and coalesce(j.created_at, 'infinity') >= known.waits_since
               order by coalesce(j.created_at, 'infinity') limit 1);
    if to_regclass('public.pipeline_training_jobs') is not null then
      -- least() ignores null.
      oldest := least(oldest, (
        select coalesce(j.created_at, 'infinity')::timestamptz from public.pipeline_training_jobs j
        where coalesce(j.user_id, '00000000-0000-0000-0000-000000000000') = known.user_id and j.status = 'pending'
          and coalesce(j.created_at, 'infinity') >= known.waits_since
        order by coalesce(j.created_at, 'infinity') limit 1));
    end if;
    if oldest is null and known.waits_since < now() - interval '10 minutes' then
      delete from public.training_waiting_users w where w.user_id = known.user_id;
    else
      update public.training_waiting_users w
      set looked_at = now(), waits_since = coalesce(oldest, known.waits_since),
          -- A run is created within its claim, and no claim takes minutes. So no run older than this can still
          -- appear.
          lives_since = least(now() - interval '10 minutes', (
            select min(r.created_at) from public.training_runs r
            where r.user_id = known.user_id and r.status in ('claimed', 'launched', 'running')
              and r.created_at >= known.lives_since))
      where w.user_id = known.user_id;
    end if;
  end loop;
end
$$;

-- Returns how many live runs a user has.
create or replace function public.training_live_runs(user_id uuid) returns int
language sql stable set search_path = '' as $$
  select count(*)::int from public.training_runs r
  where r.user_id = training_live_runs.user_id and r.status in ('claimed', 'launched', 'running')
    and r.created_at >= coalesce((select w.lives_since from public.training_waiting_users w
                                  where w.user_id = training_live_runs.user_id), '-infinity')
$$;

-- Returns how many jobs of a user wait, in both queues together. It counts up to `most` in each.
create or replace function public.training_waiting_count(user_id uuid, most int) returns int
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
declare
  waiting int := (select count(*) from (
    select from public.training_jobs j
    where j.user_id = training_waiting_count.user_id and j.status = 'queued' limit most) x);
begin
  if to_regclass('public.pipeline_training_jobs') is not null then
    waiting := waiting + (select count(*) from (
      select from public.pipeline_training_jobs j
      where coalesce(j.user_id, '00000000-0000-0000-0000-000000000000') = training_waiting_count.user_id
        and j.status = 'pending' limit most) x);
  end if;
  return waiting;
end
$$;

-- Rejects a job of a signed-in user who has the maximum number of waiting jobs. The maximum is a setting of the worker.
-- Inserts by other roles are not limited.
create or replace function public.training_limit_waiting() returns trigger
language plpgsql security definer set search_path = '' as $$
declare
  most int := coalesce((select (t.document->>'max_queued_per_user')::int from public.training_terms t), 100);
begin
  if tg_op = 'UPDATE' and old.status = new.status then
    return new;
  end if;
  -- Other calls of the same user wait for this lock, so that two of them can't both take the last place.
  perform pg_advisory_xact_lock(hashtextextended('waiting jobs ' || new.user_id, 0));
  if public.training_waiting_count(new.user_id, most) >= most then
    raise exception using errcode = 'PT429',
      message = format('%s of your jobs wait already, and no more may: wait until some have started, or cancel some', most);
  end if;
  return new;
end
$$;

-- Sets the stage of a new job that has to wait for its dataset.
create or replace function public.training_mark_waiting() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  if new.status = 'queued' and public.training_dataset_patience(new.dataset_id, now()) > 0 then
    new.current_stage := 'waiting_for_dataset';
  end if;
  return new;
end
$$;

-- Sets the stage of the jobs that wait for a dataset when its status changes, no matter who changed it.
create or replace function public.training_mark_waiting_jobs() returns trigger
language plpgsql security definer set search_path = '' as $$
declare
  stage constant text :=
    case when public.training_dataset_patience(new.id, now()) > 0 then 'waiting_for_dataset' else 'queued' end;
begin
  update public.training_jobs j
  set current_stage = stage
  where j.dataset_id = new.id and j.status = 'queued' and j.current_stage in ('queued', 'waiting_for_dataset')
    and j.current_stage <> stage;
  return null;
end
$$;

-- Returns the oldest waiting jobs of both queues that may be claimed now, `most` at the most, without the jobs and
-- users that the caller has already tried. It reads no job of a user at the limit, and for every other user only as
-- many as needed, in the order of the index. Sequential and bitmap scans are switched off, since a cached plan does
-- not know how few rows are needed, and might read and sort all.
create or replace function public.training_candidates(
  max_per_user int, most int, tried_jobs uuid[], tried_users uuid[]
) returns table (queue text, id uuid, user_id uuid, waits_since timestamptz)
language plpgsql stable set search_path = '' set enable_seqscan = off set enable_bitmapscan = off as $$
#variable_conflict use_column
declare
  open_users uuid[] := (
    select coalesce(array_agg(w.user_id), '{}') from public.training_waiting_users w
    where w.user_id <> all (tried_users)
      and (max_per_user is null or max_per_user > (
        select count(*) from public.training_runs r
        where r.user_id = w.user_id and r.status in ('claimed', 'launched', 'running') and r.created_at >= w.lives_since)));
begin
  return query
    select 'training_jobs', c.id, w.user_id, c.since
    from public.training_waiting_users w
    cross join lateral (
      select j.id, coalesce(j.created_at, 'infinity') as since
      from public.training_jobs j
      where j.user_id = w.user_id and j.status = 'queued' and coalesce(j.created_at, 'infinity') >= w.waits_since
        and j.id <> all (tried_jobs)
        and not exists (
          select from public.training_runs r
          where r.job_id = j.id and (r.status in ('claimed', 'launched', 'running') or r.next_attempt_at > now()))
        -- It waits for a breaker.
        and not exists (select from public.training_holds h where h.job_id = j.id and h.held_until > now())
        -- It waits for its dataset.
        and not exists (
          select from public.datasets d
          where d.id = j.dataset_id and d.status in ('uploading', 'validating')
            and public.training_dataset_patience(d.id, j.created_at) > 0)
      order by coalesce(j.created_at, 'infinity'), j.id
      limit least(most, max_per_user)
    ) c
    where w.user_id = any (open_users)
    order by c.since, c.id limit most;
  if to_regclass('public.pipeline_training_jobs') is null then
    return;
  end if;
  return query
    select 'pipeline_training_jobs', c.id, w.user_id, c.since::timestamptz
    from (
      select u.user_id, u.waits_since from public.training_waiting_users u where u.user_id = any (open_users)
      union all
      -- The table was created after the last migration, so it has no trigger yet that records waiting users.
      select coalesce(p.user_id, '00000000-0000-0000-0000-000000000000'), '-infinity'
      from public.pipeline_training_jobs p
      where p.status = 'pending' and not exists (
        select from pg_catalog.pg_trigger t
        where t.tgrelid = 'public.pipeline_training_jobs'::regclass and t.tgname = 'training_note_waiting')
      group by 1
    ) w
    cross join lateral (
      -- 'queued' means here that the application's own dispatcher has taken the job. Only 'pending' jobs are free.
      select j.id, coalesce(j.created_at, 'infinity') as since
      from public.pipeline_training_jobs j
      where coalesce(j.user_id, '00000000-0000-0000-0000-000000000000') = w.user_id and j.status = 'pending'
        and coalesce(j.created_at, 'infinity') >= w.waits_since
        and j.id <> all (tried_jobs)
        and not exists (
          select from public.training_runs r
          where r.job_id = j.id and (r.status in ('claimed', 'launched', 'running') or r.next_attempt_at > now()))
        -- It waits for a breaker.
        and not exists (select from public.training_holds h where h.job_id = j.id and h.held_until > now())
        -- It waits for its dataset.
        and not exists (
          select from public.datasets d
          where d.id = j.dataset_id and d.status in ('uploading', 'validating')
            and public.training_dataset_patience(d.id, j.created_at) > 0)
      order by coalesce(j.created_at, 'infinity'), j.id
      limit least(most, max_per_user)
    ) c
    where w.user_id <> all (tried_users)
    order by c.since, c.id limit most;
end
$$;

-- Locks a job if it still waits and nobody else has locked it; returns whether it did. The caller's earlier read may
-- be out of date.
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

-- Claims up to max_jobs waiting jobs of both queues, oldest first, and creates a run with a lease for each. A user
-- never has more than max_per_user live runs (null: no limit), even if several workers claim at the same time. The
-- attempt is counted here, so it is used even if the worker crashes directly afterwards.
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

-- Returns the waiting jobs of both queues.
create or replace function public.training_waiting_jobs()
returns table (id uuid, user_id uuid, created_at timestamptz, current_stage text, retry_count int)
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
begin
  return query
    select j.id, j.user_id, j.created_at, j.current_stage::text, j.retry_count
    from public.training_jobs j where j.status = 'queued';
  if to_regclass('public.pipeline_training_jobs') is not null then
    return query
      select j.id, coalesce(j.user_id, public.training_pipeline_maker(j.id)), j.created_at::timestamptz,
             case when public.training_dataset_patience(j.dataset_id, j.created_at::timestamptz) > 0
                  then 'waiting_for_dataset' end,
             (select count(*)::int from public.training_runs r where r.job_id = j.id)
      from public.pipeline_training_jobs j where j.status = 'pending';
  end if;
end
$$;

-- The newer queue's table belongs to the application. Its index is created by the first `lora-worker migrate` after
-- the table exists.
do $migration$
declare
  waited record;
begin
  for waited in
    select * from (values
      ('training_jobs', 'queued', 'user_id'),
      ('pipeline_training_jobs', 'pending', 'coalesce(user_id, ''00000000-0000-0000-0000-000000000000'')')
    ) as w (table_name, status, owner)
    where to_regclass('public.' || w.table_name) is not null
      and to_regclass(format('public.%s_waiting_idx', w.table_name)) is null
  loop
    execute format(
      'create index %s_waiting_idx on public.%I ((%s), coalesce(created_at, ''infinity''), id) where status = %L',
      waited.table_name, waited.table_name, waited.owner, waited.status);
  end loop;
end
$migration$;

call public.training_set_function_rights(open => false);
