-- Estimates learn: each finished run leaves the speed at which it trained, and the median of those of the same base model on
-- the same GPU counts in place of the worker's table.
--
-- The figures come from a container, so none is trusted by itself. Only trainings of a minute and ten steps or more count,
-- within the time that this database saw pass, and within a tenth and ten times of what the table says; of each user only
-- the newest five, of all only the newest fifteen, and no fewer than three.

do $migration$
begin
  if to_regclass('public.training_speeds') is null then
    -- All of the lock at once: one that is raised in the middle of a migration deadlocks with a live worker's renewals.
    lock table public.training_runs in access exclusive mode;
  end if;
end
$migration$;

-- Of one finished run each. Rows go with their run, so with their user, too.
create table if not exists public.training_speeds (
  run_id uuid primary key references public.training_runs (id) on delete cascade,
  user_id uuid not null,
  base_model text not null check (length(base_model) <= 300),
  -- As in the price table.
  gpu_type text not null check (length(gpu_type) <= 100),
  -- Of one GPU; evaluations and checkpoints between the steps count as time.
  tokens_per_second double precision not null,
  noted_at timestamptz not null default now()
);

do $migration$
begin
  if not (select c.relrowsecurity from pg_class c where c.oid = 'public.training_speeds'::regclass) then
    alter table public.training_speeds enable row level security;
  end if;
  revoke all on public.training_speeds from public, anon, authenticated, service_role;
  grant select on public.training_speeds to service_role;
  if to_regclass('public.training_speeds_newest_idx') is null then
    create index training_speeds_newest_idx on public.training_speeds (base_model, gpu_type, noted_at desc);
  end if;
end
$migration$;

-- Notes the speed of a run that succeeded, from what its trainer measured: {tokens, seconds, steps}. Anything that can't
-- be true, and trainings too short to show a speed, leave none.
create or replace function public.training_note_speed(run_id uuid, pace jsonb) returns void
language sql set search_path = '' as $$
  insert into public.training_speeds (run_id, user_id, base_model, gpu_type, tokens_per_second)
  select r.id, r.user_id, r.base_model, left(r.launched_with->>'gpu_type', 100), p.tokens / p.seconds
  from public.training_runs r,
       (select public.training_number(training_note_speed.pace->'tokens', 1, 1e15) as tokens,
               public.training_number(training_note_speed.pace->'seconds', 60, 1e8) as seconds,
               public.training_number(training_note_speed.pace->'steps', 10, 2e9) as steps) p
  where r.id = training_note_speed.run_id and r.status = 'succeeded'
    -- Other methods read what they learn more often than sft does: their tokens a second say nothing of sft's.
    and coalesce(r.launched_with->'hyperparameters'->>'method', 'sft') = 'sft'
    and r.base_model is not null and r.launched_with->>'gpu_type' is not null
    and p.tokens is not null and p.steps is not null
    -- Clocks may differ by a little.
    and p.seconds <= extract(epoch from r.ended_at - r.checked_in_at) + 60
  on conflict (run_id) do nothing
$$;

-- As settle_run, and notes of a run that has completed how fast it trained and what it has brought. outcome has three more
-- keys: `pace`, null where it is not known; `measured` and `figures` (20261126000080_measured_runs.sql).
create or replace function public.settle_run_2(run_id uuid, lease_token uuid, outcome jsonb) returns text
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  run public.training_runs;
  status_before text;
  verdict text;
begin
  outcome := public.training_decoded(settle_run_2.outcome);
  -- The locks of settle_run, in its order. Without the lease there is no run, and so nothing is noted.
  select * into run from public.training_held_run(settle_run_2.run_id, settle_run_2.lease_token);
  if found then
    status_before := public.training_job_row(run.queue, run.job_id, locked => true)->>'status';
  end if;
  verdict := public.settle_run(settle_run_2.run_id, settle_run_2.lease_token, settle_run_2.outcome);
  if verdict = 'completed' then
    perform public.training_note_speed(settle_run_2.run_id, settle_run_2.outcome->'pace');
    -- A job that another process has completed has that one's result.
    if status_before <> 'completed' then
      perform public.training_note_measured(settle_run_2.run_id, settle_run_2.outcome->'measured',
                                            settle_run_2.outcome->'figures');
    end if;
  end if;
  return verdict;
