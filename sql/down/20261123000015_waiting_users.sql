-- Undoes 20261123000015_waiting_users.sql.

do $down$
declare
  waited text;
begin
  foreach waited in array array['training_jobs', 'pipeline_training_jobs'] loop
    if to_regclass('public.' || waited) is not null then
      execute format('drop trigger if exists training_note_waiting on public.%I', waited);
      execute format('drop trigger if exists training_limit_waiting on public.%I', waited);
      execute format('drop index if exists public.%I', waited || '_waiting_idx');
    end if;
  end loop;
end
$down$;
drop function if exists public.claim_training_jobs(text, int, int, int);
drop function if exists public.training_lock_waiting_job(text, uuid);
drop function if exists public.training_candidates(int, int, uuid[], uuid[]);
drop function if exists public.training_limit_waiting();
drop function if exists public.training_waiting_count(uuid, int);
drop function if exists public.training_live_runs(uuid);
drop function if exists public.training_keep_waiting_users();
drop function if exists public.training_note_waiting();
drop table if exists public.training_waiting_users;
