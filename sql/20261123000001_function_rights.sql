-- Rights to call the functions. Some projects grant every new function to all roles, others grant it to none, not
-- even to the service role. So each right is granted by name here. A function that only other functions call is
-- granted to nobody, since those run with the rights of its owner.

-- Revokes the functions of this list from all roles; with `open` it also grants each function to the roles that call
-- it. Every file that creates functions ends with a call that only revokes: the files may be applied one by one, and
-- a later one may fail. The last file grants, and drops this procedure. A later migration is not on this list: it
-- revokes and grants its own functions by name.
create or replace procedure public.training_set_function_rights(open boolean)
language plpgsql set search_path = '' as $$
declare
  wanted record;
begin
  for wanted in
    select p.oid::regprocedure as signature, g.roles,
      exists (select from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
              where a.grantee <> p.proowner) as is_open
    from (values
      -- The worker, with the service's key.
      ('service_role', array[
        'worker_schema_version', 'worker_schema_1', 'publish_training_terms', 'report_worker', 'queue_health',
        'claim_training_jobs', 'adopt_training_runs', 'renew_training_runs', 'release_training_runs',
        'begin_handling', 'begin_launch', 'record_launch', 'grant_upload', 'record_progress', 'settle_run',
        'stray_launches', 'close_launches', 'abandoned_uploads', 'estimate_training_job',
        'pass_breakers', 'note_endpoint', 'resume_training',
        'claim_dataset', 'renew_dataset_claim', 'put_off_dataset', 'settle_dataset']),
      -- The trainer, which has the publishable key. These functions check the run's token.
      ('anon, service_role', array['check_in_run', 'request_upload', 'upload_grant']),
      -- Signed-in users, for their own rows.
      ('authenticated, service_role', array['cancel_training_job', 'estimate_training_cost']),
      -- Triggers call these with the rights of whoever writes the row.
      ('anon, authenticated, service_role', array['training_is_ours', 'training_written_columns']),
      -- Only other functions call these.
      (null, array[
        'training_advanced', 'training_apply_report', 'training_assigned_job', 'training_assignment',
        'training_bill_run', 'training_both_shapes',
        'training_breakers_worked', 'training_candidates', 'training_check_external_job_id',
        'training_check_lease_seconds', 'training_dataset_patience', 'training_dataset_row',
        'training_decoded', 'training_endpoints', 'training_estimate', 'training_estimate_of',
        'training_gpu', 'training_held', 'training_held_run', 'training_is_crowded', 'training_is_file',
        'training_is_published', 'training_job_order', 'training_job_patience', 'training_job_row',
        'training_job_status', 'training_json_fault', 'training_keep_waiting_users',
        'training_launch_seconds', 'training_lineage', 'training_live_runs', 'training_living_workers',
        'training_lock_waiting_job', 'training_name_faults', 'training_no_worker', 'training_note_breakers',
        'training_note_launch', 'training_notify', 'training_number', 'training_order_dataset',
        'training_pipeline_columns', 'training_pipeline_maker', 'training_priced_gpu',
        'training_revise_points', 'training_run_of_token', 'training_spent_cost', 'training_store_points',
        'training_strays', 'training_text_fault', 'training_waiting_count', 'training_waiting_jobs',
        'training_write_job', 'training_write_points']),
      -- Only triggers call these.
      (null, array[
        'training_touch_updated_at', 'training_guard_job', 'training_guard_notification',
        'training_bound_row', 'training_complete_job', 'training_mark_waiting',
        'training_mark_waiting_jobs', 'training_keep_job', 'training_drop_foreign_row',
        'training_note_waiting', 'training_limit_waiting'])
    ) as g (roles, names)
    join pg_catalog.pg_proc p
      on p.proname = any (g.names) and p.pronamespace = 'public'::regnamespace and p.prokind = 'f'
  loop
    if wanted.is_open then
      execute format('revoke all on function %s from public, anon, authenticated, service_role', wanted.signature);
    end if;
    if training_set_function_rights.open and wanted.roles is not null then
      execute format('grant execute on function %s to %s', wanted.signature, wanted.roles);
    end if;
  end loop;
end
$$;

revoke all on procedure public.training_set_function_rights(boolean) from public, anon, authenticated, service_role;
