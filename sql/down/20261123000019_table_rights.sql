-- Undoes 20261123000019_table_rights.sql: the policies that it added go, and row level security is
-- switched off where that file switched it on, unless the application has policies of its own there by now.

do $down$
declare
  added record;
begin
  for added in
    select p.polname as name, p.polrelid::regclass as policy_table,
      obj_description(p.oid, 'pg_policy') = 'Added by lora-worker, with row level security' as with_security
    from pg_policy p
    where obj_description(p.oid, 'pg_policy') in
      ('Added by lora-worker', 'Added by lora-worker, with row level security')
    -- The table is opened last, when only what the application added since is left.
    order by with_security
  loop
    execute format('drop policy %I on %s', added.name, added.policy_table);
    if added.with_security and not exists (select from pg_policy p where p.polrelid = added.policy_table) then
      execute format('alter table %s disable row level security', added.policy_table);
    end if;
  end loop;
end
$down$;
