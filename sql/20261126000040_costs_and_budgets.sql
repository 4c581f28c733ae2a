-- What trainings have cost, why they failed, and budgets: how much may be spent in a day, by everybody together and by
-- each user.
--
-- A day is one of UTC. The settings LORA_WORKER_MAX_COST_PER_DAY and LORA_WORKER_MAX_COST_PER_USER_PER_DAY come with the
-- terms that each worker publishes; a row of training_budgets takes the place of a setting. A claim counts what was
-- billed today and what the live runs may still cost, so that several workers share one budget. A job that does not fit
-- waits with a hold, as those that wait for a breaker do. Live runs are never stopped.

create table if not exists public.training_budgets (
  -- Null: everybody together.
  user_id uuid unique nulls not distinct,
  -- Null: no limit, whatever the setting says.
  usd_per_day numeric(12, 2) check (usd_per_day >= 0),
  set_at timestamptz not null default now()
);

-- What the live run of a job may cost, by its estimate when it was claimed. Rows without a live run are deleted by the
-- next claim that has to keep to a budget.
create table if not exists public.training_reservations (
  job_id uuid primary key,
  usd numeric(12, 2) not null
);

-- What trainings of users have cost who were erased, so that a month still adds up to the launcher's bill.
create table if not exists public.training_erased_costs (
  billing_period date not null,
  base_model text not null check (length(base_model) <= 300),
  jobs bigint not null,
  runs bigint not null,
  gpu_seconds numeric(16, 3) not null,
  usd numeric(14, 2) not null,
  primary key (billing_period, base_model)
);

do $migration$
declare
  own_table text;
begin
  foreach own_table in array array['training_budgets', 'training_reservations', 'training_erased_costs'] loop
    if not (select relrowsecurity from pg_class where oid = format('public.%I', own_table)::regclass) then
      execute format('alter table public.%I enable row level security', own_table);
    end if;
    execute format('revoke all on public.%I from public, anon, authenticated, service_role', own_table);
    execute format('grant select on public.%I to service_role', own_table);
  end loop;
  -- Each claim that keeps to a budget adds up a day's bills.
  if to_regclass('public.cost_records_billing_period_idx') is null then
    create index cost_records_billing_period_idx on public.cost_records (billing_period);
  end if;
  if to_regclass('public.training_runs_ended_idx') is null then
    create index training_runs_ended_idx on public.training_runs (ended_at) where ended_at is not null;
  end if;
end
$migration$;

-- Returns what is known of the details of a training's bill.
create or replace function public.training_bill_details(
  bill public.cost_records, out job text, out run text, out seconds double precision, out base_model text
) language sql stable set search_path = '' as $$
  select
    coalesce(bill.job_id::text, left(bill.details->>'job_id', 36), bill.id::text), coalesce(r.id, bill.id)::text,
    coalesce(public.training_number(bill.details->'gpu_seconds', 0, 1e9),
             public.training_number(bill.details->'duration_hours', 0, 1e6) * 3600, 0),
    coalesce(r.base_model, 'unknown')
  from (select case when bill.details->>'run_id' ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
                    then (bill.details->>'run_id')::uuid end as run_id) named
  left join public.training_runs r on r.id = named.run_id
$$;

-- Returns the bills of trainings since a time, by days.
create or replace function public.training_bills(since timestamptz)
returns table (user_id uuid, billing_period date, recorded_at timestamptz, amount numeric, job text, run text,
               seconds double precision, base_model text)
language sql stable set search_path = '' as $$
  select c.user_id, c.billing_period,
    coalesce(c.recorded_at, c.billing_period::timestamp at time zone 'utc'), c.amount,
    d.job, d.run, d.seconds, d.base_model
  from public.cost_records c
  cross join lateral public.training_bill_details(c) d
  where c.cost_type = 'training_compute' and c.amount <> 'NaN'
    -- The index knows days only, and a bill may be recorded a little after its day.
    and c.billing_period >= (training_bills.since at time zone 'utc')::date - 1
