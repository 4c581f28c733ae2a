-- Version 2: progress by the run's own channel, and launches that are adopted by a worker of their own launcher.
-- Workers and trainers of version 1 go on with the functions that they know.

do $migration$
begin
  if to_regclass('public.training_progress') is null then
    -- All of the lock at once: one that is raised in the middle of a migration deadlocks with a live worker's renewals.
    lock table public.training_runs in access exclusive mode;
  end if;
end
$migration$;

-- The latest progress that a run's trainer sent with its heartbeat, as it came: a container wrote it, so workers check
-- every value of it. A table of its own, since a run's row is read for many other purposes. Rows go with their run's end.
create table if not exists public.training_progress (
  run_id uuid primary key references public.training_runs (id) on delete cascade,
  progress jsonb not null,
  bytes int not null,
  -- Counts the reports, so that a worker is sent each of them once.
  number bigint not null default 1,
  reported_at timestamptz not null default clock_timestamp()
);

do $migration$
begin
  if not (select c.relrowsecurity from pg_class c where c.oid = 'public.training_progress'::regclass) then
    alter table public.training_progress enable row level security;
  end if;
end
$migration$;

revoke all on public.training_progress from public, anon, authenticated, service_role;
grant select on public.training_progress to service_role;

create or replace function public.training_forget_progress() returns trigger
language plpgsql set search_path = '' as $$
begin
  delete from public.training_progress p where p.run_id = new.id;
  return null;
end
$$;

do $migration$
begin
  if not exists (select from pg_trigger
                 where tgrelid = 'public.training_runs'::regclass and tgname = 'training_forget_progress') then
    create trigger training_forget_progress after update on public.training_runs for each row
    when (old.status in ('claimed', 'launched', 'running') and new.status not in ('claimed', 'launched', 'running'))
    execute function public.training_forget_progress();
  end if;
end
$migration$;

-- The trainer's heartbeat, as check_in_run with the same arguments, and beside it how far its run is. Only the progress
-- of the execution that may train is stored. One that is no object, too large, or not readable in a bounded time is
-- left out, and the heartbeat counts all the same; the answer's progress_stored says which. Callable by anon.
create or replace function public.heartbeat_run(token text, external_job_id text, execution_id uuid, progress jsonb)
returns jsonb
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  answer jsonb;
  stored boolean := false;
begin
  answer := public.check_in_run(heartbeat_run.token, heartbeat_run.external_job_id, heartbeat_run.execution_id);
  -- The size comes first: it is known without reading the value.
  if (answer->>'may_train')::boolean and pg_column_size(heartbeat_run.progress) <= 320000 then
    progress := public.training_decoded(heartbeat_run.progress);
    if jsonb_typeof(heartbeat_run.progress) = 'object'
       and public.training_json_fault(heartbeat_run.progress, 40000) is null then
      insert into public.training_progress as p (run_id, progress, bytes)
      select r.id, heartbeat_run.progress, octet_length(heartbeat_run.progress::text)
      from public.training_run_of_token(heartbeat_run.token) r
      on conflict (run_id) do update
      set progress = excluded.progress, bytes = excluded.bytes, number = p.number + 1, reported_at = clock_timestamp();
      stored := true;
    end if;
  end if;
  return answer || jsonb_build_object('progress_stored', stored);
end
$$;

-- As renew_training_runs, and beside it the progress that is new to the worker: leases is
-- [{run_id, lease_token, progress_number}] with the number of the report that the worker has read last, 0 for none.
-- Each answer has progress and progress_number, null where nothing is new.
create or replace function public.renew_training_runs_2(leases jsonb, lease_seconds int) returns jsonb
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  news jsonb;
begin
  leases := public.training_decoded(renew_training_runs_2.leases);
  news := public.renew_training_runs(renew_training_runs_2.leases, renew_training_runs_2.lease_seconds);
  return coalesce((
    select jsonb_agg(n.entry || jsonb_build_object('progress', p.progress, 'progress_number', p.number))
    from jsonb_array_elements(news) n (entry)
    left join (
      -- As many as fit a megabyte, and others the next time: containers write them.
      select c.run_id, sum(c.bytes) over (order by random() rows unbounded preceding) as bytes
      from jsonb_array_elements(renew_training_runs_2.leases) l (entry)
      join public.training_progress c on c.run_id = (l.entry->>'run_id')::uuid
      where c.number > coalesce((l.entry->>'progress_number')::bigint, 0)
    ) fresh on fresh.run_id = (n.entry->>'run_id')::uuid and fresh.bytes <= 1000000
            and (n.entry->>'held')::boolean
    left join public.training_progress p on p.run_id = fresh.run_id), '[]');
end
$$;

-- As adopt_training_runs, for a worker of one launcher: a run that another launcher started is left to a worker that
-- knows that one. With a lease of this worker no other could adopt it.
create or replace function public.adopt_training_runs_2(worker text, max_runs int, lease_seconds int, launcher text)
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
      and coalesce(r.launcher, adopt_training_runs_2.launcher) = adopt_training_runs_2.launcher
    order by r.lease_expires_at
    limit greatest(adopt_training_runs_2.max_runs, 0)
    for update skip locked
  ), taken as (
    update public.training_runs r
    set worker = adopt_training_runs_2.worker,
        lease_token = gen_random_uuid(),
        lease_expires_at = now() + make_interval(secs => adopt_training_runs_2.lease_seconds)
    from expired e where r.id = e.id
    returning r.id, r.created_at
  )
  select array_agg(id order by created_at, id) into adopted from taken;
  return coalesce(
    (select jsonb_agg(public.training_assignment(id)) from unnest(adopted) as id), '[]');
end
$$;

create or replace function public.worker_schema_version() returns int
language sql immutable set search_path = '' as $$ select 2 $$;

-- Whether the functions of version 2 are in the database (see worker_schema_1).
create or replace function public.worker_schema_2(dataset public.datasets) returns boolean
language sql immutable set search_path = '' as $$ select true $$;

-- Who may call what is new here: the list of version 1 is closed.
revoke all on function public.training_forget_progress(), public.heartbeat_run(text, text, uuid, jsonb),
  public.renew_training_runs_2(jsonb, int), public.adopt_training_runs_2(text, int, int, text),
  public.worker_schema_2(public.datasets)
  from public, anon, authenticated, service_role;
grant execute on function public.heartbeat_run(text, text, uuid, jsonb) to anon, service_role;
grant execute on function public.renew_training_runs_2(jsonb, int),
  public.adopt_training_runs_2(text, int, int, text), public.worker_schema_2(public.datasets) to service_role;
