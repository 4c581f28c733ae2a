-- The functions that the trainer on the GPU calls with its run's token: check-in, heartbeat and publishing.

-- Locks the run of a token and returns it; no row for a wrong token.
create or replace function public.training_run_of_token(token text) returns setof public.training_runs
language sql volatile set search_path = '' as $$
  select r.* from public.training_runs r
  where r.token_sha256 = case when octet_length(training_run_of_token.token) <= 200
                              then encode(sha256(convert_to(training_run_of_token.token, 'UTF8')), 'hex') end
  for update
$$;

-- Says whether a run accepts no more new launcher ids or executions. A launch whose answer is not known yet has room
-- for one new id. Beyond those, a container may add up to 20 launches: each is a row, and the worker asks the
-- launcher about it until it has ended. A restarted job is a new execution, and a normal run has only a few.
create or replace function public.training_is_crowded(
  run public.training_runs, external_job_id text, execution_id uuid
) returns boolean
language sql stable set search_path = '' as $$
  select cardinality(run.former_execution_ids) >= 100
      and training_is_crowded.execution_id is distinct from run.execution_id
    or count(*) >= 20 and not coalesce(bool_or(l.external_job_id is null
                                               or l.external_job_id = training_is_crowded.external_job_id), false)
  from public.training_launches l
  where l.run_id = run.id
$$;

-- Says whether the run's artifact is complete: its manifest, which is written last, is among the uploads, or where
-- the worker keeps verified files. False if no upload was granted, or without Storage.
create or replace function public.training_is_published(run public.training_runs) returns boolean
language plpgsql stable set search_path = '' as $$
declare
  found_it boolean := false;
begin
  if run.upload_granted_at is not null and to_regclass('storage.objects') is not null then
    execute 'select exists (select from storage.objects where name in ($1, $2))' into found_it
    using 'uploads/' || run.id || '/manifest.json', run.user_id || '/' || run.id || '/manifest.json';
  end if;
  return found_it;
end
$$;

-- The fence, and later the trainer's heartbeat. The first launcher id that checks in owns the run. If the same id
-- comes with a new execution, the launcher has restarted a crashed job: the new execution takes over, and the earlier
-- one is refused. It is refused itself if the run is already published, since then only the result was lost. anon may
-- call this function: the token is the key.
create or replace function public.check_in_run(token text, external_job_id text, execution_id uuid)
returns jsonb
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  run public.training_runs;
  launch public.training_launches;
  job jsonb;
  job_status text;
  refusal text;
  moment timestamptz;
begin
  perform public.training_check_external_job_id(external_job_id);
  select * into run from public.training_run_of_token(check_in_run.token);
  if not found then
    return jsonb_build_object('may_train', false, 'reason', 'unknown_token');
  end if;
  -- The time under the run's lock, not that of the call, which may have waited until its launch was recorded.
  moment := clock_timestamp();
  if public.training_is_crowded(run, check_in_run.external_job_id, check_in_run.execution_id)
     -- With such an id the worker would poll and cancel another run's launch.
     or exists (select from public.training_launches l
                where l.external_job_id = check_in_run.external_job_id and l.run_id <> run.id) then
    return jsonb_build_object('may_train', false, 'reason', 'superseded', 'cancel_requested', false,
                              'attempt', run.attempt);
  end if;
  select * into launch from public.training_note_launch(
    run.id, run.launcher, check_in_run.external_job_id, run.endpoint, guessed => true);
  job_status := coalesce(public.training_job_status(run.queue, run.job_id), 'cancelled');
  refusal := case
    when run.status = 'cancelled' or job_status = 'cancelled' then 'cancelled'
    when run.status not in ('claimed', 'launched', 'running') then 'ended'
    when run.checked_in_at is not null and run.external_job_id <> check_in_run.external_job_id
      then 'superseded'
    when check_in_run.execution_id = any (run.former_execution_ids) then 'superseded'
    when run.execution_id <> check_in_run.execution_id and public.training_is_published(run) then 'ended'
  end;
  if refusal is not null then
    -- The owner of a cancelled run is still recorded, since its seconds are billed until it ends.
    update public.training_runs r set last_seen_at = moment
    where r.id = run.id and r.execution_id = check_in_run.execution_id and r.ended_at is null;
    -- The run was given up, but its launch did get a GPU: it is billed when the launch is closed.
    update public.training_runs r set checked_in_at = moment
    where r.id = run.id and r.ended_at is not null and r.checked_in_at is null;
    return jsonb_build_object('may_train', false, 'reason', refusal,
                              'cancel_requested', refusal = 'cancelled', 'attempt', run.attempt);
  end if;
  update public.training_runs r
  set status = 'running',
      external_job_id = check_in_run.external_job_id,
      endpoint = launch.endpoint,
      execution_id = check_in_run.execution_id,
      former_execution_ids = case
        when r.execution_id is distinct from check_in_run.execution_id and r.execution_id is not null
        then r.former_execution_ids || r.execution_id else r.former_execution_ids end,
      -- A grant for an earlier execution will have expired before this one publishes.
      upload_request = case when r.execution_id = check_in_run.execution_id then r.upload_request end,
      upload_grant = case when r.execution_id = check_in_run.execution_id then r.upload_grant end,
      checked_in_at = coalesce(r.checked_in_at, moment),
      -- If the trainer was faster than the launcher's answer, its check-in shows that it was launched.
      launched_at = least(coalesce(r.launched_at, moment), moment),
      last_seen_at = moment,
      handlings = case when r.checked_in_at is null then 0 else r.handlings end
  where r.id = run.id;
  if run.checked_in_at is null then
    job := public.training_job_row(run.queue, run.job_id, locked => true);
    if job->>'status' in ('queued', 'initializing', 'running') then
      perform public.training_write_job(run.queue, run.job_id, jsonb_build_object(
        'status', 'running', 'current_stage', 'setup', 'external_job_id', check_in_run.external_job_id,
        'started_at', coalesce((job->>'started_at')::timestamptz, moment)));
    end if;
  end if;
  return jsonb_build_object('may_train', true, 'reason', 'ok', 'cancel_requested', false,
                            'attempt', run.attempt);
