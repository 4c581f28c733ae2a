-- Erases what is known of a user: rows and, by the worker's command, files. Sums of what their trainings have cost stay,
-- without their name, so that a month still adds up to the launcher's bill.

-- Returns the user's jobs of the newer queue, where the creator of a job without a user counts as its user.
create or replace function public.training_pipeline_jobs_of(user_id uuid) returns setof uuid
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
begin
  if to_regclass('public.pipeline_training_jobs') is not null then
    return query
      select j.id from public.pipeline_training_jobs j
      where j.user_id = training_pipeline_jobs_of.user_id
        or (j.user_id is null and public.training_pipeline_maker(j.id) = training_pipeline_jobs_of.user_id);
  end if;
end
$$;

-- Returns how much there is of a user: {datasets, jobs, artifacts, notifications, costs, runs, busy}. `busy` counts live
-- runs, and launches that may not have ended: only their rows tell which GPU must be stopped.
create or replace function public.training_user_state(user_id uuid) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
#variable_conflict use_column
begin
  return jsonb_build_object(
    'datasets', (select count(*) from public.datasets d where d.user_id = training_user_state.user_id),
    'jobs', (select count(*) from public.training_pipeline_jobs_of(training_user_state.user_id))
      + (select count(*) from public.training_jobs j where j.user_id = training_user_state.user_id),
    'artifacts', (select count(*) from public.model_artifacts a where a.user_id = training_user_state.user_id),
    'notifications', (select count(*) from public.notifications n where n.user_id = training_user_state.user_id),
    'costs', (select count(*) from public.cost_records c where c.user_id = training_user_state.user_id),
    'runs', (select count(*) from public.training_runs r where r.user_id = training_user_state.user_id),
    'busy', (select count(*) from public.training_runs r
             where r.user_id = training_user_state.user_id
               and (r.status in ('claimed', 'launched', 'running')
                    or exists (select from public.training_launches l
                               where l.run_id = r.id and l.ended_at is null and l.external_job_id is not null))));
end
$$;

-- Cancels all jobs of a user that have not ended, and returns how many these were. The worker stops their GPUs.
create or replace function public.stop_user_training(user_id uuid) returns int
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  job record;
  stopped int := 0;
begin
  for job in
    select j.id from public.training_jobs j
    where j.user_id = stop_user_training.user_id and j.status in ('queued', 'initializing', 'running')
    order by j.id
  loop
    stopped := stopped + public.cancel_training_job(job.id)::int;
  end loop;
  if to_regclass('public.pipeline_training_jobs') is not null then
    for job in
      select j.id from public.pipeline_training_jobs j
      where j.id in (select public.training_pipeline_jobs_of(stop_user_training.user_id))
        and j.status in ('pending', 'queued', 'initializing', 'running')
      order by j.id
    loop
      stopped := stopped + public.cancel_training_job(job.id)::int;
    end loop;
  end if;
  return stopped;
end
$$;

-- Returns objects of a user, [{bucket, name}], max_objects at the most: the user's folders, what trainers have uploaded
-- for the user's runs, and archives of the user's jobs of the newer queue.
create or replace function public.training_user_objects(user_id uuid, artifacts_bucket text, max_objects int)
returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  found jsonb := '[]';
begin
  if to_regclass('storage.objects') is not null then
    execute $query$
      select coalesce(jsonb_agg(jsonb_build_object('bucket', x.bucket_id, 'name', x.name)), '[]') from (
        select o.bucket_id, o.name from storage.objects o
        where o.bucket_id in ('lora-datasets', $2)
          and (o.name like $1 || '/%'
               or (o.bucket_id = $2 and exists (
                 select from public.training_runs r
                 where r.user_id = $1 and (starts_with(o.name, 'uploads/' || r.id || '/')
                                           or o.name = 'adapters/' || r.job_id || '.tar.gz'))))
        order by o.bucket_id, o.name limit least(greatest($3, 0), 1000)) x
    $query$ into found
    using training_user_objects.user_id, training_user_objects.artifacts_bucket, training_user_objects.max_objects;
  end if;
  return found;
end
$$;