$$;

-- Returns what trainings have cost, from their bills: [{key, jobs, runs, gpu_seconds, usd}], 1000 at the most. `by` is
-- 'day' (key: the day of the bill, in order), 'user' (a user's id) or 'model' (the base model), the last two with the
-- most expensive first. Bills of the application's earlier dispatcher name no run: each counts as one.
-- Sums of erased users have the key 'erased users'.
create or replace function public.training_costs(since timestamptz, until timestamptz, by text) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
#variable_conflict use_column
begin
  if training_costs.by is null or training_costs.by not in ('day', 'user', 'model') then
    raise exception using errcode = 'PT400', message = 'by must be day, user or model';
  end if;
  return coalesce((
    with bills as (
      select b.* from public.training_bills(training_costs.since) b
      where b.recorded_at >= training_costs.since and b.recorded_at < training_costs.until
    ), summed as (
      select case training_costs.by when 'day' then b.billing_period::text when 'user' then b.user_id::text
             else b.base_model end as key,
        count(distinct b.job) as jobs, count(distinct b.run) as runs, round(sum(b.seconds)::numeric, 3) as gpu_seconds,
        sum(b.amount) as usd
      from bills b group by 1
      union all
      select case training_costs.by when 'day' then e.billing_period::text when 'user' then 'erased users'
             else e.base_model end, e.jobs, e.runs, e.gpu_seconds, e.usd
      from public.training_erased_costs e
      where e.billing_period::timestamp at time zone 'utc' >= training_costs.since
        and e.billing_period::timestamp at time zone 'utc' < training_costs.until
    )
    select jsonb_agg(to_jsonb(x)) from (
      select s.key, sum(s.jobs) as jobs, sum(s.runs) as runs, sum(s.gpu_seconds) as gpu_seconds, sum(s.usd) as usd
      from summed s group by s.key
      order by case when training_costs.by = 'day' then s.key end, sum(s.usd) desc, s.key limit 1000) x), '[]');
end
$$;

-- Returns why jobs failed since then, the most frequent reason first: [{error_code, jobs, users, last_at, message}], 100
-- at the most, with the message of the latest. Attempts that were followed by another are not counted.
create or replace function public.training_failures(since timestamptz) returns jsonb
language sql stable security definer set search_path = '' as $$
  select coalesce(jsonb_agg(to_jsonb(x)), '[]') from (
    select coalesce(left(r.error_code, 100), 'unknown') as error_code, count(distinct r.job_id) as jobs,
      count(distinct r.user_id) as users, max(r.ended_at) as last_at,
      (array_agg(left(r.error_message, 300) order by r.ended_at desc))[1] as message
    from public.training_runs r
    where r.ended_at >= training_failures.since and r.settled_as = 'failed'
    group by 1 order by jobs desc, last_at desc limit 100) x
$$;

-- Returns the budget of a day in USD, of a user or (null) of everybody together; null if there is none.
create or replace function public.training_budget(user_id uuid) returns numeric
language sql stable set search_path = '' as $$
  select case
    when exists (select from public.training_budgets b where b.user_id is not distinct from training_budget.user_id)
    then (select b.usd_per_day from public.training_budgets b
          where b.user_id is not distinct from training_budget.user_id)
    else (select public.training_number(
            t.document->case when training_budget.user_id is null then 'max_cost_per_day'
                             else 'max_cost_per_user_per_day' end, 0, 1e9)::numeric
          from public.training_terms t) end
$$;

-- Returns what was billed today and what the live runs may cost, in USD, of a user or (null) of everybody.
create or replace function public.training_spending(user_id uuid, out spent numeric, out live numeric)
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
begin
  spent := (
    select coalesce(sum(c.amount), 0) from public.cost_records c
    where c.billing_period = (now() at time zone 'utc')::date and c.cost_type = 'training_compute'
      and c.amount <> 'NaN' and (training_spending.user_id is null or c.user_id = training_spending.user_id))
    + case when training_spending.user_id is null then (
        select coalesce(sum(e.usd), 0) from public.training_erased_costs e
        where e.billing_period = (now() at time zone 'utc')::date) else 0 end;
  -- A run that has cost more than its estimate counts with that.
  live := (
    select coalesce(round(sum(greatest(
      coalesce(x.usd, 0), extract(epoch from r.last_seen_at - r.checked_in_at) / 3600
        * (r.launched_with->>'price_per_hour')::numeric * (r.launched_with->>'gpu_count')::numeric)), 2), 0)
    from public.training_runs r left join public.training_reservations x on x.job_id = r.job_id
    where r.status in ('claimed', 'launched', 'running')
      and (training_spending.user_id is null or r.user_id = training_spending.user_id));
end
$$;

-- As before, with what has been spent on bills that are deleted: what operators see is what budgets count.
create or replace function public.training_spent_today() returns numeric
language sql stable set search_path = '' as $$
  select (public.training_spending(null)).spent + public.training_live_costs()
$$;

-- Returns what a job may cost: the high end of its estimate, within the limit of a job, at the most expensive of all
-- places that have an offered GPU for it, with fewer GPUs than it asks for, too: workers that allow that may launch it
-- there. Without an estimate it is that limit, but nothing where no place has an offered GPU for
-- it, since such a job is refused before anything is launched. The job's own estimated_total_cost does not count: the user
-- may have written it.
create or replace function public.training_may_cost(queue text, job_id uuid) returns numeric
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
declare
  terms jsonb := (select t.document from public.training_terms t);
  ordered jsonb := public.training_job_order(training_may_cost.queue, training_may_cost.job_id);
  most numeric := (terms->>'max_cost_per_job')::numeric;
  dataset public.datasets;
begin
  select d.* into dataset from public.datasets d
  where d.id = public.training_order_dataset(
    ordered, (public.training_job_row(training_may_cost.queue, training_may_cost.job_id)->>'user_id')::uuid);
  return (
    select coalesce(max(round(least(coalesce((e.estimate#>>'{cost,high}')::numeric, most), most), 2)), 0)
    from public.training_estimates(terms, dataset, ordered->'hyperparameters', ordered->'gpu_config') e);
end
$$;

-- Says whether a waiting job fits today's budgets. Where it does, what it may cost is reserved; where it does not, the
-- job gets a hold of five minutes, in which claims pass it over. The caller has locked the job.
create or replace function public.training_fits_budget(queue text, job_id uuid) returns boolean
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
  owner uuid := (public.training_job_row(training_fits_budget.queue, training_fits_budget.job_id)->>'user_id')::uuid;
  day_budget numeric := public.training_budget(null);
  user_budget numeric := public.training_budget(coalesce(owner, '00000000-0000-0000-0000-000000000000'));
  used record;
  wanted numeric;
  short_of text;
  most numeric;
  sentence text;
begin
  if day_budget is null and user_budget is null then
    return true;
  end if;
  -- Claims of all workers that keep to a budget take turns from here to their end. Nothing below waits for a lock that
  -- another claim may hold.
  perform pg_advisory_xact_lock(hashtextextended('training budgets', 0));
  delete from public.training_reservations x
  where not exists (select from public.training_runs r
                    where r.job_id = x.job_id and r.status in ('claimed', 'launched', 'running'));
  -- Runs that were claimed before there was a budget.
  insert into public.training_reservations (job_id, usd)
  select r.job_id, public.training_may_cost(r.queue, r.job_id) from public.training_runs r
  where r.status in ('claimed', 'launched', 'running')
    and not exists (select from public.training_reservations x where x.job_id = r.job_id);
  wanted := coalesce(public.training_may_cost(training_fits_budget.queue, training_fits_budget.job_id), 0);
  if day_budget is not null then
    select * into used from public.training_spending(null);
    if used.spent + used.live + wanted > day_budget then
      short_of := 'the day''s budget for all trainings';
      most := day_budget;
    end if;
  end if;
  if short_of is null and user_budget is not null then
    select * into used from public.training_spending(owner);
    if used.spent + used.live + wanted > user_budget then
      short_of := 'its user''s budget for a day';
      most := user_budget;
    end if;
  end if;
  if short_of is null then
    insert into public.training_reservations (job_id, usd) values (training_fits_budget.job_id, wanted)
    on conflict (job_id) do update set usd = excluded.usd;
    return true;
  end if;
  insert into public.training_holds (job_id, kind, name, endpoint, reason, held_until)
  values (training_fits_budget.job_id, 'budget', '', '',
          format('%s: $%s a day, $%s spent today, $%s for live runs, and it may cost $%s%s', short_of, most, used.spent,
                 used.live, wanted, case when wanted > most then ' alone; raise it with `lora-worker budget set`'
                                         else '' end),
          -- A claim refuses fifty jobs at the most, so thousands are looked at again less often.
          least(now() + make_interval(secs => greatest(300, (select count(*) from public.training_holds) / 2)),
                ((now() at time zone 'utc')::date + 1)::timestamp at time zone 'utc'))
  on conflict (job_id) do update
  set kind = excluded.kind, name = excluded.name, endpoint = excluded.endpoint, reason = excluded.reason,
      held_until = excluded.held_until;
  sentence := case when wanted > most
    then format('This training may cost $%s, and the budget is $%s a day: choose fewer epochs or a smaller dataset, or '
                'ask for a higher budget.', wanted, most)
    else 'The day''s budget for trainings is used up. The job waits, and starts by itself when there is room; a '
         'new day begins at midnight (UTC).' end;
  -- Only these columns: an update of the status would wait for a row of training_waiting_users, which another claim may
  -- have locked while it waits for the lock above.
  if training_fits_budget.queue = 'training_jobs' then
    update public.training_jobs j set current_stage = 'waiting_for_budget', error_message = sentence
    where j.id = training_fits_budget.job_id
      and (j.current_stage, j.error_message) is distinct from ('waiting_for_budget', sentence);
  else
    update public.pipeline_training_jobs j set error_message = sentence, updated_at = now()
    where j.id = training_fits_budget.job_id and j.error_message is distinct from sentence;
  end if;
  return false;
end
$$;

-- Locks a job if it still waits, nobody else has locked it, and its user's jobs are not held; returns whether it did. The caller's earlier read may be out of date, and in the newer queue a job's user may be its creator,
-- whom training_candidates does not know.
create or replace function public.training_lock_waiting_job(queue text, job_id uuid) returns boolean
language plpgsql set search_path = '' as $$
#variable_conflict use_column
begin
  if training_lock_waiting_job.queue = 'training_jobs' then
    perform from public.training_jobs j
    where j.id = training_lock_waiting_job.job_id and j.status = 'queued' for update skip locked;
  else
    perform from public.pipeline_training_jobs j
    where j.id = training_lock_waiting_job.job_id and j.status = 'pending' for update skip locked;
  end if;
  return found and not exists (
    select from public.training_runs r
    where r.job_id = training_lock_waiting_job.job_id
      and (r.status in ('claimed', 'launched', 'running') or r.next_attempt_at > now()))
    and not exists (
      select from public.training_holds h
      where h.job_id = training_lock_waiting_job.job_id and h.held_until > now())
    and public.training_barred((public.training_job_row(
      training_lock_waiting_job.queue, training_lock_waiting_job.job_id)->>'user_id')::uuid) is null;
end
$$;

-- Claims up to max_jobs waiting jobs of both queues, oldest first, and creates a run with a lease for each. A user
-- never has more than max_per_user live runs (null: no limit), even if several workers claim at the same time. The
-- attempt is counted here, so it is used even if the worker crashes directly afterwards. Jobs that do not fit the budgets
-- are passed over, fifty at the most: each round looks at more jobs than the one before, and with thousands of them a
-- claim would take seconds. The others get their turn in later claims, since these have holds then.
create or replace function public.claim_training_jobs(
  worker text, max_jobs int, lease_seconds int, max_per_user int default null
) returns jsonb
-- A plan made while the tables were small would read whole tables for each job of a large batch.
language plpgsql security definer set search_path = '' set enable_seqscan = off as $$
#variable_conflict use_column
declare
  candidate record;
  found_some boolean;
  owner uuid;
  live_runs jsonb := '{}';
  live int;
  tried_jobs uuid[] := '{}';
  tried_users uuid[] := '{}';
  run_id uuid;
  claimed uuid[] := '{}';
  refused int := 0;
begin
  perform public.training_check_lease_seconds(lease_seconds);
  perform public.training_keep_waiting_users();
  -- Jobs that others have locked are skipped. Each round looks at more jobs than the one before.
  for round in 1..20 loop
    exit when cardinality(claimed) >= claim_training_jobs.max_jobs or refused >= 50;
    found_some := false;
    for candidate in
      select * from public.training_candidates(
        claim_training_jobs.max_per_user, claim_training_jobs.max_jobs - cardinality(claimed) + 10 * (round - 1),
        tried_jobs, tried_users)
      order by waits_since, id
    loop
      found_some := true;
      tried_jobs := tried_jobs || candidate.id;
      owner := case when candidate.user_id = '00000000-0000-0000-0000-000000000000'
                    then public.training_pipeline_maker(candidate.id) else candidate.user_id end;
      continue when owner = any (tried_users);
      live := (live_runs->>owner::text)::int;
      if live is null and claim_training_jobs.max_per_user is not null then
        if pg_try_advisory_xact_lock(hashtextextended('training_jobs ' || owner, 0)) then
          -- The count is exact only under the user's lock.
          live := public.training_live_runs(owner);
        end if;
      end if;
      if (coalesce(live, claim_training_jobs.max_per_user) >= claim_training_jobs.max_per_user) is true then
        tried_users := tried_users || owner;
        continue;
      end if;
      continue when not public.training_lock_waiting_job(candidate.queue, candidate.id);
      if owner is null then
        perform public.training_write_job(candidate.queue, candidate.id, jsonb_build_object(
          'status', 'failed', 'completed_at', now(),
          'error_message', 'The job belongs to no user, so nobody could get its result: sign in and start it again.'));
        continue;
      end if;
      if not public.training_fits_budget(candidate.queue, candidate.id) then
        refused := refused + 1;
        exit when refused >= 50;
        continue;
      end if;
      insert into public.training_runs (queue, job_id, user_id, attempt, worker, lease_expires_at)
      select candidate.queue, candidate.id, owner, coalesce(max(r.attempt), 0) + 1, claim_training_jobs.worker,
             now() + make_interval(secs => claim_training_jobs.lease_seconds)
      from public.training_runs r
      where r.job_id = candidate.id
      returning id into run_id;
      perform public.training_write_job(candidate.queue, candidate.id, jsonb_build_object(
        'status', 'initializing', 'current_stage', 'initializing', 'external_job_id', null,
        'retry_count', (select r.attempt - 1 from public.training_runs r where r.id = run_id)));
      claimed := claimed || run_id;
      if live is not null then
        live_runs := live_runs || jsonb_build_object(owner, live + 1);
      end if;
      exit when cardinality(claimed) >= claim_training_jobs.max_jobs;
    end loop;
    exit when not found_some;
  end loop;
  return coalesce((select jsonb_agg(public.training_assignment(c.id) order by c.place)
                   from unnest(claimed) with ordinality c (id, place)), '[]');
end
$$;

-- Sets the budget of a day in USD, of a user or (null) of everybody together; without usd_per_day there is no limit,
-- whatever the setting says. Jobs that wait for a budget are looked at again at once. Returns whether it changed.
create or replace function public.set_training_budget(user_id uuid, usd_per_day numeric) returns boolean
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  changed boolean;
begin
  if set_training_budget.usd_per_day not between 0 and 1e9 then
    raise exception using errcode = 'PT400', message = 'usd_per_day must lie between 0 and 1000000000';
  end if;
  insert into public.training_budgets as b (user_id, usd_per_day)
  values (set_training_budget.user_id, set_training_budget.usd_per_day)
  on conflict (user_id) do update set usd_per_day = excluded.usd_per_day, set_at = now()
  where b.usd_per_day is distinct from excluded.usd_per_day;
  changed := found;
  -- Claims change several of these rows, in the order of the queue.
  perform pg_advisory_xact_lock(hashtextextended('training budgets', 0));
  update public.training_holds h set held_until = now() where h.kind = 'budget' and h.held_until > now();
  return changed;
end
$$;

-- Removes a budget that was set, so that the setting counts again. Returns whether there was one.
create or replace function public.remove_training_budget(user_id uuid) returns boolean
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  removed boolean;
begin
  delete from public.training_budgets b where b.user_id is not distinct from remove_training_budget.user_id;
  removed := found;
  -- Claims change several of these rows, in the order of the queue.
  perform pg_advisory_xact_lock(hashtextextended('training budgets', 0));
  update public.training_holds h set held_until = now() where h.kind = 'budget' and h.held_until > now();
  return removed;
end
$$;

-- Returns the budgets and what is used of them today: {day, each_user, budgets}. `day` is {usd_per_day, spent, live} of
-- everybody together, `each_user` the budget of a user without one of their own (null: none), and `budgets` has {user_id,
-- usd_per_day, spent, live, set_at} for every user with one, and for those who have spent something today: 1000 at most.
create or replace function public.training_budget_state() returns jsonb
language sql stable security definer set search_path = '' as $$
  select jsonb_build_object(
    'day', (select jsonb_build_object('usd_per_day', public.training_budget(null), 'spent', s.spent, 'live', s.live)
            from public.training_spending(null) s),
    -- The zero uuid is no user's.
    'each_user', public.training_budget('00000000-0000-0000-0000-000000000000'),
    'budgets', coalesce((select jsonb_agg(to_jsonb(x)) from (
      select u.user_id, public.training_budget(u.user_id) as usd_per_day, s.spent, s.live, b.set_at
      from (select b.user_id from public.training_budgets b where b.user_id is not null
            union
            select c.user_id from public.cost_records c
            where c.billing_period = (now() at time zone 'utc')::date and c.cost_type = 'training_compute'
            union
            select r.user_id from public.training_runs r where r.status in ('claimed', 'launched', 'running')
            limit 1000) u
      cross join lateral public.training_spending(u.user_id) s
      left join public.training_budgets b on b.user_id = u.user_id
      order by s.spent + s.live desc, u.user_id) x), '[]'))
$$;

revoke all on function public.training_bill_details(public.cost_records), public.training_bills(timestamptz),
  public.training_costs(timestamptz, timestamptz, text), public.training_failures(timestamptz),
  public.training_budget(uuid), public.training_spending(uuid), public.training_may_cost(text, uuid),
  public.training_fits_budget(text, uuid), public.set_training_budget(uuid, numeric),
  public.remove_training_budget(uuid), public.training_budget_state()
  from public, anon, authenticated, service_role;
grant execute on function public.training_costs(timestamptz, timestamptz, text),
  public.training_failures(timestamptz), public.set_training_budget(uuid, numeric),
  public.remove_training_budget(uuid), public.training_budget_state() to service_role;
