-- Methods other than sft, and trainings that begin with an earlier adapter: where a job of the newer queue says so,
-- which adapter an id means, what such a training costs, and whose child its model is.

-- As in 20261123000005_queues.sql, and: the newer queue has no column for most hyperparameters. They are read from the
-- object `training` in its column engine_features. What has a column is read from there, but for a learning rate in
-- that object: the column's default is too high for some methods. A table without that column, or with a list in it,
-- names none.
create or replace function public.training_job_order(queue text, job_id uuid) returns jsonb
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
begin
  if training_job_order.queue = 'training_jobs' then
    return (
      select jsonb_build_object(
        'hyperparameters', case when f.hyperparameters is null then j.hyperparameters end,
        'gpu_config', case when f.gpu_config is null then j.gpu_config end,
        'dataset_id', j.dataset_id,
        'unreadable', public.training_name_faults(to_jsonb(f)))
      from public.training_jobs j,
           lateral (select public.training_json_fault(j.hyperparameters, 8192) as hyperparameters,
                           public.training_json_fault(j.gpu_config, 8192) as gpu_config) f
      where j.id = training_job_order.job_id);
  end if;
  if to_regclass('public.pipeline_training_jobs') is null then
    return null;
  end if;
  return (
    select jsonb_build_object(
      'hyperparameters',
      case when f.engine_features is null and jsonb_typeof(t.chosen) = 'object' then t.chosen else '{}' end
        || jsonb_build_object(
        'learning_rate', j.learning_rate, 'batch_size', j.batch_size, 'epochs', j.epochs,
        'rank', j.rank, 'alpha', j.alpha, 'dropout', j.dropout)
        || case when f.engine_features is null and t.chosen->>'learning_rate' is not null
                then jsonb_build_object('learning_rate', t.chosen->'learning_rate') else '{}' end,
      'gpu_config', jsonb_build_object('type', case when f.gpu_type is null then j.gpu_type end, 'count', j.gpu_count),
      'dataset_id', j.dataset_id,
      'dataset_name', left(j.dataset_name, 200),
      'dataset_file_path', case when f.dataset_file_path is null then j.dataset_file_path end,
      'unreadable', public.training_name_faults(to_jsonb(f)))
    from public.pipeline_training_jobs j,
         -- Where the column is missing, the name means that of `absent`.
         lateral (select (select engine_features->'training' from (select j.*) own) as chosen
                  from (select null::jsonb as engine_features) absent) t,
         lateral (select public.training_text_fault(j.dataset_file_path, 1024) as dataset_file_path,
                         public.training_text_fault(j.gpu_type, 256) as gpu_type,
                         public.training_json_fault(t.chosen, 4096) as engine_features) f
    where j.id = training_job_order.job_id);
end
$$;

-- Returns which of a user's adapters an id means, that of a model or of a job of either queue:
-- {run_id, queue, job_id, model_id, status}. status is 'ready', 'deleted' (the model was), or that of a job that has no
-- adapter. Null if the user has no such model or job: whether somebody else has one is told to nobody.
create or replace function public.training_init_adapter(user_id uuid, named uuid) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
#variable_conflict use_column
declare
  queue text;
  job jsonb;
  found_id uuid := coalesce(
    (select a.job_id from public.model_artifacts a
     where a.id = training_init_adapter.named and a.user_id = training_init_adapter.user_id),
    training_init_adapter.named);
begin
  foreach queue in array array['training_jobs', 'pipeline_training_jobs'] loop
    job := public.training_job_row(queue, found_id);
    exit when job is not null;
  end loop;
  if job is null or (job->>'user_id')::uuid is distinct from training_init_adapter.user_id then
    return null;
  end if;
  return (
    select jsonb_build_object(
      'run_id', r.id, 'queue', queue, 'job_id', found_id, 'model_id', m.id, 'status', case
        when m.deleted_at is not null then 'deleted'
        when r.id is not null then 'ready'
        when job->>'status' = 'completed' then 'foreign' else job->>'status' end)
    from (select) one
    left join public.model_artifacts m on m.job_id = found_id
    left join lateral (
      select r.id from public.training_runs r
      where r.job_id = found_id and r.user_id = training_init_adapter.user_id
        and r.status = 'succeeded' and r.settled_as = 'completed'
      order by r.attempt desc limit 1) r on true);
end
$$;

