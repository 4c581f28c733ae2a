-- Workers report regularly that they run, so that a queue without a worker is noticed.

-- Stores a worker's report: {version, running_seconds, slots, held, max_per_user, problem, single_pass}. Deletes
-- reports older than a week, and all but the newest hundred, since each pass from cron has its own name.
create or replace function public.report_worker(worker text, report jsonb) returns boolean
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  news jsonb := public.training_decoded(report_worker.report);
begin
  insert into public.training_workers as w (name, version, started_at, slots, held, max_per_user, problem, single_pass)
  values (left(report_worker.worker, 200), left(news->>'version', 50),
          now() - make_interval(secs => least(greatest((news->>'running_seconds')::double precision, 0), 1e9)),
          (news->>'slots')::int, (news->>'held')::int, (news->>'max_per_user')::int, left(news->>'problem', 500),
          coalesce((news->>'single_pass')::boolean, false))
  on conflict (name) do update
  set version = excluded.version, seen_at = now(), slots = excluded.slots, held = excluded.held,
      max_per_user = excluded.max_per_user, problem = excluded.problem, single_pass = excluded.single_pass;
  delete from public.training_workers w
  where w.name <> left(report_worker.worker, 200)
    and (w.seen_at < now() - interval '7 days'
      or w.name in (select o.name from public.training_workers o order by o.seen_at desc, o.name offset 100));
  return true;
end
$$;

-- Returns the workers that serve the queue: those seen in the last two minutes, and the newest single pass of the
-- last hour. Passes must run at least that often, since a trainer waits only half an hour for its upload grant.
create or replace function public.training_living_workers() returns setof public.training_workers
language sql stable set search_path = '' as $$
  select w.* from public.training_workers w where not w.single_pass and w.seen_at > now() - interval '2 minutes'
  union all
  (select w.* from public.training_workers w where w.single_pass and w.seen_at > now() - interval '1 hour'
   order by w.seen_at desc, w.name limit 1)
$$;

-- Returns in words since when no worker has served the queue; null while one does.
create or replace function public.training_no_worker() returns text
language sql stable set search_path = '' as $$
  select case
    when exists (select from public.training_living_workers()) then null
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

call public.training_set_function_rights(open => false);
