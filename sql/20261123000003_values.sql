-- JSON and text that users and containers write: read as it was meant, and only so much of it. A worker reads many
-- rows in one answer, so one that it can't read, or that fills its memory, would stop everybody's jobs.

-- A jsonb argument as it was meant: the lightweight local Supabase encodes such arguments twice, and
-- what arrives then is a JSON string that holds the JSON. PostgREST's arguments pass unchanged.
create or replace function public.training_decoded(argument jsonb) returns jsonb
language sql immutable set search_path = '' as $$
  select case jsonb_typeof(argument) when 'string' then (argument #>> '{}')::jsonb else argument end
$$;

-- A JSON number between two bounds; null for anything else.
create or replace function public.training_number(value jsonb, low numeric, high numeric)
returns double precision
language sql immutable set search_path = '' as $$
  select case when jsonb_typeof(value) = 'number' and (value #>> '{}')::numeric between low and high
              then (value #>> '{}')::double precision end
$$;

-- Why a JSON value is not read, as the end of a sentence that begins with its column; null where nothing is wrong.
-- Each step is safe only after the ones before it: as text, nine bytes (1e131071) become 131,072.
create or replace function public.training_json_fault(value jsonb, most_bytes int) returns text
language plpgsql immutable set search_path = '' as $$
begin
  -- As it is stored, which is looked up without reading it. Text of so many bytes is never stored in eight times as many.
  if pg_column_size(value) > 8 * most_bytes then
    return format('is larger than %s KB', most_bytes / 1024);
  end if;
  if jsonb_path_exists(value, 'strict $.**{9}') then
    return 'is nested deeper than 8 levels';
  end if;
  if exists (select from jsonb_path_query(value, 'strict $.** ? (@.type() == "number")') n
             where abs(n::numeric) >= 1e20 or scale(n::numeric) > 60) then
    return 'holds a number of too many digits';
  end if;
  if octet_length(value::text) > most_bytes then
    return format('is larger than %s KB', most_bytes / 1024);
  end if;
  return null;
end
$$;

-- The same for a text.
create or replace function public.training_text_fault(value text, most_bytes int) returns text
language sql immutable set search_path = '' as $$
  select case when octet_length(value) > most_bytes then format('is longer than %s bytes', most_bytes) end
$$;

-- What is wrong with columns, as one sentence without its full stop; null where nothing is. found is
-- {column: fault or null}.
create or replace function public.training_name_faults(found jsonb) returns text
language sql immutable set search_path = '' as $$
  select string_agg(f.key || ' ' || f.value, ', ' order by f.key) from jsonb_each_text(found) f where f.value is not null
$$;

-- Refuses what is too much in the columns that the worker reads, when a row is made or one of them is changed
-- through the API. Rows that are there already stay, whatever they hold: reading has bounds of its own, with
-- room for the keys that the worker adds.
create or replace function public.training_bound_row() returns trigger
language plpgsql security definer set search_path = '' as $$
declare
  is_new boolean := tg_op = 'INSERT';
  found jsonb;
begin
  -- Also columns that nobody here reads make every write of the row slow.
  if is_new and pg_column_size(new) > 262144 then
    raise exception using errcode = 'PT400', message = 'the row is larger than 256 KB', hint = 'leave something out';
  end if;
  if tg_table_name = 'training_jobs' then
    found := jsonb_build_object(
      'hyperparameters', case when is_new or new.hyperparameters is distinct from old.hyperparameters
                              then public.training_json_fault(new.hyperparameters, 4096) end,
      'gpu_config', case when is_new or new.gpu_config is distinct from old.gpu_config
                         then public.training_json_fault(new.gpu_config, 4096) end);
  elsif tg_table_name = 'pipeline_training_jobs' then
    found := jsonb_build_object(
      'dataset_file_path', case when is_new or new.dataset_file_path is distinct from old.dataset_file_path
                                then public.training_text_fault(new.dataset_file_path, 1024) end,
      'gpu_type', case when is_new or new.gpu_type is distinct from old.gpu_type
                       then public.training_text_fault(new.gpu_type, 256) end);
  else
    found := jsonb_build_object(
      'storage_path', case when is_new or new.storage_path is distinct from old.storage_path
                           then public.training_text_fault(new.storage_path, 1024) end);
  end if;
  if public.training_name_faults(found) is not null then
    raise exception using errcode = 'PT400', message = public.training_name_faults(found),
      hint = 'leave something out';
  end if;
  return new;
end
$$;

call public.training_set_function_rights(open => false);
