-- What users may put into a job or a dataset: so much, so deep, numbers so long. A worker reads many rows in one
-- answer, so one that it can't read, or that fills its memory, would stop everybody's jobs.

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

do $migration$
declare
  bounded record;
  signature regprocedure;
begin
  for bounded in
    select * from (values
      ('training_jobs', 'hyperparameters, gpu_config'),
      -- The application's own table; `lora-worker migrate` makes this once it is there.
      ('pipeline_training_jobs', 'dataset_file_path, gpu_type'),
      ('datasets', 'storage_path')) as b (table_name, columns)
    where to_regclass('public.' || b.table_name) is not null
      and not exists (select from pg_trigger t
                      where t.tgrelid = to_regclass('public.' || b.table_name) and t.tgname = 'training_bound_row')
  loop
    -- The functions of this schema write as their owner, whoever calls them. By its name it comes before the
    -- trigger that makes a job whole.
    execute format(
      'create trigger training_bound_row before insert or update of %s on public.%I for each row
       when (current_user in (''anon'', ''authenticated'', ''service_role''))
       execute function public.training_bound_row()', bounded.columns, bounded.table_name);
  end loop;
  for signature in
    select p.oid::regprocedure from pg_proc p
    where p.pronamespace = 'public'::regnamespace and p.proname in ('training_bound_row')
  loop
    execute format('revoke all on function %s from public, anon, authenticated, service_role', signature);
  end loop;
end
$migration$;
