-- Who waits. A claim has to find the oldest waiting jobs without looking at each job that waits, since a user at the
-- limit may have thousands, nor at each one that has ended: as long as anybody holds a transaction open, Postgres
-- keeps those in its indexes. So it knows the users that may have waiting jobs, and for each since when.

-- Notes a job that waits. Whoever adds one holds its user's row here until the transaction's end, so that nobody
-- takes it away, or moves its time on, without having seen the job.
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

-- Brings what is known of a few users up to date: of those that nobody has looked at for the longest time, and that
-- nobody adds a job for at the moment.
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
      -- least() passes over a null.
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
          -- A run is as old as the claim that makes it, and no claim takes minutes.
          lives_since = least(now() - interval '10 minutes', (
            select min(r.created_at) from public.training_runs r
            where r.user_id = known.user_id and r.status in ('claimed', 'launched', 'running')
              and r.created_at >= known.lives_since))
      where w.user_id = known.user_id;
    end if;
  end loop;
end
$$;

-- How many live runs a user has.
create or replace function public.training_live_runs(user_id uuid) returns int
language sql stable set search_path = '' as $$
  select count(*)::int from public.training_runs r
  where r.user_id = training_live_runs.user_id and r.status in ('claimed', 'launched', 'running')
    and r.created_at >= coalesce((select w.lives_since from public.training_waiting_users w
                                  where w.user_id = training_live_runs.user_id), '-infinity')
$$;

-- How many jobs of a user wait in both queues, each counted up to `most`.
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

-- Refuses a signed-in user's job when as many of the user's jobs wait as may. The worker's setting says how many;
-- the application's own routes may queue more.
create or replace function public.training_limit_waiting() returns trigger
language plpgsql security definer set search_path = '' as $$
declare
  most int := coalesce((select (t.document->>'max_queued_per_user')::int from public.training_terms t), 100);
begin
  if tg_op = 'UPDATE' and old.status = new.status then
    return new;
  end if;
  -- The user's other calls wait here, so that no two of them take the last place.
  perform pg_advisory_xact_lock(hashtextextended('waiting jobs ' || new.user_id, 0));
  if public.training_waiting_count(new.user_id, most) >= most then
    raise exception using errcode = 'PT429',
      message = format('%s of your jobs wait already, and no more may: wait until some have started, or cancel some', most);
  end if;
  return new;
end
$$;

-- Marks a new job that has to wait.
create or replace function public.training_mark_waiting() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  if new.status = 'queued' and public.training_dataset_patience(new.dataset_id, now()) > 0 then
    new.current_stage := 'waiting_for_dataset';
  end if;
  return new;
end
$$;

-- Marks the waiting jobs of a dataset when it becomes ready, fails, or is validated anew, whoever wrote that.
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

-- The oldest waiting jobs of both queues that may be claimed now, `most` of them, without those jobs and users that
-- the caller has tried. Of a user at the limit no job is looked at. Of all others only as many as are wanted, in the
-- index's order: a plan that is kept does not know how few they are, and might read and sort all.
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
        -- It waits for its base model or the image.
        and not exists (select from public.training_holds h where h.job_id = j.id and h.held_until > now())
        -- Its dataset is not there yet.
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
      -- The table came after the last migration: nobody notes who waits there.
      select coalesce(p.user_id, '00000000-0000-0000-0000-000000000000'), '-infinity'
      from public.pipeline_training_jobs p
      where p.status = 'pending' and not exists (
        select from pg_catalog.pg_trigger t
        where t.tgrelid = 'public.pipeline_training_jobs'::regclass and t.tgname = 'training_note_waiting')
      group by 1
    ) w
    cross join lateral (
      -- 'queued' there says that the application's own dispatcher took the job: only 'pending' waits for us.
      select j.id, coalesce(j.created_at, 'infinity') as since
      from public.pipeline_training_jobs j
      where coalesce(j.user_id, '00000000-0000-0000-0000-000000000000') = w.user_id and j.status = 'pending'
        and coalesce(j.created_at, 'infinity') >= w.waits_since
        and j.id <> all (tried_jobs)
        and not exists (
          select from public.training_runs r
          where r.job_id = j.id and (r.status in ('claimed', 'launched', 'running') or r.next_attempt_at > now()))
        -- It waits for its base model or the image.
        and not exists (select from public.training_holds h where h.job_id = j.id and h.held_until > now())
        -- Its dataset is not there yet.
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

-- Locks a job that still waits, and that nobody else holds; whether it did. What the caller saw before may be past.
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

-- Claims up to max_jobs waiting jobs of both queues, oldest first, and makes a run with a lease for each.
-- A user never has more than max_per_user live runs (null: no limit), however many workers claim at once.
-- The attempt is counted here, so that a worker that dies in the next line has still used it.
create or replace function public.claim_training_jobs(
  worker text, max_jobs int, lease_seconds int, max_per_user int default null
) returns jsonb
-- A plan that was made while the tables were small would read them whole for each job of a large batch.
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
  -- What others lock at the moment is passed over, and the next ones are tried, more of them in each round.
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
          -- Under the user's lock the count is exact.
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

-- The jobs of both queues that wait for a worker.
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

-- The newer queue's table is the application's own; `lora-worker migrate` makes its index once it is there.
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