end
$$;

-- Says whether an entry of an upload request has the form {name, path, bytes, sha256}. The worker reads the stored
-- request, so a container must not put anything else into it.
create or replace function public.training_is_file(entry jsonb) returns boolean
language sql immutable set search_path = '' as $$
  select coalesce(
    jsonb_typeof(entry->'name') = 'string' and length(entry->>'name') between 1 and 400
    and jsonb_typeof(entry->'path') = 'string' and length(entry->>'path') between 1 and 400
    and jsonb_typeof(entry->'bytes') = 'number' and entry->>'bytes' ~ '^[0-9]{1,15}$'
    and jsonb_typeof(entry->'sha256') = 'string' and entry->>'sha256' ~ '^[0-9a-f]{64}$', false)
$$;

-- Stores which files the trainer wants to publish: [{name, path, bytes, sha256}]. Only the run's current execution
-- may ask. A request with other files than before withdraws the earlier grant; so does `renew`, with which the
-- trainer says that the granted URLs have expired.
create or replace function public.request_upload(
  token text, execution_id uuid, files jsonb, renew boolean default false
) returns jsonb
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  run public.training_runs;
begin
  if pg_column_size(files) > 400000 then
    raise exception using errcode = 'PT400', message = 'files must be an array of 1 to 200 entries, of 100 KB at most';
  end if;
  select * into run from public.training_run_of_token(request_upload.token);
  if not found or run.execution_id is distinct from request_upload.execution_id
     or run.status not in ('claimed', 'launched', 'running') then
    return jsonb_build_object('ok', false, 'reason', case when run.id is null then 'unknown_token'
                                                          else 'superseded' end);
  end if;
  files := public.training_decoded(files);
  if jsonb_typeof(request_upload.files) is distinct from 'array'
     or jsonb_array_length(request_upload.files) not between 1 and 200 then
    raise exception using errcode = 'PT400', message = 'files must be an array of 1 to 200 entries, of 100 KB at most';
  end if;
  if not (select bool_and(public.training_is_file(f)) from jsonb_array_elements(request_upload.files) f) then
    raise exception using errcode = 'PT400',
      message = 'each of files must have a name, a path, its bytes and its sha256';
  end if;
  -- Only these four keys of an entry are kept.
  files := (
    select jsonb_agg(jsonb_build_object('name', f.e->'name', 'path', f.e->'path', 'bytes', f.e->'bytes',
                                        'sha256', f.e->'sha256') order by f.place)
    from jsonb_array_elements(request_upload.files) with ordinality f (e, place));
  if octet_length(request_upload.files::text) > 100000 then
    raise exception using errcode = 'PT400', message = 'files must be an array of 1 to 200 entries, of 100 KB at most';
  end if;
  update public.training_runs r
  set upload_request = request_upload.files,
      upload_grant = case when r.upload_request = request_upload.files and request_upload.renew is not true
                          then r.upload_grant end,
      last_seen_at = now()
  where r.id = run.id;
  return jsonb_build_object('ok', true, 'reason', null);
end
$$;

-- Returns the worker's answer to an upload request to the trainer: {granted, sealed}.
create or replace function public.upload_grant(token text, execution_id uuid) returns jsonb
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  run public.training_runs;
begin
  select * into run from public.training_run_of_token(upload_grant.token);
  if not found or run.execution_id is distinct from upload_grant.execution_id
     or run.status not in ('claimed', 'launched', 'running') then
    return jsonb_build_object('granted', false, 'reason', case when run.id is null then 'unknown_token'
                                                               else 'superseded' end);
  end if;
  return jsonb_build_object('granted', run.upload_grant is not null, 'sealed', run.upload_grant);
end
$$;

-- Stores the worker's answer to an upload request: the upload URLs, encrypted with the run's token. The worker sends
-- the request along, so that URLs are never granted for a newer request with other files.
create or replace function public.grant_upload(
  run_id uuid, lease_token uuid, upload_request jsonb, sealed_urls text
) returns boolean
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  run public.training_runs;
begin
  upload_request := public.training_decoded(grant_upload.upload_request);
  select * into run from public.training_held_run(grant_upload.run_id, grant_upload.lease_token);
  if not found or run.upload_request is distinct from grant_upload.upload_request then
    return false;
  end if;
  update public.training_runs r
  set upload_grant = grant_upload.sealed_urls, upload_granted_at = now()
  where r.id = run.id;
  return true;
end
$$;

call public.training_set_function_rights(open => false);
