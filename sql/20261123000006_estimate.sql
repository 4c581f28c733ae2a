-- Estimates what a training will cost, so that the application can show it before it inserts a job. New jobs are
-- completed with the same numbers, so that every page can show them before a worker has seen the job.

-- Stores the terms; returns whether they have changed.
create or replace function public.publish_training_terms(document jsonb, worker text) returns boolean
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
begin
  insert into public.training_terms as t (document, written_by)
  values (public.training_decoded(publish_training_terms.document), publish_training_terms.worker)
  on conflict (only_row) do update
  set document = excluded.document, written_by = excluded.written_by, written_at = now()
  where t.document is distinct from excluded.document;
  return found;
end
$$;

-- Returns the GPU of the terms that a name means: the one with the longest of its `names` that is contained in it;
-- null if none is. find_gpu in worker/lora_worker/money/pricing.py does the same.
create or replace function public.training_gpu(terms jsonb, name text) returns jsonb
language sql immutable set search_path = '' as $$
  select g.gpu
  from jsonb_array_elements(terms->'gpus') with ordinality g (gpu, place),
       jsonb_array_elements_text(g.gpu->'names') n (known)
  where strpos(lower(regexp_replace(training_gpu.name, '[^A-Za-z0-9]', '', 'g')), n.known) > 0
  order by length(n.known) desc, g.place
  limit 1
$$;

