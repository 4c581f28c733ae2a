-- Makes one queue of two. A job of the newer queue, `pipeline_training_jobs`, is read and written here in the columns
-- of `training_jobs`, so that all other functions know one kind of job. That table belongs to the application: where
-- it is missing, every function works as if it were empty.

-- Returns the creator of a job of the newer queue, who counts as its user if user_id is null. The column created_by
-- was added by a later version of the application: where it is missing, the name below means that of `absent`.
create or replace function public.training_pipeline_maker(job_id uuid) returns uuid
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
begin
  return (
    select (select created_by from (select j.*) own)
    from public.pipeline_training_jobs j, (select null::uuid as created_by) absent
    where j.id = training_pipeline_maker.job_id);
end
$$;

-- Returns a job's status; null if there is no such job. 'pending' is returned as 'queued'.
create or replace function public.training_job_status(queue text, job_id uuid) returns text
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
begin
  if training_job_status.queue = 'training_jobs' then
    return (select left(j.status, 50) from public.training_jobs j where j.id = training_job_status.job_id);
  end if;
  if to_regclass('public.pipeline_training_jobs') is null then
    return null;
  end if;
  return (select case j.status when 'pending' then 'queued' else left(j.status, 50) end
          from public.pipeline_training_jobs j where j.id = training_job_status.job_id);
end
$$;

-- Returns a job in the columns of training_jobs, without hyperparameters and gpu_config; null if there is no such
-- job. With `locked` the row stays locked until the end of the transaction. Columns that a user can fill without a
-- limit are cut or left out.
create or replace function public.training_job_row(queue text, job_id uuid, locked boolean default false)
returns jsonb
language plpgsql set search_path = '' as $$
#variable_conflict use_column
begin
  if training_job_row.queue = 'training_jobs' then
    if training_job_row.locked then
      perform from public.training_jobs j where j.id = training_job_row.job_id for update;
    end if;
    return (
      select jsonb_build_object(
        'id', j.id,
        'user_id', j.user_id,
        'dataset_id', j.dataset_id,
        'preset_id', left(j.preset_id, 50),
        'status', left(j.status, 50),
        'current_stage', left(j.current_stage, 50),
        'progress', j.progress,
        'current_epoch', j.current_epoch,
        'total_epochs', j.total_epochs,
        'current_step', j.current_step,
        'total_steps', j.total_steps,
        'current_metrics', case when public.training_json_fault(j.current_metrics, 4096) is null
                                then j.current_metrics end,
        'started_at', j.started_at,
        'completed_at', j.completed_at,
        'estimated_completion_at', j.estimated_completion_at,
        'current_cost', j.current_cost,
        'retry_count', j.retry_count,
        'external_job_id', left(j.external_job_id, 255),
        'artifact_id', j.artifact_id)
      from public.training_jobs j
      where j.id = training_job_row.job_id);
  end if;
  if to_regclass('public.pipeline_training_jobs') is null then
    return null;
  end if;
  if training_job_row.locked then
    perform from public.pipeline_training_jobs j where j.id = training_job_row.job_id for update;
  end if;
  return (
    select jsonb_build_object(
      'id', j.id,
      'user_id', coalesce(j.user_id, public.training_pipeline_maker(j.id)),
      'dataset_id', j.dataset_id,
      'status', case j.status when 'pending' then 'queued' else left(j.status, 50) end,
      'progress', j.progress,
      'current_epoch', j.current_epoch,
      'total_epochs', j.epochs,
      'current_step', j.current_step,
      'total_steps', j.total_steps,
      'started_at', j.started_at,
      'completed_at', j.completed_at,
      'current_cost', j.actual_cost,
      'external_job_id', left(j.runpod_job_id, 255))
    from public.pipeline_training_jobs j
    where j.id = training_job_row.job_id);
end
$$;

