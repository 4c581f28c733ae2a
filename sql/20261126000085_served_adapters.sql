-- vLLM serves finished adapters by name from the network volume on which they were trained (docs/serving.md). What must
-- not be served any more is removed there by an errand: a short job of the trainer's image. These functions say which
-- runs that concerns, let one worker at a time launch an errand for all of them, and forget a run only when an errand
-- has confirmed that nothing of it is served.

-- A run of which something may be served, and must not be. The run's own row may be gone: a user was erased.
create table if not exists public.training_served_removals (
  run_id uuid primary key,
  noted_at timestamptz not null default now(),
  -- Whether its trainer told that it is served. Of a run that failed or was lost while it uploaded, or
  -- whose job another process had ended, nobody knows that.
  is_told boolean not null default true,
  attempts int not null default 0,
  next_at timestamptz not null default now(),
  -- Why the last errand did not remove it, for the operator.
  problem text check (length(problem) <= 500)
);

-- The errands: at most one of a launcher at a time. Those that have ended are kept for three months, for their costs.
create table if not exists public.training_serving_errands (
  id uuid primary key default gen_random_uuid(),
  launcher text not null check (length(launcher) <= 100),
  endpoint text check (length(endpoint) <= 500),
  external_job_id text check (length(external_job_id) <= 255),
  -- {remove: [run id], aliases: {alias: name}}
  request jsonb not null,
  worker text not null,
  lease_token uuid not null default gen_random_uuid(),
  lease_expires_at timestamptz not null,
  begun_at timestamptz not null default now(),
  ended_at timestamptz,
  gpu_seconds numeric(12, 3),
  problem text check (length(problem) <= 500)
);

do $migration$
declare
  own_table text;
begin
  foreach own_table in array array['training_served_removals', 'training_serving_errands'] loop
    if not (select c.relrowsecurity from pg_class c where c.oid = format('public.%I', own_table)::regclass) then
      execute format('alter table public.%I enable row level security', own_table);
    end if;
    execute format('revoke all on public.%I from public, anon, authenticated, service_role', own_table);
    execute format('grant select on public.%I to service_role', own_table);
  end loop;
  if to_regclass('public.training_serving_errands_one') is null then
    create unique index training_serving_errands_one
      on public.training_serving_errands (launcher) where ended_at is null;
  end if;
  if to_regclass('public.training_served_removals_due') is null then
    create index training_served_removals_due on public.training_served_removals (next_at);
  end if;
  if to_regclass('public.training_runs_asked_name') is null then
    create index training_runs_asked_name on public.training_runs (status, queue) where launched_with ? 'serving_name';
  end if;
end
$migration$;

-- Whether a run that has ended may have put its adapter where it is served. One that was settled says so, unless another
-- process had ended its job: then nothing was noted. Of others, only those can have that were uploading: the adapter is
-- put there at that stage's beginning, of which a trainer tells at once. One that was lost may have gone on unheard.
create or replace function public.training_may_be_served(run public.training_runs) returns boolean
language sql stable set search_path = '' as $$
  select (run).launched_with ? 'serving_name' and case
    when (run).status = 'succeeded' then (run).measured is null or (run).measured->>'serving_name' is not null
    when (run).status in ('failed', 'cancelled', 'lost') then (run).stage in ('uploading', 'completed')
      or ((run).status = 'lost' and (run).stage = 'saving')
      or exists (select from public.training_stages s
                 where s.run_id = (run).id and s.stage in ('uploading', 'completed'))
    else false end
$$;

-- Returns the runs of which nothing must be served any more: their model is deleted, or the job has ended without it.
-- While the job waits for another attempt nothing is removed, since that attempt replaces what lies there.
create or replace function public.training_unwanted_adapters() returns setof uuid
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
begin
  return query
    select r.id from public.training_runs r
    where r.launched_with ? 'serving_name' and r.status = 'succeeded' and r.queue = 'training_jobs'
      and public.training_may_be_served(r)
      and not exists (select from public.model_artifacts a where a.id = r.id and a.deleted_at is null);
  if to_regclass('public.pipeline_training_jobs') is not null then
    return query
      select r.id from public.training_runs r
      where r.launched_with ? 'serving_name' and r.status = 'succeeded' and r.queue = 'pipeline_training_jobs'
        and public.training_may_be_served(r)
        and not exists (
          select from public.pipeline_training_jobs j, (select null::text as adapter_status) absent
          where j.id = r.job_id and j.status = 'completed'
            -- The application added the column later.
            and (select adapter_status from (select j.*) own) is distinct from 'deleted');
  end if;
  return query
    select r.id from public.training_runs r
    where r.launched_with ? 'serving_name' and r.status in ('failed', 'cancelled', 'lost')
      and public.training_may_be_served(r)
      and coalesce(public.training_job_status(r.queue, r.job_id), '') not in ('queued', 'initializing', 'running')
      and not exists (select from public.training_runs s
                      where s.job_id = r.job_id and s.attempt > r.attempt and s.status = 'succeeded'
                        and s.measured->>'serving_name' is not null);
