-- Machines that were started for one run: their result comes by the run's own channel, since no launcher carries it, and
-- what a launcher has running is compared with what was recorded.

do $migration$
begin
  if to_regclass('public.training_results') is null then
    -- All of the lock at once: one that is raised in the middle of a migration deadlocks with a live worker's renewals.
    lock table public.training_runs in access exclusive mode;
  end if;
end
$migration$;

-- The result that a run's trainer has reported, as it came: a container wrote it, so workers check it as they check a
-- launcher's output. Rows go with their run's end.
create table if not exists public.training_results (
  run_id uuid primary key references public.training_runs (id) on delete cascade,
  execution_id uuid not null,
  result jsonb not null,
  bytes int not null,
  reported_at timestamptz not null default clock_timestamp()
);

do $migration$
begin
  if not (select c.relrowsecurity from pg_class c where c.oid = 'public.training_results'::regclass) then
    alter table public.training_results enable row level security;
  end if;
end
$migration$;

revoke all on public.training_results from public, anon, authenticated, service_role;
grant select on public.training_results to service_role;

-- The trigger of 20261126000001 calls it at the end of each run.
create or replace function public.training_forget_progress() returns trigger
language plpgsql set search_path = '' as $$
begin
  delete from public.training_progress p where p.run_id = new.id;
  delete from public.training_results t where t.run_id = new.id;
  return null;
end
$$;

-- As before, and also true where the run's trainer has reported its result. check_in_run refuses a new execution of such
-- a run: a cloud that starts an ended container again would have it trained twice.
create or replace function public.training_is_published(run public.training_runs) returns boolean
language plpgsql stable set search_path = '' as $$
declare
  found_it boolean := exists (select from public.training_results t where t.run_id = run.id);
begin
  if not found_it and run.upload_granted_at is not null and to_regclass('storage.objects') is not null then
    execute 'select exists (select from storage.objects where name in ($1, $2))' into found_it
    using 'uploads/' || run.id || '/manifest.json', run.user_id || '/' || run.id || '/manifest.json';
  end if;
  return found_it;
end
$$;

-- Stores how the run has ended, for a trainer whose launcher carries no result; otherwise as check_in_run. Only the
-- execution that trains may say so, also after its job was cancelled, and its first word counts. A result that is no
-- object, too large, or not readable in a bounded time is left out; the answer's result_stored says which. Callable by
-- anon.
create or replace function public.finish_run(token text, external_job_id text, execution_id uuid, result jsonb)
returns jsonb
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  answer jsonb;
  run public.training_runs;
begin
  answer := public.check_in_run(finish_run.token, finish_run.external_job_id, finish_run.execution_id);
  select * into run from public.training_run_of_token(finish_run.token);
  -- The size comes first: it is known without reading the value.
  if run.status in ('claimed', 'launched', 'running') and run.execution_id = finish_run.execution_id
     and run.external_job_id = finish_run.external_job_id and pg_column_size(finish_run.result) <= 1600000 then
    result := public.training_decoded(finish_run.result);
    if jsonb_typeof(finish_run.result) = 'object' and public.training_json_fault(finish_run.result, 200000) is null then
      insert into public.training_results (run_id, execution_id, result, bytes)
      values (run.id, finish_run.execution_id, finish_run.result, octet_length(finish_run.result::text))
      on conflict (run_id) do nothing;
    end if;
  end if;
  return answer || jsonb_build_object('result_stored', exists (
    select from public.training_results t where t.run_id = run.id and t.execution_id = finish_run.execution_id));
end
$$;

-- As before, and beside the progress the result that the run's trainer has reported, null where there is none: to workers
-- that send has_result: false with a lease, which those of before do not.
create or replace function public.renew_training_runs_2(leases jsonb, lease_seconds int) returns jsonb
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  news jsonb;
begin
  leases := public.training_decoded(renew_training_runs_2.leases);
  news := public.renew_training_runs(renew_training_runs_2.leases, renew_training_runs_2.lease_seconds);
  return coalesce((
    select jsonb_agg(n.entry || jsonb_build_object('progress', p.progress, 'progress_number', p.number,
                                                   'result', t.result, 'withdrawn_at', r.withdrawn_at))
    from jsonb_array_elements(news) n (entry)
    left join (
      -- As many as fit a megabyte, and others the next time: containers write them.
      select c.run_id, sum(c.bytes) over (order by random() rows unbounded preceding) as bytes
      from jsonb_array_elements(renew_training_runs_2.leases) l (entry)
      join public.training_progress c on c.run_id = (l.entry->>'run_id')::uuid
      where c.number > coalesce((l.entry->>'progress_number')::bigint, 0)
    ) fresh on fresh.run_id = (n.entry->>'run_id')::uuid and fresh.bytes <= 1000000
            and (n.entry->>'held')::boolean
    left join public.training_progress p on p.run_id = fresh.run_id
    left join (
      -- As above.
      select c.run_id, sum(c.bytes) over (order by random() rows unbounded preceding) as bytes
      from jsonb_array_elements(renew_training_runs_2.leases) l (entry)
      join public.training_results c on c.run_id = (l.entry->>'run_id')::uuid
      where l.entry->'has_result' = 'false'
    ) ended on ended.run_id = (n.entry->>'run_id')::uuid and ended.bytes <= 1000000
            and (n.entry->>'held')::boolean
    left join public.training_results t on t.run_id = ended.run_id
    left join public.training_runs r on r.id = (n.entry->>'run_id')::uuid and (n.entry->>'held')::boolean), '[]');
