-- Undoes 20261123000008_claims.sql. Jobs keep the stage that they were given.

drop function if exists public.training_waiting_jobs();
drop function if exists public.claim_training_jobs(text, int, int, int);
drop function if exists public.training_lock_waiting_job(text, uuid);
drop function if exists public.training_candidates(int, int, uuid[], uuid[]);
drop function if exists public.training_mark_waiting_jobs();
drop function if exists public.training_mark_waiting();
drop function if exists public.training_limit_waiting();
drop function if exists public.training_waiting_count(uuid, int);
drop function if exists public.training_live_runs(uuid);
drop function if exists public.training_keep_waiting_users();
drop function if exists public.training_note_waiting();
do $down$
declare
  waited text;
begin
  foreach waited in array array['training_jobs', 'pipeline_training_jobs'] loop
    execute format('drop index if exists public.%I', waited || '_waiting_idx');
  end loop;
end
$down$;
