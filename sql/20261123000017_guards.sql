-- Guards of the application's tables: what users may change in their own rows, and what another dispatcher of either
-- queue may change in jobs that this worker is working on.
--
-- Other dispatchers read jobs and later update them by id, without checking their state. They would overwrite the
-- progress of a live run, end it early, bill it twice, or restart a cancelled job. The newer queue's own trainer
-- updates its job's row, too, and would deploy an archive that nobody has verified.
--
-- The functions of this schema write with the rights of their owner. Everybody else comes through the API with one of
-- its roles, and only those roles are restricted. Jobs that this worker never had are not restricted.

-- Lets users change a job in one way only: they can cancel it. The database writes the end and the cost, so that no
-- client's clock and no NaN gets into the row.
create or replace function public.training_guard_job() returns trigger
language plpgsql set search_path = '' as $$
declare
  sent constant text[] := array['status', 'current_stage', 'completed_at', 'final_cost', 'updated_at'];
begin
  -- The functions of this schema write with the rights of their owner.
  if current_user not in ('anon', 'authenticated') then
    return new;
  end if;
  if new.status is distinct from 'cancelled'
     or old.status is null or old.status not in ('queued', 'initializing', 'running')
     or to_jsonb(new) - sent <> to_jsonb(old) - sent then
    raise exception using errcode = '42501',
      message = 'a job can only be cancelled, and only before it has ended',
      hint = 'set status to cancelled, and nothing else than completed_at and final_cost beside it';
  end if;
  new.current_stage := 'cancelled';
  new.completed_at := now();
  new.final_cost := coalesce(old.current_cost, 0);
  return new;
end
$$;

-- Lets users change only `read` in a notification.
create or replace function public.training_guard_notification() returns trigger
language plpgsql set search_path = '' as $$
begin
  if current_user in ('anon', 'authenticated')
     and to_jsonb(new) - array['read'] <> to_jsonb(old) - array['read'] then
    raise exception using errcode = '42501', message = 'of a notification only read can be changed';
  end if;
  return new;
end
$$;

-- Says whether a job is this worker's: it has a live run, or it has ended and had a run. `status` is that of the job
-- if the caller has its row; without it, the status is read from the older queue. Volatile, so that it sees a claim
-- for which the caller's own statement has waited.
create or replace function public.training_is_ours(job_id uuid, status text default null) returns boolean
language sql volatile security definer set search_path = '' as $$
  select exists (
    select from public.training_runs r left join public.training_jobs j on j.id = r.job_id
    where r.job_id = training_is_ours.job_id
      and (r.status in ('claimed', 'launched', 'running')
           or coalesce(training_is_ours.status, j.status) in ('completed', 'failed', 'cancelled')))
$$;

-- Keeps the columns of this worker's jobs that the worker writes. Others may still cancel a job that has not ended,
-- change all other columns, and set the artifact of an ended job that has none.
create or replace function public.training_keep_job() returns trigger
language plpgsql set search_path = '' as $$
declare
  written text[];
  -- A cancelling update sets the end and the cost. Its other values are out of date.
  cancels constant text[] := array['status', 'current_stage', 'completed_at', 'final_cost'];
  kept jsonb := to_jsonb(old);
begin
  if current_user not in ('anon', 'authenticated', 'service_role')
     or not public.training_is_ours(old.id, old.status) then
    return new;
  end if;
  written := public.training_written_columns(tg_table_name);
  if old.status not in ('completed', 'failed', 'cancelled') and new.status = 'cancelled' then
    kept := kept - cancels;
  end if;
  if kept->>'artifact_id' is not null then
    written := written || 'artifact_id'::text;
  end if;
  return jsonb_populate_record(new, coalesce(
    (select jsonb_object_agg(k.key, k.value) from jsonb_each(kept) k where k.key = any (written)), '{}'));
end
$$;

-- Skips inserts of rows that only a job's dispatcher writes, if the job is this worker's: points, costs, and the
-- notifications that the worker writes itself.
create or replace function public.training_drop_foreign_row() returns trigger
language plpgsql set search_path = '' as $$
declare
  named jsonb := to_jsonb(new);
  of_job text := coalesce(named->>'job_id', named#>>'{metadata,job_id}');
begin
  if current_user not in ('anon', 'authenticated', 'service_role')
     or tg_table_name = 'notifications'
        and named->>'type' not in ('job_started', 'job_completed', 'job_failed', 'artifact_ready') then
    return new;
  end if;
  if of_job ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then
    return case when public.training_is_ours(of_job::uuid) then null else new end;
  end if;
  return new;
end
$$;

call public.training_set_function_rights(open => false);