end
$$;

-- Returns the speed that the terms' table expects of a base model on a GPU of the terms, in tokens per second:
-- {low, high, source, runs}. Terms of a worker from before this file have sizes with other names.
create or replace function public.training_table_speed(terms jsonb, base_model text, gpu jsonb) returns jsonb
language sql immutable set search_path = '' as $$
  select jsonb_build_object(
    'low', (gpu->>'slow')::double precision * coalesce(s.reference->>'high', s.reference->>'total')::double precision
      / coalesce(s.size->>'high', s.size->>'total')::double precision,
    'high', (gpu->>'fast')::double precision * coalesce(s.reference->>'low', s.reference->>'active')::double precision
      / coalesce(s.size->>'low', s.size->>'active')::double precision,
    'source', case when gpu->'benchmarked' ? training_table_speed.base_model then 'benchmark' else 'derived' end,
    'runs', 0)
  from (select terms->'reference' as reference,
               coalesce(terms->'models'->training_table_speed.base_model, terms->'reference') as size) s
$$;

-- Returns the speed to expect, as {low, high, source, runs}: that of `terms->'measured'`, else the table's.
-- Terms.speed in worker/lora_worker/money/terms.py does the same.
create or replace function public.training_speed(terms jsonb, base_model text, gpu jsonb) returns jsonb
language plpgsql immutable set search_path = '' as $$
#variable_conflict use_variable
declare
  known jsonb := terms->'measured'->base_model->(gpu->>'type');
  median double precision := (known->>'tokens_per_second')::double precision;
