-- Undoes 20261123000016_datasets.sql. A dataset that a worker reads at the moment stays in
-- 'validating', as it would without a worker.

drop function if exists public.settle_dataset(uuid, uuid, jsonb);
drop function if exists public.put_off_dataset(uuid, uuid, int);
drop function if exists public.renew_dataset_claim(uuid, uuid, int);
drop function if exists public.claim_dataset(text, int);
drop index if exists public.datasets_validating_idx;

do $down$
begin
  if exists (
    select from pg_attribute
    where attrelid = to_regclass('public.datasets') and attname = 'error_message' and not attisdropped
      and col_description(attrelid, attnum) = 'Added by lora-worker')
  then
    alter table public.datasets drop column error_message;
  end if;
end
$down$;