-- Returns what a job's user asked for: {hyperparameters, gpu_config, dataset_id, dataset_name, dataset_file_path,
-- unreadable}. `unreadable` names the columns that are too large to be read, in words; those columns are null then.
-- The limits are higher than those for users, since the worker adds keys.
create or replace function public.training_job_order(queue text, job_id uuid) returns jsonb
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
begin
  if training_job_order.queue = 'training_jobs' then
    return (
      select jsonb_build_object(
        'hyperparameters', case when f.hyperparameters is null then j.hyperparameters end,
        'gpu_config', case when f.gpu_config is null then j.gpu_config end,
        'dataset_id', j.dataset_id,
        'unreadable', public.training_name_faults(to_jsonb(f)))
      from public.training_jobs j,
           lateral (select public.training_json_fault(j.hyperparameters, 8192) as hyperparameters,
                           public.training_json_fault(j.gpu_config, 8192) as gpu_config) f
      where j.id = training_job_order.job_id);
  end if;
  if to_regclass('public.pipeline_training_jobs') is null then
    return null;
  end if;
  return (
    select jsonb_build_object(
      'hyperparameters', jsonb_build_object(
        'learning_rate', j.learning_rate, 'batch_size', j.batch_size, 'epochs', j.epochs,
        'rank', j.rank, 'alpha', j.alpha, 'dropout', j.dropout),
      'gpu_config', jsonb_build_object('type', case when f.gpu_type is null then j.gpu_type end, 'count', j.gpu_count),
      'dataset_id', j.dataset_id,
      'dataset_name', left(j.dataset_name, 200),
      'dataset_file_path', case when f.dataset_file_path is null then j.dataset_file_path end,
      'unreadable', public.training_name_faults(to_jsonb(f)))
    from public.pipeline_training_jobs j,
         lateral (select public.training_text_fault(j.dataset_file_path, 1024) as dataset_file_path,
                         public.training_text_fault(j.gpu_type, 256) as gpu_type) f
    where j.id = training_job_order.job_id);
end
$$;

-- Returns a dataset as the worker reads it; null if there is none. `unreadable` is as above.
create or replace function public.training_dataset_row(dataset_id uuid) returns jsonb
language sql stable set search_path = '' as $$
  select jsonb_build_object(
    'id', d.id,
    'user_id', d.user_id,
    'name', left(d.name, 200),
    'status', left(d.status, 50),
    'training_ready', d.training_ready,
    'storage_bucket', case when f.storage_bucket is null then d.storage_bucket end,
    'storage_path', case when f.storage_path is null then d.storage_path else '' end,
    'format', left(d.format, 50),
    'file_size', d.file_size,
    'deleted_at', d.deleted_at,
    -- Where the column was removed again, the name means that of `fallback`. to_jsonb(d) would read the whole row,
    -- whose other columns may have any size.
    'error_message', case when d.status = 'error' then (
      select (select left(error_message, 500) from public.datasets own where own.id = d.id)
      from (select null::text as error_message) fallback) end,
    'unreadable', public.training_name_faults(to_jsonb(f)))
  from public.datasets d,
       lateral (select public.training_text_fault(d.storage_path, 1024) as storage_path,
                       public.training_text_fault(d.storage_bucket, 256) as storage_bucket) f
  where d.id = training_dataset_row.dataset_id
$$;

-- Returns the dataset that an answer of training_job_order means: the one that it names, else the owner's dataset
-- with the file that it names; null if there is none.
create or replace function public.training_order_dataset(ordered jsonb, user_id uuid) returns uuid
language sql stable set search_path = '' as $$
  select coalesce(
    (select d.id from public.datasets d where d.id = (ordered->>'dataset_id')::uuid),
    (select d.id from public.datasets d
     where d.storage_path = ordered->>'dataset_file_path' and d.user_id = training_order_dataset.user_id))
$$;

-- Returns for how many more seconds a job may wait for its dataset; null if it need not wait. After one day it is 0:
-- then the job is claimed, and fails with a message.
create or replace function public.training_dataset_patience(dataset_id uuid, queued_at timestamptz)
returns double precision
language sql stable set search_path = '' as $$
  -- A row may contain 'infinity', for which no waiting time can be computed.
  select case when isfinite(training_dataset_patience.queued_at)
              then greatest(86400 - extract(epoch from now() - training_dataset_patience.queued_at), 0) else 0 end
  from public.datasets d
  where d.id = training_dataset_patience.dataset_id and d.status in ('uploading', 'validating')
    and d.deleted_at is null
$$;

