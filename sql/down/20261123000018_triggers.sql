-- Undoes 20261123000018_triggers.sql.

do $down$
declare
  added record;
begin
  for added in
    select t.tgname as name, t.tgrelid::regclass as added_to
    from pg_trigger t join pg_proc p on p.oid = t.tgfoid
    where p.pronamespace = 'public'::regnamespace and p.proname = t.tgname and p.proname in (
      'training_guard_job', 'training_guard_notification', 'training_keep_job', 'training_drop_foreign_row',
      'training_bound_row', 'training_complete_job', 'training_mark_waiting', 'training_mark_waiting_jobs',
      'training_limit_waiting', 'training_note_waiting')
  loop
    execute format('drop trigger %I on %s', added.name, added.added_to);
  end loop;
end
$down$;
