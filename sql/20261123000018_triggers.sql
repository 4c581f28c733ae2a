-- All triggers on the application's tables except the one for updated_at. Each trigger has the name of its function.
-- Postgres fires the triggers of a table in the order of their names, so training_bound_row comes before
-- training_complete_job.

do $migration$
declare
  wanted record;
begin
  for wanted in
    select * from (values
      -- (table, name, moment, condition). The newer queue's table belongs to the application; its triggers are
      -- created by the first `lora-worker migrate` after the table exists.
      ('training_jobs', 'training_guard_job', 'before update', null),
      ('notifications', 'training_guard_notification', 'before update', null),
      ('training_jobs', 'training_keep_job', 'before update', null),
      ('pipeline_training_jobs', 'training_keep_job', 'before update', null),
      ('metrics_points', 'training_drop_foreign_row', 'before insert', null),
      ('cost_records', 'training_drop_foreign_row', 'before insert', null),
      ('notifications', 'training_drop_foreign_row', 'before insert', null),
      ('training_jobs', 'training_bound_row', 'before insert or update of hyperparameters, gpu_config',
       'current_user in (''anon'', ''authenticated'', ''service_role'')'),
      ('pipeline_training_jobs', 'training_bound_row', 'before insert or update of dataset_file_path, gpu_type',
       'current_user in (''anon'', ''authenticated'', ''service_role'')'),
      ('datasets', 'training_bound_row', 'before insert or update of storage_path',
       'current_user in (''anon'', ''authenticated'', ''service_role'')'),
      ('training_jobs', 'training_complete_job', 'before insert', null),
      ('training_jobs', 'training_mark_waiting', 'before insert', null),
      ('datasets', 'training_mark_waiting_jobs', 'after update of status, deleted_at', null),
      ('training_jobs', 'training_limit_waiting', 'before insert',
       'new.status = ''queued'' and current_user = ''authenticated'''),
      -- Users may write every column of their rows in this table.
      ('pipeline_training_jobs', 'training_limit_waiting', 'before insert or update of status',
       'new.status = ''pending'' and current_user = ''authenticated'''),
      ('training_jobs', 'training_note_waiting', 'after insert or update of status, user_id, created_at',
       'new.status = ''queued'''),
      ('pipeline_training_jobs', 'training_note_waiting', 'after insert or update of status, user_id, created_at',
       'new.status = ''pending''')
    ) as w (table_name, name, moment, condition)
    where to_regclass('public.' || w.table_name) is not null
      and not exists (select from pg_trigger t
                      where t.tgrelid = to_regclass('public.' || w.table_name) and t.tgname = w.name)
  loop
    execute format('create trigger %I %s on public.%I for each row', wanted.name, wanted.moment, wanted.table_name)
      || coalesce(' when (' || wanted.condition || ')', '')
      || format(' execute function public.%I()', wanted.name);
    if wanted.name = 'training_note_waiting' then
      -- A new trigger starts with the jobs that already wait. `new` in its condition stands for any row of the table
      -- here.
      execute format(
        'insert into public.training_waiting_users as w (user_id, waits_since)
         select coalesce(new.user_id, ''00000000-0000-0000-0000-000000000000''), min(coalesce(created_at, ''infinity''))
         from public.%I new where %s group by 1
         on conflict (user_id) do update set waits_since = least(w.waits_since, excluded.waits_since)',
        wanted.table_name, wanted.condition);
    end if;
  end loop;
end
$migration$;