-- Returns the same for a job of either queue, whose dataset was found by its id or by its file.
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

-- Returns changes of a job in the columns of the newer queue. A job that waits for its GPU is 'initializing' there,
-- because that table has no stage, and its pages read 'running' as a training that has started.
create or replace function public.training_pipeline_columns(changes jsonb) returns jsonb
language sql immutable set search_path = '' as $$
  select coalesce((
      select jsonb_object_agg(c.key, c.value) from jsonb_each(changes) c
      where c.key in ('current_epoch', 'current_step', 'total_steps', 'started_at', 'completed_at',
                      'error_message', 'final_loss', 'training_time_seconds', 'adapter_file_path')), '{}')
    || case when changes ? 'status' then jsonb_build_object('status', case
         when changes->>'status' = 'queued' then 'pending'
         when changes->>'current_stage' = 'queued_on_gpu' then 'initializing'
         else changes->>'status' end) else '{}' end
    || case when changes ? 'external_job_id'
         then jsonb_build_object('runpod_job_id', changes->'external_job_id') else '{}' end
    || jsonb_strip_nulls(jsonb_build_object(
         -- greatest() and least() ignore null.
         'progress', case when changes->>'progress' is not null
                          then round(least(greatest((changes->>'progress')::numeric, 0), 100)) end,
         'actual_cost', coalesce(changes->>'final_cost', changes->>'current_cost')::numeric,
         'current_loss', changes->'current_metrics'->'training_loss',
         'current_learning_rate', changes->'current_metrics'->'learning_rate',
         'tokens_per_second', changes->'current_metrics'->'throughput'))
$$;

-- Returns the columns of a job that the worker writes while it works on the job, for the table of a queue. The
-- trigger training_keep_job protects them from others.
create or replace function public.training_written_columns(queue text) returns text[]
language sql immutable set search_path = '' as $$
  select array['status', 'progress', 'current_epoch', 'current_step', 'total_steps', 'started_at', 'completed_at',
               'error_message']
    || case training_written_columns.queue
         when 'training_jobs' then array[
           'current_stage', 'current_metrics', 'estimated_completion_at', 'current_cost', 'final_cost', 'error_stack',
           'retry_count', 'external_job_id']
         else array[
           'current_loss', 'current_learning_rate', 'tokens_per_second', 'final_loss', 'training_time_seconds',
           'actual_cost', 'runpod_job_id', 'adapter_file_path'] end
$$;

-- Writes those columns of a job that `changes` contains, in the columns of training_jobs. Columns that the job's
-- table does not have are ignored. A completed or failed job is never written again, since in the newer queue every
-- update of a completed row starts its deployment again.
create or replace function public.training_write_job(queue text, job_id uuid, changes jsonb) returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
  columns text := array_to_string(public.training_written_columns(training_write_job.queue), ', ');