-- Computes the same as lora_worker.money.estimate.estimate, with the same operations in the same order, so that both
-- return the same digits: {seconds: {low, high}, cost: {low, high}, tokens, gpu_type, gpu_count, price_per_hour,
-- assumptions}.
create or replace function public.training_estimate(
  terms jsonb, tokens double precision, pairs double precision, pairs_per_conversation double precision,
  epochs double precision, batch_size double precision, max_steps double precision, base_model text, gpu_type text
) returns jsonb
language plpgsql immutable set search_path = '' as $$
#variable_conflict use_variable
declare
  gpu jsonb := public.training_gpu(terms, coalesce(terms->>'endpoint_gpu_type', gpu_type));
  size jsonb := coalesce(terms->'models'->coalesce(base_model, terms->>'default_base_model'), terms->'reference');
  gpus double precision := (terms->>'endpoint_gpu_count')::double precision;
  per_pair double precision := (terms->>'tokens_per_pair')::double precision;
  fee double precision := (terms->>'storage_fee')::double precision;
  hourly double precision := (gpu->>'price_per_hour')::double precision * gpus;
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
  all_steps := greatest(1, least(ceil(pairs / batch_size), ceil(pairs / pairs_per_conversation))) * epochs;
  steps := least(all_steps, coalesce(nullif(max_steps, 0), all_steps));
  low := tokens * epochs * steps / all_steps * (2.0::double precision / (pairs_per_conversation + 1));
  -- A step has at least one whole conversation, even if it was meant to have fewer answers.
  high := tokens * steps * greatest(batch_size / pairs, epochs / all_steps);
  low := (terms#>>'{overhead_low,once}')::double precision
    + (terms#>>'{overhead_low,each_epoch}')::double precision * epochs
    + low * (size->>'active')::double precision / (terms#>>'{reference,active}')::double precision
      / ((gpu->>'fast')::double precision * gpus);
  high := (terms#>>'{overhead_high,once}')::double precision
    + (terms#>>'{overhead_high,each_epoch}')::double precision * epochs
    + high * (size->>'total')::double precision / (terms#>>'{reference,total}')::double precision
      / ((gpu->>'slow')::double precision * gpus);
  return jsonb_build_object(
    'seconds', jsonb_build_object('low', floor(low), 'high', ceil(high)),
    'cost', jsonb_build_object('low', floor((low / 3600 * hourly + fee) * 100) / 100,
                               'high', ceil((high / 3600 * hourly + fee) * 100) / 100),
    'tokens', tokens, 'gpu_type', gpu->'type', 'gpu_count', gpus,
    'price_per_hour', gpu->'price_per_hour', 'assumptions', terms->'assumptions');
end
$$;

-- Returns a job's hyperparameters with the keys of both of the application's shapes, and the worker's defaults for
-- what the user did not set. Existing values stay. A value that is no object is returned unchanged.
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
  chosen := coalesce(terms->'hyperparameters', '{}') || jsonb_build_object('base_model', terms->'default_base_model')
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

-- Returns the estimate for a dataset and a job's two columns, in either shape.
create or replace function public.training_estimate_of(dataset public.datasets, hyperparameters jsonb, gpu_config jsonb)
returns jsonb
language plpgsql stable set search_path = '' as $$
#variable_conflict use_variable
declare
  terms jsonb := (select t.document from public.training_terms t);
  chosen jsonb := public.training_both_shapes(terms, hyperparameters);
  estimate jsonb;
begin
  estimate := public.training_estimate(
    terms, dataset.total_tokens, dataset.total_training_pairs,
    case when chosen->>'merge_conversations' = 'false' then 1
         else coalesce(dataset.avg_turns_per_conversation / 2, 1)::double precision end,
    coalesce(public.training_number(chosen->'epochs', 1, 1000),
             (terms#>>'{hyperparameters,epochs}')::double precision),
    coalesce(public.training_number(chosen->'batch_size', 1, 100000),
             (terms#>>'{hyperparameters,batch_size}')::double precision),
    public.training_number(chosen->'max_steps', 1, 1e9),
    chosen->>'base_model',
    coalesce(gpu_config->>'type', gpu_config->>'gpu_type', terms->>'default_gpu_type'));
  return estimate || jsonb_build_object(
    'exceeds_limit', (estimate#>>'{cost,low}')::numeric > (terms->>'max_cost_per_job')::numeric
                     or (estimate#>>'{seconds,low}')::numeric > (terms->>'max_run_seconds')::numeric);
end
$$;

-- Returns what a training would take and cost, to the dataset's owner. exceeds_limit says that even the low end is
-- more than a job may take, so that the worker would refuse it. Null if there is no estimate: no worker has ever
-- started, the GPU is unknown, the dataset is not the caller's or was not counted, or one of the values is too large.
create or replace function public.estimate_training_cost(
  dataset_id uuid, hyperparameters jsonb default '{}', gpu_config jsonb default '{}'
) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
#variable_conflict use_column
declare
  dataset public.datasets;
begin
  if public.training_json_fault(estimate_training_cost.hyperparameters, 8192) is not null
     or public.training_json_fault(estimate_training_cost.gpu_config, 8192) is not null then
    return null;
  end if;
  select d.* into dataset
  from public.datasets d
  where d.id = estimate_training_cost.dataset_id and d.deleted_at is null
    -- `role` is still the caller's here, but current_user is the owner of this function.
    and (d.user_id = auth.uid() or current_setting('role', true) in ('service_role', 'none', 'postgres'));
  return public.training_estimate_of(
    dataset, public.training_decoded(estimate_training_cost.hyperparameters),
    public.training_decoded(estimate_training_cost.gpu_config));
end
$$;

-- Returns the same for an existing job of either queue, for the worker's command line.
create or replace function public.estimate_training_job(job_id uuid) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
declare
  ordered jsonb := coalesce(public.training_job_order('training_jobs', job_id),
                           public.training_job_order('pipeline_training_jobs', job_id));
  owner uuid := coalesce(public.training_job_row('training_jobs', job_id),
                         public.training_job_row('pipeline_training_jobs', job_id))->>'user_id';
  dataset public.datasets;
begin
  select d.* into dataset from public.datasets d where d.id = public.training_order_dataset(ordered, owner);
  return public.training_estimate_of(dataset, ordered->'hyperparameters', ordered->'gpu_config');
end
$$;

-- Returns a job's gpu_config as the monitor page needs it: with the keys of both shapes, and with a number as the
-- price, since the page shows "$NaN/hr" otherwise. The price is 0 for a GPU that is not in the price table; such a
-- job is refused.
create or replace function public.training_priced_gpu(terms jsonb, gpu jsonb) returns jsonb
language sql immutable set search_path = '' as $$
  select jsonb_strip_nulls(
    jsonb_build_object('type', coalesce(nullif(gpu->'gpu_type', 'null'), terms->'default_gpu_type'),
                       'gpu_type', coalesce(nullif(gpu->'type', 'null'), terms->'default_gpu_type'),
                       'count', coalesce(nullif(gpu->'num_gpus', 'null'), '1'),
                       'num_gpus', coalesce(nullif(gpu->'count', 'null'), '1'), 'gpu_memory_gb', coalesce(c.card->'memory_gb', '0'),
                       'cost_per_gpu_hour', coalesce(c.card->'price_per_hour', '0'))
    || jsonb_strip_nulls(gpu) - case when jsonb_typeof(gpu->'cost_per_gpu_hour') <> 'number'
                                then array['cost_per_gpu_hour'] else '{}'::text[] end)
  from (select public.training_gpu(
    terms, coalesce(terms->>'endpoint_gpu_type', gpu->>'type', gpu->>'gpu_type', terms->>'default_gpu_type')) as card) c
$$;

-- Completes a new job: adds the missing keys of both shapes, the price as a number, and an estimate if the client
-- sent none. Existing values stay.
create or replace function public.training_complete_job() returns trigger
language plpgsql security definer set search_path = '' as $$
declare
  terms jsonb := (select t.document from public.training_terms t);
  gpu jsonb := new.gpu_config;
begin
  if jsonb_typeof(new.hyperparameters) is distinct from 'object' or jsonb_typeof(gpu) is distinct from 'object' then
    return new;
  end if;
  new.hyperparameters := public.training_both_shapes(terms, new.hyperparameters);
  new.gpu_config := public.training_priced_gpu(terms, gpu);
  if terms is null then
    -- No worker has ever started, so no price is known. The price is added at the launch.
    new.gpu_config := new.gpu_config - array(
      select k from unnest(array['cost_per_gpu_hour', 'gpu_memory_gb']) k where gpu->k is null);
  end if;
  if new.estimated_total_cost is null or new.estimated_total_cost = 'NaN' or new.estimated_total_cost <= 0 then
    select coalesce((public.training_estimate_of(d, new.hyperparameters, new.gpu_config)#>>'{cost,high}')::numeric, 0)
    into new.estimated_total_cost
    from public.datasets d where d.id = new.dataset_id;
  end if;
  return new;
exception when others then
  -- The worker's preflight refuses invalid rows with a message. The application's insert must not fail here.
  return new;
end
$$;

call public.training_set_function_rights(open => false);