end
$$;

-- Forgets what name was asked for, once it is known that nothing is served by it. So the runs that keep a name, which
-- every look for unwanted adapters reads, are those that are live or served, and not all that ever were.
create or replace function public.training_forget_unserved() returns void
language sql volatile set search_path = '' as $$
  update public.training_runs r set launched_with = r.launched_with - 'serving_name'
  where r.id in (
    select n.id from public.training_runs n
    where n.launched_with ? 'serving_name' and n.status in ('succeeded', 'failed', 'cancelled', 'lost')
      and not public.training_may_be_served(n)
    limit 1000 for update skip locked)
$$;

-- Brings the list of removals to what is unwanted now: with what is new, and without what is wanted again, since a model
-- was restored or a job was started again. What stays keeps the time at which it is due.
create or replace function public.training_list_removals() returns void
language sql volatile set search_path = '' as $$
  with unwanted as materialized (
    select u.id from public.training_unwanted_adapters() u (id)
  ), added as (
    insert into public.training_served_removals (run_id, is_told)
    select u.id, r.measured->>'serving_name' is not null
    from unwanted u join public.training_runs r on r.id = u.id
    on conflict do nothing
  )
  delete from public.training_served_removals p
  using public.training_runs r
  where r.id = p.run_id and not exists (select from unwanted u where u.id = p.run_id)
$$;

-- Notes what was served of runs that are deleted: with a user, or by somebody else.
create or replace function public.training_keep_served() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  insert into public.training_served_removals (run_id, is_told)
  select g.id, g.measured->>'serving_name' is not null
  from gone g where public.training_may_be_served(row(g.*)::public.training_runs)
  on conflict do nothing;
  return null;
end
$$;

do $migration$
begin
  if not exists (select from pg_trigger
                 where tgrelid = 'public.training_runs'::regclass and tgname = 'training_keep_served') then
    create trigger training_keep_served after delete on public.training_runs
    referencing old table as gone for each statement execute function public.training_keep_served();
  end if;
end
$migration$;

-- Returns the launcher's errand that is under way, or begins one if there is something to do and its time has come:
-- {id, lease_token, endpoint, external_job_id, age_seconds, request}; null if there is neither, or if another worker
-- has it. external_job_id is null until the launcher has given one: a worker that crashed may have posted it, and it is
-- posted again, since an errand that runs twice does the same.
create or replace function public.claim_serving_errand(
  worker text, launcher text, endpoint text, lease_seconds int, max_runs int default 200
) returns jsonb
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  errand public.training_serving_errands;
  runs jsonb;
  aliases jsonb;
begin
  if coalesce(claim_serving_errand.max_runs, 0) <= 0 then
    return null;
  end if;
  perform pg_advisory_xact_lock(hashtextextended('training_serving_errands ' || claim_serving_errand.launcher, 0));
  select * into errand from public.training_serving_errands e
  where e.launcher = claim_serving_errand.launcher and e.ended_at is null;
  if found and errand.worker <> claim_serving_errand.worker and errand.lease_expires_at > now() then
    return null;
  end if;
  if errand.id is null then
    perform public.training_forget_unserved();
    perform public.training_list_removals();
    select jsonb_agg(d.run_id) into runs from (
      select p.run_id from public.training_served_removals p where p.next_at <= now()
      order by p.noted_at, p.run_id limit least(claim_serving_errand.max_runs, 200)) d;
    aliases := public.training_alias_changes();
    if runs is null and aliases = '{}' then
      return null;
    end if;
    insert into public.training_serving_errands (launcher, endpoint, request, worker, lease_expires_at)
    values (claim_serving_errand.launcher, claim_serving_errand.endpoint,
            jsonb_build_object('remove', coalesce(runs, '[]'), 'aliases', aliases), claim_serving_errand.worker,
            now() + make_interval(secs => claim_serving_errand.lease_seconds))
    returning * into errand;
  else
    update public.training_serving_errands e
    set worker = claim_serving_errand.worker, lease_token = gen_random_uuid(),
        lease_expires_at = now() + make_interval(secs => claim_serving_errand.lease_seconds)
    where e.id = errand.id
    returning * into errand;
  end if;
  return jsonb_build_object(
    'id', errand.id, 'lease_token', errand.lease_token, 'endpoint', errand.endpoint,
    'external_job_id', errand.external_job_id, 'request', errand.request,
    'age_seconds', extract(epoch from now() - errand.begun_at));
