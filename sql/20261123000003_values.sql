-- Reads JSON and text that users and containers write, within limits. A worker reads many rows in one answer, so a
-- single row that it can't read, or that fills its memory, would stop the jobs of all users.

-- Returns a jsonb argument without a second encoding. The lightweight local Supabase encodes such arguments twice, so
-- they arrive as a JSON string that contains the JSON. Arguments from PostgREST are returned unchanged.
create or replace function public.training_decoded(argument jsonb) returns jsonb
language sql immutable set search_path = '' as $$
  select case jsonb_typeof(argument) when 'string' then (argument #>> '{}')::jsonb else argument end
$$;

-- Returns a JSON number if it lies between two bounds, and null for any other value.
create or replace function public.training_number(value jsonb, low numeric, high numeric)
returns double precision
language sql immutable set search_path = '' as $$
  select case when jsonb_typeof(value) = 'number' and (value #>> '{}')::numeric between low and high
              then (value #>> '{}')::double precision end
$$;

-- Returns why a JSON value is not read, as the end of a sentence that starts with the column's name; null if it can
-- be read. The order of the checks matters: each one is safe only after those before it. For example, the nine bytes
-- of 1e131071 become a text of 131,072 characters.
create or replace function public.training_json_fault(value jsonb, most_bytes int) returns text
language plpgsql immutable set search_path = '' as $$
begin
  -- The stored size is known without reading the value. Compression never makes text smaller than an eighth.
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

-- Returns why a text is not read, like training_json_fault; null if it can be read.
create or replace function public.training_text_fault(value text, most_bytes int) returns text
language sql immutable set search_path = '' as $$
  select case when octet_length(value) > most_bytes then format('is longer than %s bytes', most_bytes) end
$$;

-- Joins the faults of columns to one sentence without a full stop; null if there is none. `found` is {column: fault
-- or null}.
create or replace function public.training_name_faults(found jsonb) returns text
language sql immutable set search_path = '' as $$
  select string_agg(f.key || ' ' || f.value, ', ' order by f.key) from jsonb_each_text(found) f where f.value is not null
$$;

-- Rejects values that are too large in the columns that the worker reads, when a row is inserted or one of these
-- columns is changed through the API. Existing rows are not checked: the functions that read them have their own
-- limits, which are higher because the worker adds keys.
create or replace function public.training_bound_row() returns trigger
language plpgsql security definer set search_path = '' as $$
declare
  is_new boolean := tg_op = 'INSERT';
  found jsonb;
begin
  -- Large values in other columns would make every later write of the row slow.
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
