-- Undoes storage_policies.sql.

do $migration$
declare
  found record;
begin
  for found in
    select p.policyname as name from pg_policies p
    where p.schemaname = 'storage' and p.tablename = 'objects' and p.policyname in (
      'lora-worker: users store their datasets', 'lora-worker: users read their datasets',
      'lora-worker: users read their models', 'lora-worker: users read their archives')
  loop
    execute format('drop policy %I on storage.objects', found.name);
  end loop;
end
$migration$;
