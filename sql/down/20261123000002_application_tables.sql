-- Undoes 20261123000002_application_tables.sql: tables that it made go, if all of them are empty. With one row in
-- any of them they all stay, with their indexes, policies and triggers, and work on without the worker.
-- The application's own tables, and the buckets, stay in any case.

do $down$
declare
  made text[];
  made_table text;
  has_rows boolean;
  touched text;
begin
  select coalesce(array_agg(c.relname::text), '{}') into made
  from pg_class c
  where c.relnamespace = 'public'::regnamespace and c.relkind = 'r'
    and obj_description(c.oid, 'pg_class') = 'Made by lora-worker';

  foreach touched in array array['datasets', 'training_jobs', 'model_artifacts'] loop
    if not touched = any (made) then
      execute format('drop trigger if exists training_touch_updated_at on public.%I', touched);
    end if;
  end loop;

  foreach made_table in array made loop
    execute format('lock table public.%I in access exclusive mode', made_table);
    execute format('select exists (select from public.%I)', made_table) into has_rows;
    if has_rows then
      raise notice 'public.% has rows: the tables that lora-worker made stay', made_table;
      return;
    end if;
  end loop;

  if 'model_artifacts' = any (made) and not 'training_jobs' = any (made) then
    alter table public.training_jobs drop constraint if exists training_jobs_artifact_id_fkey;
  end if;
  if made <> '{}' then
    -- In one statement, since jobs and artifacts refer to each other.
    execute 'drop table ' || (select string_agg(format('public.%I', t), ', ') from unnest(made) t);
  end if;
  drop function if exists public.training_touch_updated_at();
end
$down$;
