-- Launching, the trainer's fence, and publishing.

-- Locks the run for a write under a lease and answers it; no row when the lease is not held any more.
create or replace function public.training_held_run(run_id uuid, lease_token uuid)
returns setof public.training_runs
language sql volatile set search_path = '' as $$
  select r.* from public.training_runs r
  where r.id = training_held_run.run_id
    and r.lease_token = training_held_run.lease_token
    and r.lease_expires_at > now()
    and r.status in ('claimed', 'launched', 'running')
  for update
$$;

-- The last word before a POST: records the intent and the sha256 of the run's token. may_launch is
-- false when the lease is lost, the job was cancelled, or a trainer of this run checked in meanwhile.
-- enrichment adds keys that the job's hyperparameters and gpu_config lack; present keys stay. launched_with is
-- {dataset_id, gpu_type, gpu_count, price_per_hour, max_cost}: what is trained on, and what the run is billed at.
-- The endpoint is noted with the intent, so that a launch of which no answer came is looked for where it was sent.
drop function if exists public.begin_launch(uuid, uuid, text, text, jsonb);
drop function if exists public.begin_launch(uuid, uuid, text, text, jsonb, text);
create or replace function public.begin_launch(
  run_id uuid, lease_token uuid, launcher text, token_sha256 text, enrichment jsonb, launched_with jsonb,
  endpoint text default null
) returns jsonb
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  run public.training_runs;
  job jsonb;
  ordered jsonb;
  parameters jsonb := '{}';
begin
  enrichment := public.training_decoded(enrichment);
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
      'hyperparameters', coalesce(begin_launch.enrichment->'hyperparameters', '{}') || (ordered->'hyperparameters'),
      'gpu_config', coalesce(begin_launch.enrichment->'gpu_config', '{}') || (ordered->'gpu_config'));
    perform public.training_write_job(run.queue, run.job_id, parameters);
  end if;
  update public.training_runs r
  set token_sha256 = begin_launch.token_sha256, launcher = begin_launch.launcher, endpoint = begin_launch.endpoint,
      launched_with = begin_launch.launched_with || parameters || case when ordered ? 'dataset_file_path'
        then jsonb_build_object('dataset_file_path', ordered->'dataset_file_path') else '{}' end
  where r.id = run.id;
  insert into public.training_launches (run_id, launcher, endpoint)
  values (run.id, begin_launch.launcher, begin_launch.endpoint);
  return jsonb_build_object('may_launch', true, 'reason', null);
end
$$;

-- Refuses what is no launcher's id of a job. The trainer names its own, and the worker puts it into the path of
-- calls that carry the launcher's key: with slashes or dots in it, they would reach other routes.
create or replace function public.training_check_external_job_id(external_job_id text) returns void
language plpgsql immutable set search_path = '' as $$
begin
  -- The length first: a pattern has to read all of what may be megabytes.
  if octet_length(external_job_id) > 255 or (external_job_id ~ '^[A-Za-z0-9_-]{1,255}$') is not true then
    raise exception using errcode = 'PT400',
      message = 'external_job_id must be 1 to 255 letters, digits, hyphens and underscores';
  end if;
end
$$;

-- Records under which id the launcher accepted the run. A run that checked in before keeps its owner.
drop function if exists public.record_launch(uuid, uuid, text, text);
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
    -- It has checked in already.
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

-- Gives the launcher's id to the oldest launch of the run that was sent to this endpoint and has none yet, or
-- adds a launch, with the run's first POST as its time, since nobody knows which of them it came of. A trainer that
-- checks in is at one of the endpoints where its run was launched, and which one it is nobody says: the latest launch
-- without an id is as good a guess as any, and the worker looks at the others too.
drop function if exists public.training_note_launch(uuid, text, text);
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
      -- Its trainer was quicker than the answer to its launch, and its place was a guess.
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

