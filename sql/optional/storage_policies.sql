-- Opt-in: `lora-worker migrate --storage-policies`. Signed-in users upload datasets and fetch their models with their own
-- session, without an application in between. Worker and trainer need none of this. --no-storage-policies undoes it.
--
-- A user stores and reads files of lora-datasets under <user>/<dataset>/<file>, and replaces and removes none: a job is
-- trained on what was checked. Of lora-models a user reads the files of own published artifacts, those that the
-- artifact's row lists and its manifest. So the log of a run, uploads that are not verified, and everything of others
-- stay closed.

do $migration$
declare
  wanted record;
begin
  if to_regclass('storage.objects') is null then
    raise exception 'this database has no Storage, so there is nothing to open';
  end if;
  for wanted in
    select * from (values
      ('lora-worker: users store their datasets', 'insert', null,
       $check$ bucket_id = 'lora-datasets' and (storage.foldername(name))[1] = auth.uid()::text
         and array_length(storage.foldername(name), 1) = 2 $check$),
      ('lora-worker: users read their datasets', 'select',
       $using$ bucket_id = 'lora-datasets' and (storage.foldername(name))[1] = auth.uid()::text $using$, null),
      -- The user's own rights decide which rows of model_artifacts the inner query sees.
      ('lora-worker: users read their models', 'select',
       $using$ bucket_id = 'lora-models' and (storage.foldername(name))[1] = auth.uid()::text
         and exists (
           select from public.model_artifacts a
           where a.id::text = (storage.foldername(objects.name))[2] and a.user_id = auth.uid() and a.deleted_at is null
             and (objects.name = auth.uid() || '/' || a.id || '/manifest.json'
                  or exists (select from jsonb_each_text(a.artifacts) f where f.value = objects.name))) $using$, null),
      -- Of the newer queue, whose table belongs to the application, the archive of a completed job.
      ('lora-worker: users read their archives', 'select',
       $using$ bucket_id = 'lora-models' and (storage.foldername(name))[1] = 'adapters'
         and exists (
           select from public.pipeline_training_jobs j
           where objects.name = 'adapters/' || j.id || '.tar.gz' and j.user_id = auth.uid()
             and j.status = 'completed') $using$, null)
    ) as w (name, command, visible, writable)
    where (w.name <> 'lora-worker: users read their archives' or to_regclass('public.pipeline_training_jobs') is not null)
      and not exists (select from pg_policies p
                      where p.schemaname = 'storage' and p.tablename = 'objects' and p.policyname = w.name)
  loop
    execute format('create policy %I on storage.objects for %s to authenticated', wanted.name, wanted.command)
      || coalesce(' using (' || wanted.visible || ')', '')
      || coalesce(' with check (' || wanted.writable || ')', '');
  end loop;
end
$migration$;
