-- What `lora-worker doctor` can't see through the REST API: who may call each function, what is open to everybody, and
-- which other programs work on the same tables.

-- The roles among these that hold a right. A right of `public` counts for each of them.
create or replace function public.training_callers(signature oid) returns jsonb
language sql stable set search_path = '' as $$
  select coalesce(jsonb_agg(r.name order by r.name), '[]')
  from unnest(array['anon', 'authenticated', 'service_role']) as r (name)
  where has_function_privilege(r.name, training_callers.signature, 'execute')
$$;

-- Programs besides the worker that are started by a job's row or that look for jobs: triggers that send a request to
-- another server, and scheduled statements that name a queue's table. Their text is not returned, since it may hold keys.
create or replace function public.training_other_dispatchers() returns jsonb
language plpgsql stable set search_path = '' as $$
declare
  found jsonb;
  scheduled jsonb := '[]';
begin
  select coalesce(jsonb_agg(jsonb_build_object(
    'kind', 'trigger', 'name', left(t.tgname, 200), 'table', c.relname) order by c.relname, t.tgname), '[]')
  into found
  from pg_catalog.pg_trigger t
  join pg_catalog.pg_class c on c.oid = t.tgrelid
  join pg_catalog.pg_proc p on p.oid = t.tgfoid
  join pg_catalog.pg_namespace n on n.oid = p.pronamespace
  where c.relnamespace = 'public'::regnamespace and c.relname in ('training_jobs', 'pipeline_training_jobs')
    and not t.tgisinternal and t.tgenabled in ('O', 'A')
    and ((n.nspname = 'supabase_functions' and p.proname = 'http_request')
      or p.prosrc ~* '(net\.http_|http_post|http_request|pg_notify)');
  if to_regclass('cron.job') is not null then
    execute $scheduled$
      select coalesce(jsonb_agg(jsonb_build_object(
        'kind', 'schedule', 'name', left(coalesce(j.jobname, j.jobid::text), 200), 'table', q.name)), '[]')
      from cron.job j
      join (values ('training_jobs'), ('pipeline_training_jobs')) as q (name) on j.command ~ ('\m' || q.name || '\M')
      where j.active
    $scheduled$ into scheduled;
  end if;
  return found || scheduled;
end
$$;

-- The state of the project for the doctor. Every list is bounded: a project may hold thousands of other objects.
create or replace function public.training_project_report() returns jsonb
language sql volatile security definer set search_path = '' as $$
  select jsonb_build_object(
    'now', clock_timestamp(),
    'functions', (
      select coalesce(jsonb_agg(jsonb_build_object('name', f.proname, 'callers', public.training_callers(f.oid))
                                order by f.proname), '[]')
      from (select p.oid, p.proname from pg_catalog.pg_proc p
            where p.pronamespace = 'public'::regnamespace and p.prokind in ('f', 'p')
            order by p.proname limit 1000) as f),
    'tables', (
      select coalesce(jsonb_agg(jsonb_build_object('name', c.relname, 'row_security', c.relrowsecurity)
                                order by c.relname), '[]')
      from (select c.relname, c.relrowsecurity from pg_catalog.pg_class c
            where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')
            order by c.relname limit 1000) as c),
    -- A policy that names no column of the row and no caller is meant for everybody who has the role.
    'open_policies', (
      select coalesce(jsonb_agg(jsonb_build_object(
        'schema', p.schemaname, 'table', p.tablename, 'name', left(p.policyname, 200), 'command', p.cmd,
        'roles', p.roles) order by p.schemaname, p.tablename, p.policyname), '[]')
      from (select * from pg_catalog.pg_policies p
            where (p.schemaname = 'public' or (p.schemaname = 'storage' and p.tablename = 'objects'))
              and p.permissive = 'PERMISSIVE'
              and p.roles && array['public', 'authenticated', 'anon']::name[]
              and concat_ws(' ', p.qual, p.with_check) !~* '(auth\.|jwt|false)'
            order by p.schemaname, p.tablename limit 200) as p),
    'default_rights', (
      select coalesce(jsonb_agg(distinct jsonb_build_object(
        'objects', case d.defaclobjtype when 'r' then 'tables' when 'f' then 'functions' else 'others' end,
        'maker', d.defaclrole::regrole::text, 'role', a.grantee::regrole::text)), '[]')
      from pg_catalog.pg_default_acl d, aclexplode(d.defaclacl) a
      where d.defaclnamespace = 'public'::regnamespace and d.defaclobjtype in ('r', 'f')
        and a.grantee <> 0 and a.grantee::regrole::text in ('anon', 'authenticated')),
    'other_dispatchers', public.training_other_dispatchers(),
    -- Jobs that something other than a worker took: they have begun, and no run of ours is or was theirs.
    'foreign_jobs', (
      select count(*) from (
        select from public.training_jobs j
        where j.status in ('initializing', 'running')
          and not exists (select from public.training_runs r where r.job_id = j.id)
        limit 1000) as taken),
    'base_models', (
      select coalesce(jsonb_agg(distinct m.name), '[]') from (
        select left(coalesce(j.hyperparameters->>'base_model', ''), 300) as name from public.training_jobs j
        where j.status = 'queued' limit 1000) as m)
  )
$$;

revoke all on function public.training_callers(oid), public.training_other_dispatchers(),
  public.training_project_report() from public, anon, authenticated, service_role;
grant execute on function public.training_project_report() to service_role;