-- Where a run was launched, the latest first.
create or replace function public.training_endpoints(run_id uuid) returns jsonb
language sql stable set search_path = '' as $$
  select coalesce(jsonb_agg(e.endpoint order by e.latest desc), '[]')
  from (select l.endpoint, max(l.id) as latest from public.training_launches l
        where l.run_id = training_endpoints.run_id and l.endpoint is not null
        group by l.endpoint order by max(l.id) desc limit 10) e
$$;

-- The run that a token opens, locked; no row for a wrong token.
create or replace function public.training_run_of_token(token text) returns setof public.training_runs
language sql volatile set search_path = '' as $$
  select r.* from public.training_runs r
  where r.token_sha256 = case when octet_length(training_run_of_token.token) <= 200
                              then encode(sha256(convert_to(training_run_of_token.token, 'UTF8')), 'hex') end
  for update
$$;

-- Whether a run takes no more of a launcher's job id or an execution that it has not seen before. An id that no
-- launch is known by fills the place of a launch whose answer is still out; beyond those a container may add a few,
-- since each one is a row, and a call to the launcher until it is known to have ended. A restarted job is a new
-- execution, of which a run in good order sees a handful.
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

-- Whether the run's artifact is whole: its manifest, written last, lies among the uploads, or where the worker
-- keeps what it has verified. Only asked where an upload was granted. False without Storage.
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

-- The fence, and afterwards the trainer's heartbeat. The first launcher's job id to check in owns the
-- run. The same id with a new execution takes over (the launcher restarted a crashed job under its old
-- id), and the earlier execution is refused from then on; but when the run is published already, and only
-- its result was lost, there is nothing left to train. Callable by anon: the token is the key.
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
  -- Under the run's lock, and not when the call came: it may have waited for the answer of its own launch to be
  -- recorded.
  moment := clock_timestamp();
  if public.training_is_crowded(run, check_in_run.external_job_id, check_in_run.execution_id)
     -- It would have the worker poll and cancel another run's launch as its own.
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
    -- A cancelled owner is still seen: the bill counts its seconds until it ends.
    update public.training_runs r set last_seen_at = moment
    where r.id = run.id and r.execution_id = check_in_run.execution_id and r.ended_at is null;
    -- A launch in doubt whose run was given up has had a GPU after all: it is billed when it is closed.
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
      -- What an earlier execution was granted has run out by the time this one publishes.
      upload_request = case when r.execution_id = check_in_run.execution_id then r.upload_request end,
      upload_grant = case when r.execution_id = check_in_run.execution_id then r.upload_grant end,
      checked_in_at = coalesce(r.checked_in_at, moment),
      -- A trainer that was quicker than the answer to its launch says that it was launched.
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

-- Whether an entry of an upload request has the form {name, path, bytes, sha256}. The worker reads what
-- lies in the row; a container must not get anything else in there.
create or replace function public.training_is_file(entry jsonb) returns boolean
language sql immutable set search_path = '' as $$
  select coalesce(
    jsonb_typeof(entry->'name') = 'string' and length(entry->>'name') between 1 and 400
    and jsonb_typeof(entry->'path') = 'string' and length(entry->>'path') between 1 and 400
    and jsonb_typeof(entry->'bytes') = 'number' and entry->>'bytes' ~ '^[0-9]{1,15}$'
    and jsonb_typeof(entry->'sha256') = 'string' and entry->>'sha256' ~ '^[0-9a-f]{64}$', false)
$$;

-- The trainer says which files it wants to publish: [{name, path, bytes, sha256}]. Only the run's
-- present execution is heard. Asking for other files than before withdraws the earlier grant; so does `renew`,
-- with which the trainer says that the granted URLs have run out.
drop function if exists public.request_upload(text, uuid, jsonb);
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
  -- Nothing else of an entry is kept.
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

-- The trainer fetches the worker's answer: {granted, sealed}.
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

-- The worker's answer to an upload request: the upload URLs, sealed with the run's token. The request
-- it answers comes along, so that a grant never meets a newer request with other files.
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