-- As in 20261123000014_settling.sql, and: the parent of a model that began with an earlier adapter is that adapter's
-- model, also where it learned from another dataset. The version counts the models of the dataset, as before.
create or replace function public.training_lineage(run public.training_runs, dataset_id uuid, artifact jsonb)
returns jsonb
language plpgsql volatile set search_path = '' as $$
#variable_conflict use_column
declare
  begun_with uuid;
  parent_id uuid;
  numbers int[];
begin
  perform pg_advisory_xact_lock(hashtextextended(
    'model_artifacts ' || run.user_id || ' ' || training_lineage.dataset_id, 0));
  select a.id, v.numbers into parent_id, numbers
  from public.model_artifacts a,
       -- The order is by version, not by created_at, which is the start of a transaction and may have another order.
       lateral (select case when a.version ~ '^\d{1,6}(\.\d{1,6}){2}$'
                            then string_to_array(a.version, '.')::int[] end as numbers) v
  where a.user_id = run.user_id and a.dataset_id = training_lineage.dataset_id
    and a.deleted_at is null and a.id <> run.id
  order by v.numbers desc nulls last, a.created_at desc, a.id
  limit 1;
  begun_with := (select a.id from public.model_artifacts a
                 where a.id::text = run.launched_with->'init_adapter'->>'id' and a.user_id = run.user_id);
  return training_lineage.artifact || jsonb_build_object(
    'parent_model_id', case when run.launched_with ? 'init_adapter' then begun_with else parent_id end,
    'version', coalesce(numbers[1] || '.' || numbers[2] + 1 || '.0', '1.0.0'));
end
$$;

-- As in 20261123000006_estimate.sql, and: a method may have another default of the learning rate.
create or replace function public.training_both_shapes(terms jsonb, hyperparameters jsonb) returns jsonb
language plpgsql immutable set search_path = '' as $$
#variable_conflict use_variable
declare
  chosen jsonb := hyperparameters;
  alpha jsonb;
begin
  if jsonb_typeof(chosen) is distinct from 'object' then
    return hyperparameters;
  end if;
  chosen := coalesce(terms->'hyperparameters', '{}')
    || jsonb_strip_nulls(jsonb_build_object(
         'learning_rate', terms->'methods'->(chosen->>'method')->'learning_rate'))
    || jsonb_build_object('base_model', terms->'default_base_model')
    || (select coalesce(jsonb_object_agg(s.short, chosen->s.long), '{}')
        from (values ('epochs', 'num_epochs'), ('rank', 'lora_rank'), ('alpha', 'lora_alpha'),
                     ('dropout', 'lora_dropout')) s (short, long)
        where jsonb_typeof(chosen->s.long) <> 'null')
    || jsonb_strip_nulls(chosen);
  alpha := coalesce(chosen->'alpha', to_jsonb(2 * public.training_number(chosen->'rank', 1, 100000)));
  return jsonb_strip_nulls(
    jsonb_build_object('num_epochs', chosen->'epochs', 'lora_rank', chosen->'rank', 'alpha', alpha,
                       'lora_alpha', alpha, 'lora_dropout', chosen->'dropout') || chosen);
end
$$;

