-- For `lora-worker deploy smoke`: its job, dataset and files are removed when it is over.
--
-- A trial is a job of the operator's own user, whose dataset has the name that the command gives it. No job of anybody
-- else is one, so that nobody's rows can be removed by these functions.

-- Says whether a job is such a trial.
create or replace function public.training_is_trial(job_id uuid) returns boolean
language sql stable set search_path = '' as $$
  select exists (
    select from public.training_jobs j
    join public.datasets d on d.id = j.dataset_id
    where j.id = training_is_trial.job_id and d.name = 'lora-worker smoke' and d.user_id = j.user_id
      and public.training_is_operator(j.user_id))
$$;

-- Lists the trials that ended more than an hour ago: those of commands that were killed before they removed them. 100 at
-- most.
create or replace function public.training_ended_trials() returns jsonb
language plpgsql stable security definer set search_path = '' as $$
begin
  return (
    select coalesce(jsonb_agg(t.id), '[]') from (
      select j.id from public.training_jobs j join auth.users u on u.id = j.user_id
      where lower(u.email) = 'operator@lora-worker.internal' and j.status in ('completed', 'failed', 'cancelled')
        and coalesce(j.completed_at, j.created_at) < now() - interval '1 hour' and public.training_is_trial(j.id)
      order by j.created_at limit 100) t);
end
$$;

-- Lists the stored files of a trial as {bucket, name}, 1000 at most; none for a job that is no trial.
create or replace function public.training_trial_files(job_id uuid) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
#variable_conflict use_column
declare
  files jsonb := '[]';
begin
  if to_regclass('storage.objects') is not null and public.training_is_trial(training_trial_files.job_id) then
    execute $query$
      select coalesce(jsonb_agg(jsonb_build_object('bucket', f.bucket_id, 'name', f.name)), '[]') from (
        select o.bucket_id, o.name from storage.objects o
        where exists (
            select from public.training_jobs j join public.datasets d on d.id = j.dataset_id
            where j.id = $1 and o.bucket_id = d.storage_bucket and o.name = d.storage_path)
          or exists (
            select from public.training_runs r
            where r.job_id = $1
              and (starts_with(o.name, r.user_id || '/' || r.id || '/') or starts_with(o.name, 'uploads/' || r.id || '/')))
        order by o.bucket_id, o.name limit 1000) f
    $query$ into files using training_trial_files.job_id;
  end if;
  return files;
end
$$;

-- Removes the rows of a trial that has ended: job, dataset, artifact, points, costs, notifications, runs. Returns
-- {removed, reason}. A run whose launch may still be alive stays, and its job with it: a worker has to end that first.
create or replace function public.remove_training_trial(job_id uuid) returns jsonb
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  job public.training_jobs;
begin
  if not public.training_is_trial(remove_training_trial.job_id) then
    return jsonb_build_object('removed', false, 'reason', 'there is no trial with this id');
  end if;
  select * into job from public.training_jobs j where j.id = remove_training_trial.job_id for update;
  if job.status is null or job.status not in ('completed', 'failed', 'cancelled') then
    return jsonb_build_object('removed', false, 'reason', 'the job is ' || coalesce(job.status, 'in no state'));
  end if;
  if exists (
    select from public.training_runs r
    where r.job_id = job.id
      and (r.status in ('claimed', 'launched', 'running') or exists (
        select from public.training_launches l where l.run_id = r.id and l.ended_at is null
          and l.external_job_id is not null))) then
    return jsonb_build_object('removed', false, 'reason', 'its GPU job is not known to have ended: a worker has to look');
  end if;
  delete from public.training_holds h where h.job_id = job.id;
  delete from public.training_retries t where t.job_id = job.id;
  delete from public.training_reservations s where s.job_id = job.id;
  -- Before the run, which tells the base model of the sums that are kept.
  delete from public.cost_records c where c.job_id = job.id;
  delete from public.training_runs r where r.job_id = job.id;
  delete from public.notifications n where n.user_id = job.user_id and n.metadata->>'job_id' = job.id::text;
  update public.training_jobs j set artifact_id = null where j.id = job.id and j.artifact_id is not null;
  delete from public.model_artifacts a where a.job_id = job.id;
  delete from public.training_jobs j where j.id = job.id;
  delete from public.datasets d
  where d.id = job.dataset_id and not exists (select from public.training_jobs j where j.dataset_id = d.id);
  return jsonb_build_object('removed', true, 'reason', null);
end
$$;

revoke all on function public.training_is_trial(uuid), public.training_ended_trials(),
  public.training_trial_files(uuid), public.remove_training_trial(uuid)
  from public, anon, authenticated, service_role;
grant execute on function public.training_ended_trials(), public.training_trial_files(uuid),
  public.remove_training_trial(uuid) to service_role;
