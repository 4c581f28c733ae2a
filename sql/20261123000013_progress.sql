-- Progress of live runs: columns of their jobs, points of their curves, notifications.

do $migration$
begin
  if to_regclass('public.training_notifications_job_idx') is null then
    -- Users write notifications, too, whose metadata may contain a value of any length.
    create index training_notifications_job_idx on public.notifications (user_id, left(metadata->>'job_id', 36));
  end if;
  if to_regclass('public.training_cost_records_run_idx') is null then
    create index training_cost_records_run_idx on public.cost_records (user_id, (details->>'run_id'));
  end if;
  if to_regclass('public.training_cost_records_job_idx') is null then
    create index training_cost_records_job_idx on public.cost_records (user_id, (details->>'job_id'));
  end if;
end
$migration$;

-- Inserts notifications that the user has not received yet: job_requeued once for each run, the others once for each
-- job. None are written for the newer queue, since the application sends none there, and their links lead to pages of
-- the older queue.
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
      and (n->>'type' <> 'job_requeued' or o.metadata->>'run_id' = (run).id::text))
$$;

-- Stores the points of a run's curve. points is [{step, epoch, training_loss, ...}] in the units of the columns,
-- within their ranges. Each step is stored once, by the first report that has it; a validation loss that is known
-- later is added to the stored point. The caller has locked the run. Points of an earlier attempt at or after this
-- run's first step are replaced. A job keeps at most `most` points (a thousand at the most). `whole` says that these
-- points are the complete curve, and that all others are deleted.
create or replace function public.training_store_points(
  run_id uuid, points jsonb, most int default 100, whole boolean default false
) returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
  run public.training_runs;
  md5_now text := md5(concat(training_store_points.whole, training_store_points.points));
  stored int[];
  fresh jsonb;
  fresh_steps int[];
begin
  select * into run from public.training_runs r where r.id = training_store_points.run_id;
  if coalesce(points, '[]') in ('[]', 'null') or run.points_md5 = md5_now then
    return;
  end if;
  stored := run.point_steps;
  if whole then
    stored := array(select s.step from unnest(run.point_steps) s (step)
                    where s.step in (select (p->>'step')::int from jsonb_array_elements(points) p));
  end if;
  select jsonb_agg(f.p order by f.step), array_agg(f.step order by f.step) into fresh, fresh_steps
  from (
    select distinct on ((p->>'step')::int) p, (p->>'step')::int as step
    from jsonb_array_elements(points) p
    where (p->>'step')::int <> all (stored)
    order by (p->>'step')::int
    limit greatest(least(coalesce(most, 100), 1000) - cardinality(stored), 0)
  ) f;
  perform public.training_revise_points(run.queue, run.job_id, stored, points, whole);
  if fresh is not null then
    perform public.training_write_points(run.queue, run.job_id, fresh, replaces => run.point_steps = '{}');
  end if;
  update public.training_runs r
  set point_steps = stored || coalesce(fresh_steps, '{}'), points_md5 = md5_now
  where r.id = run.id;
end
$$;

-- Returns a job's columns of progress, updated with a report. Numbers never decrease.
create or replace function public.training_advanced(job jsonb, news jsonb) returns jsonb
language sql immutable set search_path = '' as $$
  select jsonb_build_object(
    'progress', greatest((job->>'progress')::numeric, (news->>'progress')::numeric),
    'current_epoch', greatest((job->>'current_epoch')::int, (news->>'current_epoch')::int),
    'current_step', greatest((job->>'current_step')::int, (news->>'current_step')::int),
    'total_steps', coalesce((news->>'total_steps')::int, (job->>'total_steps')::int),
    -- Anything but an object is replaced: appended to a string or an array, it would grow with each report.
    'current_metrics', case jsonb_typeof(job->'current_metrics') when 'object' then job->'current_metrics' else '{}' end
      || case jsonb_typeof(news->'current_metrics') when 'object' then news->'current_metrics' else '{}' end)
$$;

-- Writes one report of a run whose lease is held and whose row is locked.
create or replace function public.training_apply_report(run public.training_runs, report jsonb) returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
  job jsonb;
  news jsonb := coalesce(report->'job', '{}');
  without_gpu constant text[] := array['initializing', 'waiting_for_gpu_provider', 'queued_on_gpu', 'waiting_for_gpu'];
begin
  job := public.training_job_row(run.queue, run.job_id, locked => true);
  if news->>'current_stage' = any (without_gpu) and job->>'current_stage' <> all (without_gpu) then
    -- The trainer checked in after the worker had asked the launcher, so this stage is out of date.
    news := news - 'current_stage';
  end if;
  if job->>'status' in ('initializing', 'running') then
    perform public.training_write_job(run.queue, run.job_id, public.training_advanced(job, news)
      || jsonb_build_object(
        'current_stage', coalesce(news->>'current_stage', job->>'current_stage'),
        'current_cost', least(greatest((job->>'current_cost')::numeric, (news->>'current_cost')::numeric),
                              (run.launched_with->>'max_cost')::numeric),
        'estimated_completion_at', coalesce(news->>'estimated_completion_at', job->>'estimated_completion_at')));
    perform public.training_store_points(run.id, report->'points', (report->>'most_points')::int);
    perform public.training_notify(run, report->'notices');
  end if;
  update public.training_runs r
  set stage = coalesce(news->>'current_stage', r.stage),
      current_step = greatest(r.current_step, (news->>'current_step')::int),
      problem = left(report->>'problem', 500)
  where r.id = run.id;
  if run.current_step = 0 and (news->>'current_step')::int > 0 then
    perform public.training_breakers_worked(run);
  end if;
end
$$;

-- Writes the reports of all runs of a worker in one call. reports is [{run_id, lease_token, job, points, most_points,
-- notices, problem}], where job has columns of training_jobs. Within a run, progress and steps never decrease, and
-- the stage never returns to waiting for a GPU; ended jobs stay as they are. Returns [{run_id, applied, refused}]: a
-- report with values that no column can hold is skipped, with its SQLSTATE, and its lease is still held.
create or replace function public.record_progress(reports jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  report jsonb;
  run public.training_runs;
  refused text;
  answers jsonb := '[]';
begin
  for report in
    select r from jsonb_array_elements(public.training_decoded(record_progress.reports)) r order by (r->>'run_id')::uuid
  loop
    select * into run from public.training_held_run((report->>'run_id')::uuid,
                                                    (report->>'lease_token')::uuid);
    if not found then
      answers := answers || jsonb_build_object('run_id', report->>'run_id', 'applied', false);
      continue;
    end if;
    refused := null;
    begin
      perform public.training_apply_report(run, report);
    exception when data_exception or integrity_constraint_violation then
      refused := sqlstate;
    end;
    answers := answers || jsonb_build_object('run_id', run.id, 'applied', true, 'refused', refused);
  end loop;
  return answers;
end
$$;

call public.training_set_function_rights(open => false);
