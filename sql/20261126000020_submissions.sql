-- For people without the application: a dataset and a job in one transaction, and where a job's artifact is.

-- Says whether a user is the operator's own, which `lora-worker enqueue` makes. Everybody can sign up with its mail
-- address where a project asks for no confirmation, but only the service role writes into the metadata of the app.
create or replace function public.training_is_operator(user_id uuid) returns boolean
language sql stable set search_path = '' as $$
  select exists (
    select from auth.users u
    where u.id = training_is_operator.user_id and lower(u.email) = 'operator@lora-worker.internal'
      and public.training_decoded(u.raw_app_meta_data)->>'lora_worker' = 'operator')
$$;

-- Returns {user_id, email, is_operator} of the user with this id or mail address (in any case); null if there is none.
create or replace function public.find_training_user(named text) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
begin
  return (
    select jsonb_build_object('user_id', u.id, 'email', u.email, 'is_operator', public.training_is_operator(u.id))
    from auth.users u
    where case when find_training_user.named ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
               then u.id = find_training_user.named::uuid
               else lower(u.email) = lower(find_training_user.named) end
    order by u.created_at, u.id limit 1);
end
$$;

-- Adds a job, and its dataset where it is not there yet, as the application does: entry is {dataset: {columns},
-- job: {columns}}. The dataset's file must be stored before. Returns {job_id, dataset_id}; null if the user or the
-- dataset is missing, or the dataset is another user's or deleted. A repeated call with the same ids changes nothing.
create or replace function public.submit_training_job(entry jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  sent jsonb := public.training_decoded(submit_training_job.entry);
  dataset public.datasets := jsonb_populate_record(null::public.datasets, sent->'dataset');
  job public.training_jobs := jsonb_populate_record(null::public.training_jobs, sent->'job');
begin
  if not exists (select from auth.users u where u.id = job.user_id) then
    return null;
  end if;
  if public.training_json_fault(sent->'job', 16384) is not null
     or public.training_json_fault(sent->'dataset', 262144) is not null then
    raise exception using errcode = 'PT400', message = 'the job or its dataset is too large';
  end if;
  insert into public.datasets (
    id, user_id, name, status, storage_bucket, storage_path, file_name, file_size, total_training_pairs, total_tokens,
    avg_turns_per_conversation, avg_tokens_per_turn, training_ready, validated_at, validation_errors, sample_data)
  values (dataset.id, job.user_id, dataset.name, 'ready', dataset.storage_bucket, dataset.storage_path,
          dataset.file_name, dataset.file_size, dataset.total_training_pairs, dataset.total_tokens,
          dataset.avg_turns_per_conversation, dataset.avg_tokens_per_turn, true, now(), dataset.validation_errors,
          dataset.sample_data)
  on conflict (id) do nothing;
  -- Another call may have added it, or its owner may have deleted it.
  perform from public.datasets d where d.id = dataset.id and d.user_id = job.user_id and d.deleted_at is null for share;
  if not found then
    return null;
  end if;
  insert into public.training_jobs (
    id, user_id, dataset_id, preset_id, hyperparameters, gpu_config, total_epochs, total_steps, estimated_total_cost,
    current_metrics)
  -- The trigger training_complete_job replaces the estimate of 0 by its own.
  values (job.id, job.user_id, dataset.id, job.preset_id, job.hyperparameters, job.gpu_config, job.total_epochs,
          job.total_steps, 0, '{}')
  on conflict (id) do nothing;
  return jsonb_build_object('job_id', job.id, 'dataset_id', dataset.id);
end
$$;

-- Returns where the verified artifact of a job of either queue is: {queue, job_id, user_id, status, run_id}, with a null
-- run_id for a job without one; null if there is no such job.
create or replace function public.training_published_run(job_id uuid) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
#variable_conflict use_column
declare
  queue text;
  job jsonb;
begin
  foreach queue in array array['training_jobs', 'pipeline_training_jobs'] loop
    job := public.training_job_row(queue, training_published_run.job_id);
    if job is not null then
      return jsonb_build_object(
        'queue', queue, 'job_id', job->'id', 'user_id', job->'user_id', 'status', job->'status', 'run_id', (
          select r.id from public.training_runs r
          where r.job_id = training_published_run.job_id and r.status = 'succeeded' and r.settled_as = 'completed'
          order by r.attempt desc limit 1));
    end if;
  end loop;
  return null;
end
$$;

revoke all on function public.training_is_operator(uuid), public.find_training_user(text),
  public.submit_training_job(jsonb), public.training_published_run(uuid) from public, anon, authenticated, service_role;
grant execute on function public.find_training_user(text), public.submit_training_job(jsonb),
  public.training_published_run(uuid) to service_role;
