-- Rights on the application's tables: owners read their own rows, queue jobs, cancel them, and mark notifications as
-- read; anon can do nothing; the service role can do everything. docs/rights.md has this as a table, and a test
-- compares it with the database. The application's own policies stay, and a policy that it already has is not added
-- again.

-- Each statement below is executed only if it changes something, so that a database that is already migrated gets no
-- lock.
do $migration$
declare
  wanted record;
  policy_table regclass;
  open_to_all boolean;
begin
  for wanted in
    select * from (values
      -- (table, name, permissive, command, using, with check)
      ('datasets', 'owners read their datasets', true, 'select', 'auth.uid() = user_id', null),
      ('datasets', 'owners add datasets', true, 'insert', null, 'auth.uid() = user_id'),
      ('datasets', 'owners change their datasets', true, 'update', 'auth.uid() = user_id', null),
      ('training_jobs', 'owners read their jobs', true, 'select', 'auth.uid() = user_id', null),
      ('training_jobs', 'owners add jobs', true, 'insert', null, 'auth.uid() = user_id'),
      -- The service role reads any dataset, created_at decides the place in the queue, and external_job_id is unique:
      -- none of them may come from a client.
      ('training_jobs', 'jobs begin queued, last in line, on an own dataset', false, 'insert', null,
       $check$ status = 'queued' and external_job_id is null and artifact_id is null
         and started_at is null and completed_at is null and final_cost is null
         and created_at between now() - interval '5 minutes' and now() + interval '5 minutes'
         and exists (select from public.datasets d where d.id = dataset_id and d.user_id = auth.uid()) $check$),
      ('training_jobs', 'owners cancel their jobs', true, 'update',
       $check$ auth.uid() = user_id and status in ('queued', 'initializing', 'running') $check$,
       $check$ auth.uid() = user_id and status = 'cancelled' $check$),
      ('metrics_points', 'owners read their metrics', true, 'select',
       'exists (select from public.training_jobs j where j.id = job_id and j.user_id = auth.uid())', null),
      ('model_artifacts', 'owners read their artifacts', true, 'select', 'auth.uid() = user_id', null),
      ('cost_records', 'owners read their costs', true, 'select', 'auth.uid() = user_id', null),
      ('notifications', 'owners read their notifications', true, 'select', 'auth.uid() = user_id', null),
      ('notifications', 'owners mark their notifications', true, 'update', 'auth.uid() = user_id', null),
      -- The application's own routes write these two with their user's rights.
      ('notifications', 'owners note what they asked for', true, 'insert', null,
       $check$ auth.uid() = user_id and type in ('job_queued', 'job_cancelled') $check$)
    ) as w (table_name, name, permissive, command, visible, writable)
  loop
    policy_table := format('public.%I', wanted.table_name)::regclass;
    open_to_all := not (select c.relrowsecurity from pg_class c where c.oid = policy_table);
    if not exists (
      select from pg_policies p
      where p.schemaname = 'public' and p.tablename = wanted.table_name
        and (p.policyname = wanted.name
          or (not open_to_all and p.permissive = 'PERMISSIVE' and p.cmd in (upper(wanted.command), 'ALL')
              and p.roles && array['public', 'authenticated']::name[]
              and coalesce(wanted.visible, wanted.writable) = 'auth.uid() = user_id'
              and array[coalesce(p.qual, p.with_check), coalesce(p.with_check, p.qual)]
                  <@ array['(auth.uid() = user_id)', '(user_id = auth.uid())'])))
    then
      execute format('create policy %I on %s as %s for %s', wanted.name, policy_table,
                     case when wanted.permissive then 'permissive' else 'restrictive' end, wanted.command)
        || coalesce(' using (' || wanted.visible || ')', '')
        || coalesce(' with check (' || wanted.writable || ')', '');
      -- These comments tell sql/down/ what to undo.
      execute format('comment on policy %I on %s is %L', wanted.name, policy_table,
        'Added by lora-worker' || case when open_to_all then ', with row level security' else '' end);
    end if;
    if open_to_all then
      execute format('alter table %s enable row level security', policy_table);
    end if;
  end loop;
end
$migration$;

-- Not every project grants these rights by default. The application's own tables keep the rights that it gave them.
do $migration$
declare
  made regclass;
begin
  for made in
    select oid from pg_class
    where relnamespace = 'public'::regnamespace and obj_description(oid, 'pg_class') = 'Made by lora-worker'
  loop
    execute format('grant select, insert, update, delete on %s to authenticated, service_role', made);
  end loop;
end
$migration$;