begin
  if median is null or terms->'of_runs' is null then
    return public.training_table_speed(terms, base_model, gpu);
  end if;
  return jsonb_build_object(
    'low', median * (terms#>>'{of_runs,slower}')::double precision,
    'high', median * (terms#>>'{of_runs,faster}')::double precision,
    'source', 'runs', 'runs', known->'runs');
end
$$;

-- Returns the median speed of finished runs of a base model on a GPU of the terms: {tokens_per_second, runs}; null where
-- too few of them count. A speed far from the table's is left out: nobody's container should make estimates absurd.
create or replace function public.training_median_speed(terms jsonb, base_model text, gpu jsonb) returns jsonb
language sql stable set search_path = '' as $$
  select jsonb_build_object(
    'tokens_per_second', percentile_cont(0.5) within group (order by n.tokens_per_second), 'runs', count(*))
  from (
    select w.tokens_per_second
    from (
      select s.tokens_per_second, s.noted_at, row_number() over (partition by s.user_id order by s.noted_at desc) as place
      from (
        select c.* from public.training_speeds c
        where c.base_model = training_median_speed.base_model and c.gpu_type = gpu->>'type'
        order by c.noted_at desc limit 200) s,
        public.training_table_speed(terms, training_median_speed.base_model, gpu) t
      where s.tokens_per_second between (t->>'low')::double precision / 10 and (t->>'high')::double precision * 10) w
    where w.place <= 5
    order by w.noted_at desc limit 15) n
  having count(*) >= 3
$$;

-- Returns the terms with what is measured of one base model (null: the default) on one GPU of the terms.
create or replace function public.training_measured_terms(terms jsonb, base_model text, gpu jsonb) returns jsonb
language sql stable set search_path = '' as $$
  select terms || jsonb_build_object('measured', coalesce(
    (select jsonb_build_object(b.name, jsonb_build_object(gpu->>'type', m.speed))
     from public.training_median_speed(terms, b.name, gpu) m (speed)
     where m.speed is not null), '{}'))
  from (select coalesce(training_measured_terms.base_model, terms->>'default_base_model') as name) b
$$;

-- Returns the median speed of finished runs of a base model on a GPU, for the worker's own estimates:
-- {tokens_per_second, runs}, or null.
create or replace function public.training_run_speed(base_model text, gpu_type text) returns jsonb
language sql stable security definer set search_path = '' as $$
  select public.training_median_speed(t.document, training_run_speed.base_model,
                                      public.training_gpu(t.document, training_run_speed.gpu_type))
  from public.training_terms t
$$;

-- As before, at the speed of training_speed, and with it in the answer: tokens_per_second: {low, high}, speed_source
-- ('runs', 'benchmark' or 'derived') and speed_runs. A training computes on `gpus` of the endpoint's GPUs, those that its
-- job asks for, so its time does not shrink with the endpoint's number, as it did here before; all of them are billed.
-- Several shorten the lowest time only, by no more than the examples of a step, which they share out.
drop function if exists public.training_estimate(
  jsonb, double precision, double precision, double precision, double precision, double precision, double precision,
  text, text);
create or replace function public.training_estimate(
  terms jsonb, tokens double precision, pairs double precision, pairs_per_conversation double precision,
  epochs double precision, batch_size double precision, max_steps double precision, base_model text, gpu_type text,
  gpus double precision
) returns jsonb
language plpgsql immutable set search_path = '' as $$
#variable_conflict use_variable
declare
  gpu jsonb := public.training_gpu(terms, coalesce(terms->>'endpoint_gpu_type', gpu_type));
  speed jsonb := public.training_speed(terms, coalesce(base_model, terms->>'default_base_model'), gpu);
  billed double precision := (terms->>'endpoint_gpu_count')::double precision;
  per_pair double precision := (terms->>'tokens_per_pair')::double precision;
  fee double precision := (terms->>'storage_fee')::double precision;
  hourly double precision := (gpu->>'price_per_hour')::double precision * billed;
  examples double precision;
  epoch_steps double precision;
  all_steps double precision;
  steps double precision;
  low double precision;
  high double precision;
begin
  tokens := coalesce(nullif(tokens, 0), coalesce(pairs, 0) * per_pair);
  if gpu is null or tokens <= 0 then
    return null;
  end if;
  pairs := coalesce(nullif(pairs, 0), ceil(tokens / per_pair));
  pairs_per_conversation := greatest(pairs_per_conversation, 1);
  examples := ceil(pairs / pairs_per_conversation);
  epoch_steps := greatest(1, least(ceil(pairs / batch_size), examples));
  all_steps := epoch_steps * epochs;
  steps := least(all_steps, coalesce(nullif(max_steps, 0), all_steps));
  low := tokens * epochs * steps / all_steps * (2.0::double precision / (pairs_per_conversation + 1));
  -- A step has at least one whole conversation, even if it was meant to have fewer answers.
  high := tokens * steps * greatest(batch_size / pairs, epochs / all_steps);
  low := (terms#>>'{overhead_low,once}')::double precision
    + (terms#>>'{overhead_low,each_epoch}')::double precision * epochs
    + low / ((speed->>'high')::double precision * least(gpus, examples / epoch_steps));
  high := (terms#>>'{overhead_high,once}')::double precision
    + (terms#>>'{overhead_high,each_epoch}')::double precision * epochs + high / (speed->>'low')::double precision;
  return jsonb_build_object(
    'seconds', jsonb_build_object('low', floor(low), 'high', ceil(high)),
    'cost', jsonb_build_object('low', floor((low / 3600 * hourly + fee) * 100) / 100,
                               'high', ceil((high / 3600 * hourly + fee) * 100) / 100),
    'tokens', tokens, 'gpu_type', gpu->'type', 'gpu_count', billed, 'price_per_hour', gpu->'price_per_hour',
    'tokens_per_second', jsonb_build_object('low', speed->'low', 'high', speed->'high'),
    'speed_source', speed->'source', 'speed_runs', speed->'runs', 'assumptions', terms->'assumptions');
end
$$;

revoke all on function public.training_estimate(
    jsonb, double precision, double precision, double precision, double precision, double precision, double precision,
    text, text, double precision),
  public.training_note_speed(uuid, jsonb), public.settle_run_2(uuid, uuid, jsonb),
  public.training_table_speed(jsonb, text, jsonb), public.training_speed(jsonb, text, jsonb),
  public.training_median_speed(jsonb, text, jsonb), public.training_measured_terms(jsonb, text, jsonb),
  public.training_run_speed(text, text)
  from public, anon, authenticated, service_role;
grant execute on function public.settle_run_2(uuid, uuid, jsonb), public.training_run_speed(text, text) to service_role;
