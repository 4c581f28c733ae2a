-- Launching: the database records the intent before the request to the launcher, and the launcher's id after it.

-- Records the intent to launch a run, directly before the request to the launcher, with the sha256 of the run's
-- token. may_launch is false if the lease is lost, the job was cancelled, or a trainer of this run has checked in.
-- The job's row gets the missing keys of both shapes, as a new job does; the answer contains its hyperparameters and
-- gpu_config afterwards. launched_with is {dataset_id, gpu_type, gpu_count, price_per_hour, max_cost}: what is
-- trained on, and the rate of the bill. The endpoint is recorded here, so that a launch without an answer is looked
-- for where it was sent.
create or replace function public.begin_launch(
  run_id uuid, lease_token uuid, launcher text, token_sha256 text, launched_with jsonb,
  endpoint text default null
) returns jsonb
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  run public.training_runs;
  job jsonb;
  ordered jsonb;
  terms jsonb := (select t.document from public.training_terms t);
  parameters jsonb := '{}';
begin
  launched_with := public.training_decoded(launched_with);
  select * into run from public.training_held_run(begin_launch.run_id, begin_launch.lease_token);
  if not found then
    return jsonb_build_object('may_launch', false, 'reason', 'lease_lost');
  end if;
  if run.checked_in_at is not null then
    return jsonb_build_object('may_launch', false, 'reason', 'checked_in');
  end if;
  job := public.training_job_row(run.queue, run.job_id, locked => true);
  if (job->>'status' in ('queued', 'initializing', 'running')) is not true then
    return jsonb_build_object('may_launch', false, 'reason', 'cancelled');
  end if;
  ordered := public.training_job_order(run.queue, run.job_id);
  if ordered->>'unreadable' is null then
    parameters := jsonb_build_object(
      'hyperparameters', public.training_both_shapes(terms, ordered->'hyperparameters'),
      'gpu_config', case when terms is not null and jsonb_typeof(ordered->'gpu_config') = 'object'
                         then public.training_priced_gpu(terms, ordered->'gpu_config')
                         else ordered->'gpu_config' end);
    perform public.training_write_job(run.queue, run.job_id, parameters);
  end if;
  update public.training_runs r
  set token_sha256 = begin_launch.token_sha256, launcher = begin_launch.launcher, endpoint = begin_launch.endpoint,
      launched_with = begin_launch.launched_with || parameters || case when ordered ? 'dataset_file_path'
        then jsonb_build_object('dataset_file_path', ordered->'dataset_file_path') else '{}' end
  where r.id = run.id;
  insert into public.training_launches (run_id, launcher, endpoint)
  values (run.id, begin_launch.launcher, begin_launch.endpoint);
  return parameters || jsonb_build_object('may_launch', true, 'reason', null);
end
$$;

-- Rejects values that are no id of a launcher's job. A trainer names its own id, and the worker puts it into the URL
-- of calls that carry the launcher's key: slashes or dots in it would lead to other routes.
create or replace function public.training_check_external_job_id(external_job_id text) returns void
language plpgsql immutable set search_path = '' as $$
begin
  -- The length is checked first, since the pattern reads the whole text, which may have megabytes.
  if octet_length(external_job_id) > 255 or (external_job_id ~ '^[A-Za-z0-9_-]{1,255}$') is not true then
    raise exception using errcode = 'PT400',
      message = 'external_job_id must be 1 to 255 letters, digits, hyphens and underscores';
  end if;
end
$$;

-- Gives the launcher's id to the oldest launch of the run at this endpoint that has none. If there is no such launch,
-- it inserts one, with the time of the run's first request, since it is unknown which request it belongs to. When a
-- trainer checks in, its endpoint is unknown (`guessed`): the latest launch without an id is taken, and the worker
-- also looks at the run's other endpoints.
create or replace function public.training_note_launch(
  run_id uuid, launcher text, external_job_id text, endpoint text, guessed boolean default false
) returns public.training_launches
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
  launch public.training_launches;
begin
  select * into launch from public.training_launches l
  where l.external_job_id = training_note_launch.external_job_id;
  if found then
    if not guessed and launch.run_id = training_note_launch.run_id
       and launch.endpoint is distinct from training_note_launch.endpoint then
      -- The trainer checked in before the launcher's answer was recorded, so the endpoint was a guess.
      update public.training_launches l set endpoint = training_note_launch.endpoint
      where l.id = launch.id returning * into launch;
    end if;
    return launch;
  end if;
  update public.training_launches l
  set external_job_id = training_note_launch.external_job_id
  where l.id = (select case when guessed then max(u.id) else min(u.id) end from public.training_launches u
                where u.run_id = training_note_launch.run_id and u.external_job_id is null
                  and (guessed or u.endpoint is not distinct from training_note_launch.endpoint))
  returning * into launch;
  if not found then
    insert into public.training_launches (run_id, launcher, external_job_id, endpoint, posted_at)
    select training_note_launch.run_id, training_note_launch.launcher, training_note_launch.external_job_id,
           training_note_launch.endpoint, coalesce(min(p.posted_at), now())
    from public.training_launches p where p.run_id = training_note_launch.run_id
    returning * into launch;
  end if;
  return launch;
end
$$;

-- Records the id under which the launcher accepted the run. A run whose trainer has checked in keeps its owner.
create or replace function public.record_launch(
  run_id uuid, lease_token uuid, launcher text, external_job_id text, endpoint text default null
) returns boolean
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  run public.training_runs;
  job jsonb;
begin
  perform public.training_check_external_job_id(external_job_id);
  select * into run from public.training_held_run(record_launch.run_id, record_launch.lease_token);
  if not found then
    return false;
  end if;
  perform public.training_note_launch(
    run.id, record_launch.launcher, record_launch.external_job_id, record_launch.endpoint);
  if run.external_job_id = record_launch.external_job_id then
    -- Its trainer has already checked in.
    update public.training_runs r set endpoint = record_launch.endpoint where r.id = run.id;
  end if;
  if run.checked_in_at is null then
    update public.training_runs r
    set status = 'launched', external_job_id = record_launch.external_job_id, endpoint = record_launch.endpoint,
        launched_at = coalesce(r.launched_at, clock_timestamp()), handlings = 0
    where r.id = run.id;
    job := public.training_job_row(run.queue, run.job_id, locked => true);
    if job->>'status' in ('queued', 'initializing', 'running') then
      perform public.training_write_job(run.queue, run.job_id, jsonb_build_object(
        'status', 'running', 'current_stage', 'queued_on_gpu', 'external_job_id', record_launch.external_job_id));
    end if;
  end if;
  return true;
end
$$;

call public.training_set_function_rights(open => false);
