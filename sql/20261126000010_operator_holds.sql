-- What operators decide about the queue: users whose jobs are held, workers that are drained, jobs that are tried again.

do $migration$
begin
  if to_regclass('public.training_stages') is null then
    -- All of the lock at once: one that is raised in the middle of a migration deadlocks with a live worker's renewals.
    lock table public.training_runs in access exclusive mode;
  end if;
end
$migration$;

-- Nothing new is claimed of these users; of nobody while there is a row without a user. Live runs go on.
create table if not exists public.training_operator_holds (
  user_id uuid unique nulls not distinct,
  reason text check (length(reason) <= 500),
  held_at timestamptz not null default now()
);

-- Workers that were told to take nothing new, by their names, which each process has for itself.
create table if not exists public.training_drains (
  worker text primary key check (length(worker) <= 200),
  asked_at timestamptz not null default now()
);

-- Jobs that were started again after they had ended. Only attempts after this one count against the limits of retries.
create table if not exists public.training_retries (
  job_id uuid primary key,
  after_attempt int not null,
  retried_at timestamptz not null default now()
);

-- When each stage of a run began, as far as its trainer's heartbeats said.
create table if not exists public.training_stages (
  run_id uuid not null references public.training_runs (id) on delete cascade,
  begun_at timestamptz not null,
  stage text not null check (length(stage) <= 50),
  primary key (run_id, begun_at)
);

do $migration$
declare
  own_table text;
begin
  foreach own_table in array array[
    'training_operator_holds', 'training_drains', 'training_retries', 'training_stages'] loop
    if not (select relrowsecurity from pg_class where oid = format('public.%I', own_table)::regclass) then
      execute format('alter table public.%I enable row level security', own_table);
    end if;
    execute format('revoke all on public.%I from public, anon, authenticated, service_role', own_table);
    execute format('grant select on public.%I to service_role', own_table);
  end loop;
end
$migration$;

-- Returns why nothing of a user is claimed at the moment, as the end of a sentence that begins with "waits for"; null
-- if it may be. Claims and every list of waiting jobs ask this function, so a later migration that knows another
-- reason replaces it alone.
create or replace function public.training_barred(user_id uuid) returns text
language sql stable set search_path = '' as $$
  select case when h.user_id is null then 'an operator, who holds all jobs'
              else 'an operator, who holds the jobs of its user' end || coalesce(': ' || h.reason, '')
  from public.training_operator_holds h
  where h.user_id is null or h.user_id = training_barred.user_id
  order by h.user_id nulls first limit 1
$$;

-- Waits until no claim is under way, and keeps new ones waiting until the end of the transaction. So what an operator is
-- told has happened: no claim that began before it takes a job afterwards.
create or replace function public.training_pause_claims() returns void
language sql volatile set search_path = '' as $$
  select pg_advisory_xact_lock(hashtextextended('training claims', 0))
$$;

-- Holds the jobs of a user, or of all users with null: none of them is claimed until they are released. A second hold
-- of the same user replaces the reason.
create or replace function public.hold_training(user_id uuid, reason text) returns boolean
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
begin
  perform public.training_pause_claims();
  insert into public.training_operator_holds as h (user_id, reason)
  values (hold_training.user_id, left(nullif(hold_training.reason, ''), 500))
  on conflict (user_id) do update set reason = excluded.reason;
  return true;
end
$$;

-- Releases what hold_training held for this user, or for all users with null; returns whether there was such a hold.
create or replace function public.release_training(user_id uuid) returns boolean
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
begin
  delete from public.training_operator_holds h where h.user_id is not distinct from release_training.user_id;
  return found;
end
$$;

