-- Jobs whose dataset is still being uploaded or validated: they wait in the queue, say so in current_stage, and take
-- no worker's slot.

-- How many more seconds a job may wait for its dataset: null where there is nothing to wait for, and 0 once it has
-- waited for a day. Then it is claimed all the same, and fails with a sentence.
create or replace function public.training_dataset_patience(dataset_id uuid, queued_at timestamptz)
returns double precision
language sql stable set search_path = '' as $$
  -- A row may say 'infinity', which no wait can be counted from.
  select case when isfinite(training_dataset_patience.queued_at)
              then greatest(86400 - extract(epoch from now() - training_dataset_patience.queued_at), 0) else 0 end
  from public.datasets d
  where d.id = training_dataset_patience.dataset_id and d.status in ('uploading', 'validating')
    and d.deleted_at is null
$$;

-- The same for a job of either queue, whose dataset was found by its id or by its file.
create or replace function public.training_job_patience(queue text, job_id uuid, dataset_id uuid)
returns double precision
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
begin
  if training_job_patience.queue = 'training_jobs' then
    return (select public.training_dataset_patience(training_job_patience.dataset_id, j.created_at)
            from public.training_jobs j where j.id = training_job_patience.job_id);
  end if;
  if to_regclass('public.pipeline_training_jobs') is null then
    return null;
  end if;
  return (select public.training_dataset_patience(training_job_patience.dataset_id, j.created_at::timestamptz)
          from public.pipeline_training_jobs j where j.id = training_job_patience.job_id);
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

do $migration$
declare
  wanted record;
  signature regprocedure;
begin
  for wanted in
    select * from (values
      ('training_jobs', 'training_mark_waiting', 'before insert'),
      ('datasets', 'training_mark_waiting_jobs', 'after update of status, deleted_at')) as w (table_name, name, moment)
  loop
    if not exists (select from pg_trigger
                   where tgrelid = format('public.%I', wanted.table_name)::regclass and tgname = wanted.name) then
      execute format('create trigger %I %s on public.%I for each row execute function public.%I()',
                     wanted.name, wanted.moment, wanted.table_name, wanted.name);
    end if;
  end loop;
  for signature in
    select p.oid::regprocedure from pg_proc p
    where p.pronamespace = 'public'::regnamespace
      and p.proname in ('training_dataset_patience', 'training_job_patience', 'training_mark_waiting',
                        'training_mark_waiting_jobs')
  loop
    execute format('revoke all on function %s from public, anon, authenticated, service_role', signature);
  end loop;
end
$migration$;
