-- Validating uploaded datasets: who reads one at the moment, and how what was found is written.

do $migration$
begin
  if to_regclass('public.datasets_validating_idx') is null then
    create index datasets_validating_idx on public.datasets (updated_at, id) where status = 'validating';
  end if;
  -- Dataset cards read this column; the application's own schema was seen without it.
  if not exists (select from pg_attribute
                 where attrelid = 'public.datasets'::regclass and attname = 'error_message' and not attisdropped) then
    alter table public.datasets add column error_message text;
    -- By this comment sql/down/ knows that it may take it away again.
    comment on column public.datasets.error_message is 'Added by lora-worker';
  end if;
end
$migration$;

-- Claims the dataset that has waited longest in 'validating', or answers null. A live claim of another
-- worker, or one that was put off until later, is passed over.
create or replace function public.claim_dataset(worker text, lease_seconds int) returns jsonb
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  -- Not the whole row: its owner may have put anything of any size into the other columns.
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
  -- Somebody may have claimed it between our look and our lock.
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

-- Renews a claim; false when it is lost.
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

-- Gives a claim back, for nobody before so many seconds: the storage was away, or the worker stops.
-- That is not the file's fault, so it counts as no attempt.
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

-- Writes what was found: {status, columns of datasets…, notice}. False, and nothing is written, when the
-- claim is lost, or the dataset was changed, deleted or settled by somebody else meanwhile; if it still
-- waits it is read again.
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
  -- The application's own schema was seen without this column.
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