-- Tells a worker to take nothing new and to end when its runs have ended: the one of this name, or those whose name
-- begins with it and ends with the random part that each process adds; all workers with null. Returns them:
-- [{name, held, single_pass}]. A single pass ends by itself.
create or replace function public.drain_training_workers(name text) returns jsonb
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  drained jsonb;
begin
  perform public.training_pause_claims();
  delete from public.training_drains d where d.asked_at < now() - interval '30 days';
  select coalesce(jsonb_agg(jsonb_build_object('name', w.name, 'held', w.held, 'single_pass', w.single_pass)
                            order by w.name), '[]')
  into drained
  from public.training_living_workers() w
  where drain_training_workers.name is null or w.name = drain_training_workers.name
     or w.name ~ '-[0-9a-f]{8}$' and left(w.name, -9) = drain_training_workers.name;
  insert into public.training_drains (worker)
  select d->>'name' from jsonb_array_elements(drained) d where not (d->>'single_pass')::boolean
  on conflict do nothing;
  return drained;
end
$$;

create or replace function public.training_is_drained(worker text) returns boolean
language sql stable set search_path = '' as $$
  select exists (select from public.training_drains d where d.worker = left(training_is_drained.worker, 200))
$$;

-- As report_worker; returns what the worker is to do: {drain}.
create or replace function public.report_worker_2(worker text, report jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
begin
  perform public.report_worker(report_worker_2.worker, report_worker_2.report);
  return jsonb_build_object('drain', public.training_is_drained(report_worker_2.worker));
end
$$;

-- As claim_training_jobs, but for nothing where the worker is drained: it hears of that only with its next report.
create or replace function public.claim_training_jobs_2(
  worker text, max_jobs int, lease_seconds int, max_per_user int default null
) returns jsonb
language plpgsql security definer set search_path = '' as $$
begin
  -- Claims share this lock with each other.
  perform pg_advisory_xact_lock_shared(hashtextextended('training claims', 0));
  return case when public.training_is_drained(claim_training_jobs_2.worker) then '[]'
    else public.claim_training_jobs(claim_training_jobs_2.worker, claim_training_jobs_2.max_jobs,
                                    claim_training_jobs_2.lease_seconds, claim_training_jobs_2.max_per_user) end;
end
$$;

-- As before, without drained workers: a queue that only they serve has nobody who claims.
create or replace function public.training_no_worker() returns text
language sql stable set search_path = '' as $$
  select case
    when exists (select from public.training_living_workers() w where not public.training_is_drained(w.name)) then null
    when exists (select from public.training_living_workers()) then 'all are being drained'
    else coalesce((
      select case when w.single_pass then 'the last pass was ' || w.duration || ' ago'
             else 'none has been seen for ' || w.duration end
      from (select s.single_pass, case
              when s.seconds >= 172800 then floor(s.seconds / 86400) || ' days'
              when s.seconds >= 7200 then floor(s.seconds / 3600) || ' h'
              else floor(s.seconds / 60) || ' min' end as duration
            from (select o.single_pass, extract(epoch from now() - o.seen_at) as seconds
                  from public.training_workers o order by o.seen_at desc limit 1) s) w), 'none has run yet') end
$$;

-- As before, without the jobs of users of whom nothing is claimed.
create or replace function public.training_candidates(
  max_per_user int, most int, tried_jobs uuid[], tried_users uuid[]
) returns table (queue text, id uuid, user_id uuid, waits_since timestamptz)
language plpgsql stable set search_path = '' set enable_seqscan = off set enable_bitmapscan = off as $$
#variable_conflict use_column
declare
  open_users uuid[] := (
    select coalesce(array_agg(w.user_id), '{}') from public.training_waiting_users w
    where w.user_id <> all (tried_users) and public.training_barred(w.user_id) is null
      and (max_per_user is null or max_per_user > (
        select count(*) from public.training_runs r
        where r.user_id = w.user_id and r.status in ('claimed', 'launched', 'running') and r.created_at >= w.lives_since)));
begin
  return query
    select 'training_jobs', c.id, w.user_id, c.since
    from public.training_waiting_users w
    cross join lateral (
      select j.id, coalesce(j.created_at, 'infinity') as since
      from public.training_jobs j
      where j.user_id = w.user_id and j.status = 'queued' and coalesce(j.created_at, 'infinity') >= w.waits_since
        and j.id <> all (tried_jobs)
        and not exists (
          select from public.training_runs r
          where r.job_id = j.id and (r.status in ('claimed', 'launched', 'running') or r.next_attempt_at > now()))
        -- It waits for a breaker.
        and not exists (select from public.training_holds h where h.job_id = j.id and h.held_until > now())
        -- It waits for its dataset.
        and not exists (
          select from public.datasets d
          where d.id = j.dataset_id and d.status in ('uploading', 'validating')
            and public.training_dataset_patience(d.id, j.created_at) > 0)
      order by coalesce(j.created_at, 'infinity'), j.id
      limit least(most, max_per_user)
    ) c
    where w.user_id = any (open_users)
    order by c.since, c.id limit most;
  if to_regclass('public.pipeline_training_jobs') is null then
    return;
  end if;
  return query
    select 'pipeline_training_jobs', c.id, w.user_id, c.since::timestamptz
    from (
      select u.user_id, u.waits_since from public.training_waiting_users u where u.user_id = any (open_users)
      union all
      -- The table was created after the last migration, so it has no trigger yet that records waiting users.
      select coalesce(p.user_id, '00000000-0000-0000-0000-000000000000'), '-infinity'
      from public.pipeline_training_jobs p
      where p.status = 'pending' and not exists (
        select from pg_catalog.pg_trigger t
        where t.tgrelid = 'public.pipeline_training_jobs'::regclass and t.tgname = 'training_note_waiting')
      group by 1
    ) w
    cross join lateral (
      -- 'queued' means here that the application's own dispatcher has taken the job. Only 'pending' jobs are free.
      select j.id, coalesce(j.created_at, 'infinity') as since
      from public.pipeline_training_jobs j
      where coalesce(j.user_id, '00000000-0000-0000-0000-000000000000') = w.user_id and j.status = 'pending'
        and coalesce(j.created_at, 'infinity') >= w.waits_since
        and j.id <> all (tried_jobs)
        and not exists (
          select from public.training_runs r
          where r.job_id = j.id and (r.status in ('claimed', 'launched', 'running') or r.next_attempt_at > now()))
        -- It waits for a breaker.
        and not exists (select from public.training_holds h where h.job_id = j.id and h.held_until > now())
        -- It waits for its dataset.
        and not exists (
          select from public.datasets d
          where d.id = j.dataset_id and d.status in ('uploading', 'validating')
            and public.training_dataset_patience(d.id, j.created_at) > 0)
      order by coalesce(j.created_at, 'infinity'), j.id
      limit least(most, max_per_user)
    ) c
    where w.user_id <> all (tried_users)
    order by c.since, c.id limit most;
end
$$;

-- Starts a job of either queue again that has failed or was cancelled: the caller's own, or any job for the service
-- role. It keeps its id, so its trainer goes on from a checkpoint of an earlier run where there is one; what it has cost
-- stays, and counts against its limit. Its attempts are counted on, but failures of before do not count against the
-- limits of retries. Returns {retried, reason}: reason says in words why not.
create or replace function public.retry_training_job(job_id uuid) returns jsonb
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  queue text;
  job jsonb;
  -- `role` is still the caller's here, but current_user is the owner of this function.
  is_service constant boolean := current_setting('role', true) in ('service_role', 'none', 'postgres');
  most int := coalesce((select (t.document->>'max_queued_per_user')::int from public.training_terms t), 100);
  last_attempt int;
  refusal text;
begin
  -- Runs are locked first, in order of id, as everywhere.
  perform from public.training_runs r where r.job_id = retry_training_job.job_id order by r.id for update;
  foreach queue in array array['training_jobs', 'pipeline_training_jobs'] loop
    job := public.training_job_row(queue, retry_training_job.job_id, locked => true);
    exit when job is not null;
  end loop;
  if job is null or not (is_service or coalesce((job->>'user_id')::uuid = auth.uid(), false)) then
    return jsonb_build_object('retried', false, 'reason', 'there is no such job');
  end if;
  if not is_service then
    -- Other calls of the same user wait for this lock, so that two of them can't both take the last place.
    perform pg_advisory_xact_lock(hashtextextended('waiting jobs ' || (job->>'user_id'), 0));
  end if;
  select coalesce(max(r.attempt), 0) into last_attempt
  from public.training_runs r where r.job_id = retry_training_job.job_id;
  refusal := case
    when job->>'status' is null or job->>'status' not in ('failed', 'cancelled')
      then 'the job is ' || coalesce(job->>'status', 'in no known state')
           || ': only one that failed or was cancelled can be started again'
    when job->>'user_id' is null then 'the job belongs to no user'
    when exists (select from public.training_runs r
                 where r.job_id = retry_training_job.job_id and r.status in ('claimed', 'launched', 'running'))
      then 'its last run is still being stopped: try again in a minute'
    when exists (select from public.model_artifacts a where a.job_id = retry_training_job.job_id)
      then 'the job has its model already'
    when not is_service and public.training_waiting_count((job->>'user_id')::uuid, most) >= most
      then format('%s of your jobs wait already, and no more may: wait until some have started, or cancel some', most)
  end;
  if refusal is not null then
    return jsonb_build_object('retried', false, 'reason', refusal);
  end if;
  insert into public.training_retries as t (job_id, after_attempt) values (retry_training_job.job_id, last_attempt)
  on conflict (job_id) do update set after_attempt = excluded.after_attempt, retried_at = now();
  -- A job that was cancelled between two attempts would wait for the second one's time.
  update public.training_runs r set next_attempt_at = null
  where r.job_id = retry_training_job.job_id and r.next_attempt_at is not null;
  delete from public.training_holds h where h.job_id = retry_training_job.job_id;
  -- Not with training_write_job, which leaves jobs alone that have ended.
  if queue = 'training_jobs' then
    update public.training_jobs j
    set status = 'queued', current_stage = 'queued', progress = 0, current_epoch = 0, current_step = 0,
        queued_at = now(), completed_at = null, estimated_completion_at = null, final_cost = null,
        error_message = null, error_stack = null, external_job_id = null, retry_count = last_attempt
    where j.id = retry_training_job.job_id;
    update public.training_jobs j set current_stage = 'waiting_for_dataset'
    where j.id = retry_training_job.job_id and public.training_dataset_patience(j.dataset_id, j.created_at) > 0;
  else
    update public.pipeline_training_jobs j
    set status = 'pending', progress = 0, current_epoch = 0, current_step = 0, completed_at = null,
        error_message = null, runpod_job_id = null, updated_at = now()
    where j.id = retry_training_job.job_id;
  end if;
  return jsonb_build_object('retried', true, 'reason', null);
end
$$;

-- As before; of the earlier runs' failures only those since the job was last started again count. It says, too, whether
-- one of them left a trained adapter on the volume that was not published.
create or replace function public.training_assignment(run_id uuid) returns jsonb
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
declare
  run public.training_runs;
  job jsonb;
  ordered jsonb;
  dataset jsonb;
  counted_from int;
begin
  select * into run from public.training_runs r where r.id = training_assignment.run_id;
  counted_from := coalesce((select t.after_attempt from public.training_retries t where t.job_id = run.job_id), 0);
  job := public.training_job_row(run.queue, run.job_id);
  ordered := public.training_job_order(run.queue, run.job_id);
  if run.launched_with ? 'hyperparameters' then
    -- The trainer works with what it was sent, even if the job's row has changed since.
    ordered := ordered - 'unreadable' || (
      select jsonb_object_agg(w.key, w.value) from jsonb_each(run.launched_with) w
      where w.key in ('dataset_id', 'dataset_file_path', 'hyperparameters', 'gpu_config'));
  end if;
  dataset := coalesce(
    public.training_dataset_row(public.training_order_dataset(ordered, (job->>'user_id')::uuid)),
    -- A job of the newer queue may name only a file in the bucket for training files.
    case when ordered->>'dataset_file_path' is not null then jsonb_build_object(
      'id', job->'id', 'name', coalesce(ordered->>'dataset_name', 'your dataset'), 'status', 'ready',
      'training_ready', true, 'storage_bucket', 'training-files', 'storage_path', ordered->'dataset_file_path') end);
  return jsonb_build_object(
    'run', to_jsonb(run) - array['upload_grant', 'upload_request', 'former_execution_ids', 'point_steps']
      || jsonb_build_object(
      'transient_failures', (select count(*) from public.training_runs e
                             where e.job_id = run.job_id and e.fault = 'transient' and e.attempt > counted_from),
      'infrastructure_failures', (select count(*) from public.training_runs e
                                  where e.job_id = run.job_id and e.fault = 'infrastructure'
                                    and e.attempt > counted_from),
      'launches', (select count(*) from public.training_launches l where l.run_id = run.id),
      'endpoints', public.training_endpoints(run.id),
      'posted_seconds_ago', (select extract(epoch from now() - max(l.posted_at))
                             from public.training_launches l where l.run_id = run.id),
      'spent_cost', public.training_spent_cost(run),
      'spent_seconds', (select coalesce(sum(e.gpu_seconds), 0) from public.training_runs e
                        where e.job_id = run.job_id and e.id <> run.id),
      'awaits_upload', exists (
        select from public.training_runs e
        where e.job_id = run.job_id and e.attempt between counted_from + 1 and run.attempt - 1
          and e.error_code in ('proof_missing', 'grant_missing', 'upload_failed', 'storage_refused')),
      'used_seconds', extract(epoch from run.last_seen_at - run.checked_in_at),
      'dataset_patience_seconds', public.training_job_patience(run.queue, run.job_id, (dataset->>'id')::uuid),
      'age_seconds', extract(epoch from now() - run.created_at)),
    'job', public.training_assigned_job(job, ordered),
    'dataset', dataset - 'unreadable',
    'unreadable', nullif(concat_ws(', ', ordered->>'unreadable', dataset->>'unreadable'), ''));
end
$$;

-- As before; a job that was started again tells its user anew how it goes.
create or replace function public.training_notify(run public.training_runs, notices jsonb) returns void
language sql volatile set search_path = '' as $$
  insert into public.notifications (user_id, type, title, message, priority, action_url, metadata)
  select (run).user_id, n->>'type', left(n->>'title', 200), n->>'message', n->>'priority',
         n->>'action_url', n->'metadata'
  from jsonb_array_elements(coalesce(training_notify.notices, '[]')) n
  where (run).queue = 'training_jobs' and not exists (
    select from public.notifications o
    where o.user_id = (run).user_id
      and o.type = n->>'type'
      and left(o.metadata->>'job_id', 36) = (run).job_id::text
      and coalesce(o.created_at, 'infinity') > coalesce(
        (select t.retried_at from public.training_retries t where t.job_id = (run).job_id), '-infinity')
      and (n->>'type' <> 'job_requeued' or o.metadata->>'run_id' = (run).id::text))
$$;

revoke all on function public.training_barred(uuid), public.training_pause_claims(), public.hold_training(uuid, text), public.release_training(uuid),
  public.drain_training_workers(text), public.training_is_drained(text), public.report_worker_2(text, jsonb),
  public.claim_training_jobs_2(text, int, int, int), public.retry_training_job(uuid)
  from public, anon, authenticated, service_role;
grant execute on function public.hold_training(uuid, text), public.release_training(uuid),
  public.drain_training_workers(text), public.report_worker_2(text, jsonb),
  public.claim_training_jobs_2(text, int, int, int) to service_role;
grant execute on function public.retry_training_job(uuid) to authenticated, service_role;