end
$$;

-- Compares what lives in a launcher's account with what was recorded. launches: [{external_job_id, run_id}], as their
-- names there say. Returns an entry for each that was not known as it is, {external_job_id, run_id, found}:
-- - noted: a worker died, or lost the answer, before it recorded the id. It is the run's launch now: a live run that has
--   none goes on with it, and any other is a stray, which is stopped and billed.
-- - reopened: it was taken for ended and lives; it is a stray again.
-- - another_runs: a container of another run has named this id as its own.
-- - no_run: this database knows no such run.
create or replace function public.note_owned_launches(launcher text, endpoint text, launches jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  owned record;
  run public.training_runs;
  launch public.training_launches;
  found_as text;
  told jsonb := '[]';
begin
  launches := public.training_decoded(note_owned_launches.launches);
  if jsonb_array_length(note_owned_launches.launches) > 1000 then
    raise exception using errcode = 'PT400', message = 'launches must be an array of 1000 entries at most';
  end if;
  -- In order of the run's id, in which runs are locked everywhere.
  for owned in
    select o->>'external_job_id' as external_job_id, (o->>'run_id')::uuid as run_id
    from jsonb_array_elements(note_owned_launches.launches) o
    order by 2, 1
  loop
    perform public.training_check_external_job_id(owned.external_job_id);
    -- Without a lock for what is known, which is nearly all of it nearly always.
    continue when exists (
      select from public.training_launches l
      where l.external_job_id = owned.external_job_id and l.run_id = owned.run_id
        -- The cloud's list may lag behind an end.
        and (l.ended_at is null or l.ended_at > now() - interval '5 minutes'));
    select * into run from public.training_runs r where r.id = owned.run_id for update;
    select * into launch from public.training_launches l where l.external_job_id = owned.external_job_id;
    found_as := case
      when run.id is null then 'no_run'
      when launch.run_id <> run.id then 'another_runs'
      when launch.ended_at is not null then 'reopened'
      when launch.id is null then 'noted'
    end;
    if found_as = 'reopened' then
      update public.training_launches l set ended_at = null where l.id = launch.id;
    elsif found_as = 'noted' then
      perform public.training_note_owned(run, note_owned_launches.launcher, owned.external_job_id,
                                         note_owned_launches.endpoint);
    end if;
    if found_as is not null then
      told := told || jsonb_build_object('external_job_id', owned.external_job_id, 'run_id', owned.run_id,
                                         'found', found_as);
    end if;
  end loop;
  return told;
end
$$;

-- Gives the id to the run's latest intent to launch there that has none, as record_launch would have done. The caller has
-- locked the run. An intent of the same endpoint comes first: several may share one account.
create or replace function public.training_note_owned(
  run public.training_runs, launcher text, external_job_id text, endpoint text
) returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
  launch public.training_launches;
  job jsonb;
begin
  update public.training_launches l set external_job_id = training_note_owned.external_job_id
  where l.id = (
    select u.id from public.training_launches u
    where u.run_id = run.id and u.external_job_id is null and u.launcher = training_note_owned.launcher
    order by (u.endpoint is not distinct from training_note_owned.endpoint) desc, u.id desc limit 1)
  returning * into launch;
  if not found then
    insert into public.training_launches (run_id, launcher, external_job_id, endpoint, posted_at)
    select run.id, training_note_owned.launcher, training_note_owned.external_job_id, training_note_owned.endpoint,
           coalesce(min(p.posted_at), now())
    from public.training_launches p where p.run_id = run.id
    returning * into launch;
  end if;
  if run.status in ('claimed', 'launched') and run.external_job_id is null and run.checked_in_at is null then
    update public.training_runs r
    set status = 'launched', external_job_id = launch.external_job_id, endpoint = launch.endpoint,
        launched_at = coalesce(r.launched_at, clock_timestamp()), handlings = 0
    where r.id = run.id;
    job := public.training_job_row(run.queue, run.job_id, locked => true);
    if job->>'status' in ('queued', 'initializing', 'running') then
      perform public.training_write_job(run.queue, run.job_id, jsonb_build_object(
        'status', 'running', 'current_stage', 'queued_on_gpu', 'external_job_id', launch.external_job_id));
    end if;
  end if;
end
$$;

revoke all on function public.finish_run(text, text, uuid, jsonb),
  public.note_owned_launches(text, text, jsonb), public.training_note_owned(public.training_runs, text, text, text)
  from public, anon, authenticated, service_role;
grant execute on function public.finish_run(text, text, uuid, jsonb) to anon, service_role;
grant execute on function public.note_owned_launches(text, text, jsonb) to service_role;
