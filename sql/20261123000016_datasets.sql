-- Validation of uploaded datasets: which worker reads a dataset, and how its result is written.

do $migration$
begin
  if to_regclass('public.datasets_validating_idx') is null then
    create index datasets_validating_idx on public.datasets (updated_at, id) where status = 'validating';
  end if;
  -- The application's pages read this column, but not every version of its schema has it.
  if not exists (select from pg_attribute
                 where attrelid = 'public.datasets'::regclass and attname = 'error_message' and not attisdropped) then
    alter table public.datasets add column error_message text;
    -- This comment tells sql/down/ that the column was added here.
    comment on column public.datasets.error_message is 'Added by lora-worker';
  end if;
end
$migration$;

-- Claims the dataset that has waited longest for its validation; null if there is none. Skips datasets that another
-- worker has claimed, or that were put off until later.
create or replace function public.claim_dataset(worker text, lease_seconds int) returns jsonb
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  -- Not the whole row, since its owner may have written values of any size into the other columns.
  dataset record;
  claim public.dataset_validations;
  found_row jsonb;
begin
  perform public.training_check_lease_seconds(lease_seconds);
  select d.id, d.updated_at into dataset
  from public.datasets d
  where d.status = 'validating' and d.deleted_at is null
    and not exists (select from public.dataset_validations v
                    where v.dataset_id = d.id and v.lease_expires_at > now())
  order by d.updated_at, d.id
  limit 1
  for update of d skip locked;
  if not found then
    return null;
  end if;
  insert into public.dataset_validations as v (dataset_id, worker, lease_expires_at, dataset_updated_at)
  values (dataset.id, claim_dataset.worker, now() + make_interval(secs => claim_dataset.lease_seconds),
          dataset.updated_at)
  on conflict (dataset_id) do update
  set worker = excluded.worker, lease_token = gen_random_uuid(), lease_expires_at = excluded.lease_expires_at,
      attempts = v.attempts + 1, dataset_updated_at = excluded.dataset_updated_at
  -- Another worker may have claimed it between the query and the lock.
  where v.lease_expires_at <= now()
  returning * into claim;
  if not found then
    return null;
  end if;
  found_row := public.training_dataset_row(dataset.id);
  return jsonb_build_object(
    'dataset', found_row - 'unreadable',
    'unreadable', found_row->'unreadable',
    'lease_token', claim.lease_token,
    'attempts', claim.attempts);
end
$$;

-- Renews a claim; false if it is lost.
create or replace function public.renew_dataset_claim(dataset_id uuid, lease_token uuid, lease_seconds int)
returns boolean
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
begin
  perform public.training_check_lease_seconds(lease_seconds);
  update public.dataset_validations v
  set lease_expires_at = now() + make_interval(secs => renew_dataset_claim.lease_seconds)
  where v.dataset_id = renew_dataset_claim.dataset_id
    and v.lease_token = renew_dataset_claim.lease_token
    and v.lease_expires_at > now();
  return found;
end
$$;

-- Gives a claim back, and nobody can claim the dataset again for so many seconds. The storage was not available, or
-- the worker stops; the file is not the reason, so no attempt is counted.
create or replace function public.put_off_dataset(dataset_id uuid, lease_token uuid, seconds int)
returns boolean
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
begin
  update public.dataset_validations v
  set lease_token = gen_random_uuid(), attempts = v.attempts - 1,
      lease_expires_at = now() + make_interval(secs => greatest(put_off_dataset.seconds, 0))
  where v.dataset_id = put_off_dataset.dataset_id
    and v.lease_token = put_off_dataset.lease_token
    and v.lease_expires_at > now();
  return found;
end
$$;

-- Writes the result of a validation: {status, columns of datasets…, notice}. Returns false and writes nothing if the
-- claim is lost, or if the dataset was changed, deleted or settled in the meantime. If it still waits, it is read
-- again.
create or replace function public.settle_dataset(dataset_id uuid, lease_token uuid, outcome jsonb)
returns boolean
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  claim public.dataset_validations;
  dataset public.datasets;
begin
  outcome := public.training_decoded(outcome);
  delete from public.dataset_validations v
  where v.dataset_id = settle_dataset.dataset_id
    and v.lease_token = settle_dataset.lease_token
    and v.lease_expires_at > now()
  returning * into claim;
  if not found then
    return false;
  end if;
  update public.datasets d
  set status = outcome->>'status',
      training_ready = outcome->>'status' = 'ready',
      validated_at = now(),
      validation_errors = nullif(outcome->'validation_errors', 'null'),
      sample_data = nullif(outcome->'sample_data', 'null'),
      total_training_pairs = (outcome->>'total_training_pairs')::int,
      total_tokens = (outcome->>'total_tokens')::bigint,
      avg_turns_per_conversation = (outcome->>'avg_turns_per_conversation')::numeric,
      avg_tokens_per_turn = (outcome->>'avg_tokens_per_turn')::numeric
  where d.id = claim.dataset_id and d.status = 'validating' and d.deleted_at is null
    and d.updated_at is not distinct from claim.dataset_updated_at
  returning * into dataset;
  if not found then
    return false;
  end if;
  -- Not every version of the application's schema has this column.
  if exists (select from pg_catalog.pg_attribute a
             where a.attrelid = 'public.datasets'::regclass and a.attname = 'error_message'
               and not a.attisdropped) then
    execute 'update public.datasets set error_message = $1 where id = $2'
    using outcome->>'error_message', dataset.id;
  end if;
  insert into public.notifications (user_id, type, title, message, priority, action_url, metadata)
  select dataset.user_id, n->>'type', left(n->>'title', 200), n->>'message', n->>'priority',
         n->>'action_url', n->'metadata'
  from jsonb_array_elements(jsonb_build_array(outcome->'notice')) n
  where n->>'type' is not null;
  return true;
end
$$;

call public.training_set_function_rights(open => false);
