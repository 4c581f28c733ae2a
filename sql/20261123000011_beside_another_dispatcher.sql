-- A guard for jobs in this worker's hands, for as long as another dispatcher of either queue runs beside it.
-- Those select, then update by id alone, and look at no answer: they would write over a live run's progress,
-- end it early, bill it twice, or bring a cancelled job back. The newer queue's own trainer writes into its
-- job's row by itself, and would have an unverified archive deployed.
--
-- The functions of this schema write as their owner; everybody else comes through the API with one of its
-- roles, and only those are held back, without an error. Jobs that this worker never had are not touched.

-- Whether a job is this worker's: it has a live run, or it has ended and had one. `status` is the job's, where
-- the caller holds its row; without it the job is one of the older queue's. Volatile, so that it sees a claim
-- that the caller's own statement waited for.
create or replace function public.training_is_ours(job_id uuid, status text default null) returns boolean
language sql volatile security definer set search_path = '' as $$
  select exists (
    select from public.training_runs r left join public.training_jobs j on j.id = r.job_id
    where r.job_id = training_is_ours.job_id
      and (r.status in ('claimed', 'launched', 'running')
           or coalesce(training_is_ours.status, j.status) in ('completed', 'failed', 'cancelled')))
$$;

-- Leaves a job of ours as it is. What may change from outside: it may be cancelled while it has not ended,
-- and the columns that the worker does not write. An ended job may still get the artifact that it lacks.
create or replace function public.training_keep_job() returns trigger
language plpgsql set search_path = '' as $$
declare
  written text[] := array[
    'status', 'current_stage', 'progress', 'current_epoch', 'current_step', 'total_steps', 'current_metrics',
    'started_at', 'completed_at', 'estimated_completion_at', 'current_cost', 'final_cost', 'error_message',
    'error_stack', 'retry_count', 'external_job_id', 'current_loss', 'current_learning_rate', 'tokens_per_second',
    'final_loss', 'training_time_seconds', 'actual_cost', 'runpod_job_id', 'adapter_file_path'];
  -- A cancel says when and for how much; it does not know the rest any better.
  cancels constant text[] := array['status', 'current_stage', 'completed_at', 'final_cost'];
  kept jsonb := to_jsonb(old);
begin
  if current_user not in ('anon', 'authenticated', 'service_role')
     or not public.training_is_ours(old.id, old.status) then
    return new;
  end if;
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

-- Drops rows that only a job's dispatcher writes, where the job is ours: points, costs, and notices of what
-- the worker tells itself.
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

do $migration$
declare
  guarded record;
begin
  for guarded in
    select * from (values
      ('training_keep_job', 'update', 'training_jobs'),
      -- The application's own table; `lora-worker migrate` makes this once it is there.
      ('training_keep_job', 'update', 'pipeline_training_jobs'),
      ('training_drop_foreign_row', 'insert', 'metrics_points'),
      ('training_drop_foreign_row', 'insert', 'cost_records'),
      ('training_drop_foreign_row', 'insert', 'notifications')) as g (name, event, table_name)
    where to_regclass('public.' || g.table_name) is not null
      and not exists (select from pg_trigger t
                      where t.tgrelid = to_regclass('public.' || g.table_name) and t.tgname = g.name)
  loop
    execute format('create trigger %I before %s on public.%I for each row execute function public.%I()',
                   guarded.name, guarded.event, guarded.table_name, guarded.name);
  end loop;
end
$migration$;

do $migration$
declare
  signature regprocedure;
begin
  for signature in
    select p.oid::regprocedure from pg_proc p
    where p.pronamespace = 'public'::regnamespace
      and p.proname in ('training_is_ours', 'training_keep_job', 'training_drop_foreign_row')
  loop
    execute format('revoke all on function %s from public, anon, authenticated, service_role', signature);
  end loop;
end
$migration$;