end
$$;

-- Writes down the launcher's id of an errand. Returns whether the lease is held.
create or replace function public.record_serving_errand(
  errand_id uuid, lease_token uuid, endpoint text, external_job_id text
) returns boolean
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
begin
  perform public.training_check_external_job_id(record_serving_errand.external_job_id);
  update public.training_serving_errands e
  set external_job_id = record_serving_errand.external_job_id, endpoint = record_serving_errand.endpoint
  where e.id = record_serving_errand.errand_id and e.lease_token = record_serving_errand.lease_token
    and e.ended_at is null;
  return found;
end
$$;

-- Ends an errand: runs that it has confirmed are forgotten, the others are due again later, after a minute at first,
-- then twice as long each time, up to a day. outcome: {removed: [run id], aliases: [alias], problem, gpu_seconds,
-- replace_workers, no_volume}. Only runs and aliases of the errand's own request count. replace_workers: there is an endpoint that
-- answers. Its machines go on with what they have loaded, so they are replaced (20261126000089) once a model's adapter
-- was removed. no_volume: the endpoint has none. Then a run of which no trainer told that it is served is forgotten, too:
-- else each run that failed while it uploaded would cost an errand for ever. Returns how many runs were forgotten; null
-- if the lease is not held.
create or replace function public.end_serving_errand(errand_id uuid, lease_token uuid, outcome jsonb) returns int
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  errand public.training_serving_errands;
  confirmed uuid[];
  found_models boolean;
begin
  outcome := public.training_decoded(outcome);
  -- Before any alias is locked, as note_endpoint_release does: in the other order the two wait for each other.
  perform from public.training_endpoint_releases e for update;
  update public.training_serving_errands e
  set ended_at = now(), problem = left(outcome->>'problem', 500),
      gpu_seconds = public.training_number(outcome->'gpu_seconds', 0, 1e8)
  where e.id = end_serving_errand.errand_id and e.lease_token = end_serving_errand.lease_token and e.ended_at is null
  returning * into errand;
  if not found then
    return null;
  end if;
  select coalesce(array_agg(x.value::uuid), '{}') into confirmed
  from jsonb_array_elements_text(errand.request->'remove') x
  where jsonb_typeof(outcome->'removed') = 'array' and outcome->'removed' ? x.value;
  -- A run whose row is gone had been settled, too, as a rule.
  found_models := exists (
    select from unnest(confirmed) c left join public.training_runs r on r.id = c
    where coalesce(r.status, 'succeeded') = 'succeeded');
  if (outcome->>'no_volume')::boolean then
    confirmed := confirmed || array(
      select p.run_id from public.training_served_removals p
      where not p.is_told and p.run_id <> all (confirmed)
        and p.run_id in (select x.value::uuid from jsonb_array_elements_text(errand.request->'remove') x));
  end if;
  update public.training_runs r
  set launched_with = r.launched_with - 'serving_name',
      measured = case when jsonb_typeof(r.measured) = 'object' then r.measured - 'serving_name' else r.measured end
  where r.id = any (confirmed);
  delete from public.training_served_removals p where p.run_id = any (confirmed);
  update public.training_served_removals p
  set attempts = p.attempts + 1, problem = errand.problem,
      next_at = now() + make_interval(secs => least(86400, 60 * 2 ^ least(p.attempts, 12)))
  where p.run_id in (select x.value::uuid from jsonb_array_elements_text(errand.request->'remove') x);
  if found_models and (outcome->>'replace_workers')::boolean then
    perform public.training_want_release();
  end if;
  perform public.training_note_alias_changes(errand.request->'aliases', outcome->'aliases', errand.problem);
  delete from public.training_serving_errands e where e.id in (
    select o.id from public.training_serving_errands o where o.ended_at < now() - interval '90 days' limit 100);
  return cardinality(confirmed);
end
$$;

revoke all on function public.training_may_be_served(public.training_runs), public.training_unwanted_adapters(),
  public.training_forget_unserved(), public.training_list_removals(), public.training_keep_served(),
  public.claim_serving_errand(text, text, text, int, int), public.record_serving_errand(uuid, uuid, text, text),
  public.end_serving_errand(uuid, uuid, jsonb)
  from public, anon, authenticated, service_role;
grant execute on function public.claim_serving_errand(text, text, text, int, int),
  public.record_serving_errand(uuid, uuid, text, text), public.end_serving_errand(uuid, uuid, jsonb) to service_role;