-- Keeps the sums of bills that are deleted: with a user's account, by erase_training_user, or with a trial. A user who
-- signs up anew would have the day's budget again otherwise, and a month would not add up to the launcher's bill.
create or replace function public.training_keep_erased_costs() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  insert into public.training_erased_costs as e (billing_period, base_model, jobs, runs, gpu_seconds, usd)
  select g.billing_period, d.base_model, count(distinct d.job), count(distinct d.run),
    round(sum(d.seconds)::numeric, 3), sum(g.amount)
  from gone g
  cross join lateral public.training_bill_details(row(g.*)::public.cost_records) d
  where g.cost_type = 'training_compute' and g.amount <> 'NaN'
  group by 1, 2
  on conflict (billing_period, base_model) do update
  set jobs = e.jobs + excluded.jobs, runs = e.runs + excluded.runs, gpu_seconds = e.gpu_seconds + excluded.gpu_seconds,
      usd = e.usd + excluded.usd;
  return null;
end
$$;

do $migration$
begin
  if not exists (select from pg_trigger
                 where tgrelid = 'public.cost_records'::regclass and tgname = 'training_keep_erased_costs') then
    create trigger training_keep_erased_costs after delete on public.cost_records
    referencing old table as gone for each statement execute function public.training_keep_erased_costs();
  end if;
end
$migration$;

-- Deletes the rows of a user and returns {erased, reason, rows: {table: how many}}. Refuses while a run of the user is
-- live or a launch may not have ended. What the user's trainings have cost is kept in training_erased_costs. The account
-- itself belongs to Auth and stays.
create or replace function public.erase_training_user(user_id uuid) returns jsonb
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  gone jsonb := '{}';
  wanted text;
  deleted bigint;
begin
  perform from public.training_runs r where r.user_id = erase_training_user.user_id order by r.id for update;
  if (public.training_user_state(erase_training_user.user_id)->>'busy')::int > 0 then
    return jsonb_build_object('erased', false, 'reason', 'runs are still being stopped', 'rows', gone);
  end if;
  delete from public.training_holds h where h.job_id in (
    select r.job_id from public.training_runs r where r.user_id = erase_training_user.user_id
    union select j.id from public.training_jobs j where j.user_id = erase_training_user.user_id
    union select public.training_pipeline_jobs_of(erase_training_user.user_id));
  delete from public.training_retries t where t.job_id in (
    select r.job_id from public.training_runs r where r.user_id = erase_training_user.user_id);
  -- In this order, because of the references between them.
  foreach wanted in array array[
    'training_aliases', 'notifications', 'cost_records', 'model_artifacts', 'training_jobs', 'pipeline_training_jobs',
    'datasets', 'training_runs', 'training_budgets', 'training_operator_holds', 'training_waiting_users',
    'training_webhook_events']
  loop
    continue when to_regclass('public.' || wanted) is null;
    execute format('delete from public.%I where ', wanted)
      || case wanted when 'pipeline_training_jobs' then 'id in (select public.training_pipeline_jobs_of($1))'
                     else 'user_id = $1' end
    using erase_training_user.user_id;
    get diagnostics deleted = row_count;
    if deleted > 0 then
      gone := gone || jsonb_build_object(wanted, deleted);
    end if;
  end loop;
  update public.training_breakers b set user_ids = array_remove(b.user_ids, erase_training_user.user_id)
  where erase_training_user.user_id = any (b.user_ids);
  return jsonb_build_object('erased', true, 'reason', null, 'rows', gone);
-- Postgres 18 tells a reference that restricts from others.
exception when foreign_key_violation or restrict_violation then
  return jsonb_build_object('erased', false, 'rows', '{}'::jsonb,
    'reason', 'rows of others, or of tables of the application, refer to them: delete these first');
end
$$;

revoke all on function public.training_keep_erased_costs(), public.training_pipeline_jobs_of(uuid),
  public.training_user_state(uuid),
  public.stop_user_training(uuid), public.training_user_objects(uuid, text, int), public.erase_training_user(uuid)
  from public, anon, authenticated, service_role;
grant execute on function public.training_user_state(uuid), public.stop_user_training(uuid),
  public.training_user_objects(uuid, text, int), public.erase_training_user(uuid) to service_role;