-- As in 20261123000006_estimate.sql, and: a method's work on a token is that of sft times a factor, from the terms of a
-- worker that knows methods, and the speed is that of the installation's own finished runs, where there are enough. The
-- GPUs that the job asks for share its steps, as far as the endpoint has them.
-- The worker computes the same (lora_worker.money.estimate.estimate).
create or replace function public.training_estimate_with(
  terms jsonb, dataset public.datasets, hyperparameters jsonb, gpu_config jsonb
) returns jsonb
language plpgsql stable set search_path = '' as $$
#variable_conflict use_variable
declare
  chosen jsonb := public.training_both_shapes(terms, hyperparameters);
  work jsonb := coalesce(terms->'methods'->coalesce(chosen->>'method', 'sft'),
                         '{"sequences": 1, "once": 0, "each_epoch": 1}');
  per_pair double precision := (terms->>'tokens_per_pair')::double precision
    * (work->>'sequences')::double precision;
  epochs double precision := coalesce(public.training_number(chosen->'epochs', 1, 1000),
                                      (terms#>>'{hyperparameters,epochs}')::double precision);
  tokens double precision := coalesce(nullif(dataset.total_tokens, 0), dataset.total_training_pairs * per_pair);
  wanted text := coalesce(gpu_config->>'type', gpu_config->>'gpu_type', terms->>'default_gpu_type');
  asked double precision := public.training_asked_gpus(gpu_config);
  there double precision := (terms->>'endpoint_gpu_count')::double precision;
  gpu jsonb := public.training_gpu(terms, coalesce(terms->>'endpoint_gpu_type', wanted));
  estimate jsonb;
begin
  estimate := public.training_estimate(
    public.training_measured_terms(terms, chosen->>'base_model', gpu),
    tokens * ((work->>'each_epoch')::double precision + (work->>'once')::double precision / epochs),
    coalesce(nullif(dataset.total_training_pairs, 0), ceil(tokens / per_pair)),
    -- Only sft merges the overlapping pairs of a conversation.
    case when chosen->>'merge_conversations' = 'false' or coalesce(chosen->>'method', 'sft') <> 'sft' then 1
         else coalesce(dataset.avg_turns_per_conversation / 2, 1)::double precision end,
    epochs,
    coalesce(public.training_number(chosen->'batch_size', 1, 100000),
             (terms#>>'{hyperparameters,batch_size}')::double precision),
    public.training_number(chosen->'max_steps', 1, 1e9),
    chosen->>'base_model', wanted, least(asked, there));
  return estimate || jsonb_build_object(
    'tokens', tokens,
    'assumptions', (estimate->'assumptions') || case when asked > there then to_jsonb(format(
      'The job asks for %s GPUs; these are the figures of %s, which is what its endpoint has.', asked, there))
      else '[]' end,
    'exceeds_limit', (estimate#>>'{cost,low}')::numeric > (terms->>'max_cost_per_job')::numeric
                     or (estimate#>>'{seconds,low}')::numeric > (terms->>'max_run_seconds')::numeric);
end
$$;

-- Returns how many GPUs a job asks for, as lora_contract.hyperparameters.GpuConfig reads it.
create or replace function public.training_asked_gpus(gpu_config jsonb) returns double precision
language sql immutable set search_path = '' as $$
  select coalesce(public.training_number(gpu_config->'count', 1, 8),
                  public.training_number(gpu_config->'num_gpus', 1, 8), 1)
$$;

-- Returns the estimate of a job at each place; null at one where too little is known for it. A place whose GPU the terms
-- don't have is left out. has_most says of one with fewer GPUs than the job asks for that no place has enough: of all
-- places, since only the worker knows the rules, by which a job may get such a place all the same. Where all places are
-- alike there is one row, as the endpoint of the terms.
create or replace function public.training_estimates(
  terms jsonb, dataset public.datasets, hyperparameters jsonb, gpu_config jsonb
) returns table (number bigint, estimate jsonb, has_most boolean)
language sql stable set search_path = '' as $$
  with there as (
    select p.number, bool_or(enough.it) over () as some_have_enough, enough.it as has_enough, t.terms
    from jsonb_array_elements(coalesce(nullif(training_estimates.terms->'places', '[]'), '[{}]'))
      with ordinality p (place, number)
    cross join lateral (select training_estimates.terms || jsonb_strip_nulls(jsonb_build_object(
      'endpoint_gpu_type', p.place->'gpu_type', 'endpoint_gpu_count', p.place->'gpu_count',
      -- The place's price is that of the GPU which a job gets there, so no other's is read.
      'gpus', case when p.place->>'price_per_hour' is not null then (
        select jsonb_agg(g.card || jsonb_build_object('price_per_hour', p.place->'price_per_hour'))
        from jsonb_array_elements(training_estimates.terms->'gpus') g (card)) end)) as terms) t
    cross join lateral (select public.training_asked_gpus(training_estimates.gpu_config)
                               <= (t.terms->>'endpoint_gpu_count')::double precision as it) enough
    where public.training_gpu(t.terms, coalesce(
      t.terms->>'endpoint_gpu_type', training_estimates.gpu_config->>'type', training_estimates.gpu_config->>'gpu_type',
      t.terms->>'default_gpu_type')) is not null)
  select h.number, public.training_estimate_with(
    h.terms, training_estimates.dataset, training_estimates.hyperparameters, training_estimates.gpu_config),
    h.has_enough or not h.some_have_enough
  from there h
$$;

-- As before, with the terms that workers have published. Where a job may be launched at several places, only its launch
-- decides which one it gets: then time and cost range over all that have the GPUs it asks for, and speed, GPU, count and
-- price are those of the dearest one. exceeds_limit says that each of them would refuse it.
create or replace function public.training_estimate_of(dataset public.datasets, hyperparameters jsonb, gpu_config jsonb)
returns jsonb
language sql stable set search_path = '' as $$
  with found as (
    select e.number, e.estimate
    from public.training_terms t,
         public.training_estimates(t.document, training_estimate_of.dataset, training_estimate_of.hyperparameters,
                                   training_estimate_of.gpu_config) e
    where e.estimate is not null and e.has_most
  ), dearest as (
    select f.estimate from found f order by (f.estimate#>>'{cost,high}')::numeric desc, f.number limit 1
  ), ends as (
    select count(*) as places,
           jsonb_build_object('low', min((f.estimate#>>'{seconds,low}')::numeric),
                              'high', max((f.estimate#>>'{seconds,high}')::numeric)) as seconds,
           jsonb_build_object('low', min((f.estimate#>>'{cost,low}')::numeric),
                              'high', max((f.estimate#>>'{cost,high}')::numeric)) as cost,
           bool_and((f.estimate->>'exceeds_limit')::boolean) as exceeds_limit
    from found f)
  select d.estimate || case when e.places > 1 then jsonb_build_object(
    'seconds', e.seconds, 'cost', e.cost, 'exceeds_limit', e.exceeds_limit,
    'assumptions', (d.estimate->'assumptions') || to_jsonb(format(
      'The training gets its endpoint when it starts: time and cost range over %s kinds of endpoints, and the highest '
      'cost is that of %s × %s at $%s an hour each.', e.places, d.estimate->>'gpu_count', d.estimate->>'gpu_type',
      d.estimate->>'price_per_hour'))) else '{}' end
  from dearest d, ends e
$$;

-- As in 20261123000005_queues.sql, and: the newer queue's metrics take the rewards of preference methods, too. The
-- older queue's table has no columns for them.
create or replace function public.training_write_points(queue text, job_id uuid, points jsonb, replaces boolean)
returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
  first_step int := (select min((p->>'step')::int) from jsonb_array_elements(training_write_points.points) p);
begin
  if training_write_points.queue = 'training_jobs' then
    delete from public.metrics_points m
    where training_write_points.replaces and m.job_id = training_write_points.job_id and m.step >= first_step;
    insert into public.metrics_points (job_id, timestamp, epoch, step, training_loss, validation_loss,
                                       learning_rate, gradient_norm, throughput, gpu_utilization)
    select training_write_points.job_id, coalesce((p->>'timestamp')::timestamptz, now()), (p->>'epoch')::int,
           (p->>'step')::int, (p->>'training_loss')::numeric, (p->>'validation_loss')::numeric,
           (p->>'learning_rate')::numeric, (p->>'gradient_norm')::numeric,
           (p->>'throughput')::numeric, (p->>'gpu_utilization')::numeric
    from jsonb_array_elements(training_write_points.points) p
    order by (p->>'step')::int;
  elsif to_regclass('public.pipeline_training_metrics') is not null then
    -- The application's evaluations are in this table, too, with another measurement_method.
    delete from public.pipeline_training_metrics m
    where training_write_points.replaces and m.job_id = training_write_points.job_id
      and m.measurement_method = 'training_log' and m.step_number >= first_step;
    insert into public.pipeline_training_metrics (job_id, metric_id, metric_name, metric_level, value, unit,
                                                  measured_at, measurement_method, step_number, epoch_number)
    select training_write_points.job_id, k.id, k.name, 'universal', (p->>k.id)::double precision, k.unit,
           coalesce((p->>'timestamp')::timestamptz, now()), 'training_log', (p->>'step')::int, (p->>'epoch')::int
    from jsonb_array_elements(training_write_points.points) p
    cross join (values ('training_loss', 'Training loss', 'nats/token'),
                       ('validation_loss', 'Validation loss', 'nats/token'),
                       ('learning_rate', 'Learning rate', null),
                       ('gradient_norm', 'Gradient norm', null),
                       ('throughput', 'Throughput', 'tokens/s'),
                       ('gpu_utilization', 'GPU utilization', '%'),
                       ('reward_margin', 'Reward margin', null),
                       ('reward_accuracy', 'Reward accuracy', null)) k (id, name, unit)
    where p->>k.id is not null
    order by (p->>'step')::int;
  end if;
end
$$;

revoke all on function public.training_init_adapter(uuid, uuid),
  public.training_asked_gpus(jsonb), public.training_estimates(jsonb, public.datasets, jsonb, jsonb),
  public.training_estimate_with(jsonb, public.datasets, jsonb, jsonb) from public, anon, authenticated, service_role;
grant execute on function public.training_init_adapter(uuid, uuid) to service_role;
