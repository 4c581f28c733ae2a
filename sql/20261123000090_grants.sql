-- Who may call what, all in one place and last: the migrations before take every function from everybody, since one
-- project grants new functions to all roles and the next to none, the service's neither. Functions that only other
-- functions call are granted to nobody: they run as their owner.
do $migration$
declare
  wanted record;
begin
  for wanted in
    select p.oid::regprocedure as signature, g.roles
    from (values
      -- The worker, with the service's key.
      ('service_role', array[
        'worker_schema_version', 'worker_schema_1', 'publish_training_terms', 'report_worker', 'queue_health',
        'claim_training_jobs', 'adopt_training_runs', 'renew_training_runs', 'release_training_runs',
        'begin_handling', 'begin_launch', 'record_launch', 'grant_upload', 'record_progress', 'settle_run',
        'stray_launches', 'close_launches', 'abandoned_uploads', 'estimate_training_job',
        'pass_breakers', 'note_endpoint', 'resume_training',
        'claim_dataset', 'renew_dataset_claim', 'put_off_dataset', 'settle_dataset']),
      -- The trainer, with the publishable key: a run's token opens them.
      ('anon, service_role', array['check_in_run', 'request_upload', 'upload_grant']),
      -- Users, for what is theirs.
      ('authenticated, service_role', array['cancel_training_job', 'estimate_training_cost']),
      -- Triggers ask it, which run as whoever writes.
      ('anon, authenticated, service_role', array['training_is_ours'])
    ) as g (roles, names)
    join pg_proc p on p.proname = any (g.names) and p.pronamespace = 'public'::regnamespace
  loop
    execute format('grant execute on function %s to %s', wanted.signature, wanted.roles);
  end loop;
end
$migration$;