begin
  if training_write_job.queue = 'training_jobs' then
    columns := columns || ', artifact_id, hyperparameters, gpu_config';
  else
    changes := public.training_pipeline_columns(changes);
    if changes = '{}' or to_regclass('public.pipeline_training_jobs') is null then
      return;
    end if;
    columns := columns || ', updated_at';
    changes := changes || jsonb_build_object('updated_at', now());
  end if;
  execute format(
    'update public.%I j set (%s) = (select %2$s from jsonb_populate_record(j, $1) n)
     where j.id = $2 and j.status not in (''completed'', ''failed'')', training_write_job.queue, columns)
  using changes, training_write_job.job_id;
end
$$;

-- Stores points that the job does not have yet, [{step, epoch, training_loss, ...}], in the form of its queue. With
-- `replaces`, it first deletes an earlier attempt's points from the first of these steps on.
create or replace function public.training_write_points(queue text, job_id uuid, points jsonb, replaces boolean)
returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
  first_step int := (select min((p->>'step')::int) from jsonb_array_elements(training_write_points.points) p);
begin
  if training_write_points.queue = 'training_jobs' then
    delete from public.metrics_points m
    where training_write_points.replaces and m.job_id = training_write_points.job_id and m.step >= first_step;
    insert into public.metrics_points (job_id, timestamp, epoch, step, training_loss, validation_loss,
                                       learning_rate, gradient_norm, throughput, gpu_utilization)
    select training_write_points.job_id, coalesce((p->>'timestamp')::timestamptz, now()), (p->>'epoch')::int,
           (p->>'step')::int, (p->>'training_loss')::numeric, (p->>'validation_loss')::numeric,
           (p->>'learning_rate')::numeric, (p->>'gradient_norm')::numeric,
           (p->>'throughput')::numeric, (p->>'gpu_utilization')::numeric
    from jsonb_array_elements(training_write_points.points) p
    order by (p->>'step')::int;
  elsif to_regclass('public.pipeline_training_metrics') is not null then
    -- The application's evaluations are in this table, too, with another measurement_method.
    delete from public.pipeline_training_metrics m
    where training_write_points.replaces and m.job_id = training_write_points.job_id
      and m.measurement_method = 'training_log' and m.step_number >= first_step;
    insert into public.pipeline_training_metrics (job_id, metric_id, metric_name, metric_level, value, unit,
                                                  measured_at, measurement_method, step_number, epoch_number)
    select training_write_points.job_id, k.id, k.name, 'universal', (p->>k.id)::double precision, k.unit,
           coalesce((p->>'timestamp')::timestamptz, now()), 'training_log', (p->>'step')::int, (p->>'epoch')::int
    from jsonb_array_elements(training_write_points.points) p
    cross join (values ('training_loss', 'Training loss', 'nats/token'),
                       ('validation_loss', 'Validation loss', 'nats/token'),
                       ('learning_rate', 'Learning rate', null),
                       ('gradient_norm', 'Gradient norm', null),
                       ('throughput', 'Throughput', 'tokens/s'),
                       ('gpu_utilization', 'GPU utilization', '%')) k (id, name, unit)
    where p->>k.id is not null
    order by (p->>'step')::int;
  end if;
end
$$;

-- Updates the stored points of a curve: adds validation losses that were not known before, and corrects those that
-- were copied from an earlier step. With `whole`, it deletes points at all other steps.
create or replace function public.training_revise_points(
  queue text, job_id uuid, stored int[], points jsonb, whole boolean
) returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
begin
  if training_revise_points.queue = 'training_jobs' then
    delete from public.metrics_points m
    where training_revise_points.whole and m.job_id = training_revise_points.job_id and m.step <> all (training_revise_points.stored);
    update public.metrics_points m
    set validation_loss = (p->>'validation_loss')::numeric
    from jsonb_array_elements(training_revise_points.points) p
    where m.job_id = training_revise_points.job_id and m.step = (p->>'step')::int
      and m.step = any (training_revise_points.stored)
      and m.validation_loss is distinct from round((p->>'validation_loss')::numeric, 6)
      and p->>'validation_loss' is not null;
  elsif to_regclass('public.pipeline_training_metrics') is not null then
    delete from public.pipeline_training_metrics m
    where training_revise_points.whole and m.job_id = training_revise_points.job_id
      and m.measurement_method = 'training_log' and m.step_number <> all (training_revise_points.stored);
    update public.pipeline_training_metrics m
    set value = (p->>'validation_loss')::double precision
    from jsonb_array_elements(training_revise_points.points) p
    where m.job_id = training_revise_points.job_id and m.measurement_method = 'training_log'
      and m.metric_id = 'validation_loss' and m.step_number = (p->>'step')::int
      and m.value <> (p->>'validation_loss')::double precision;
    perform public.training_write_points(training_revise_points.queue, training_revise_points.job_id, (
      select jsonb_agg(jsonb_build_object('step', p->'step', 'epoch', p->'epoch', 'timestamp', p->'timestamp',
                                          'validation_loss', p->'validation_loss'))
      from jsonb_array_elements(training_revise_points.points) p
      where (p->>'step')::int = any (training_revise_points.stored) and p->>'validation_loss' is not null
        and not exists (
          select from public.pipeline_training_metrics m
          where m.job_id = training_revise_points.job_id and m.measurement_method = 'training_log'
            and m.metric_id = 'validation_loss' and m.step_number = (p->>'step')::int)), replaces => false);
  end if;
end
$$;

call public.training_set_function_rights(open => false);
