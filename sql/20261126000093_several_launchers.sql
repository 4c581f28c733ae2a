-- One worker may launch with several launchers: it adopts the runs of all that it knows.

-- As adopt_training_runs_2, for a worker of several launchers.
create or replace function public.adopt_training_runs_3(worker text, max_runs int, lease_seconds int, launchers text[])
returns jsonb
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  adopted uuid[];
begin
  perform public.training_check_lease_seconds(lease_seconds);
  with expired as (
    select r.id from public.training_runs r
    where r.status in ('claimed', 'launched', 'running') and r.lease_expires_at <= now()
      and (r.launcher is null or r.launcher = any (adopt_training_runs_3.launchers))
    order by r.lease_expires_at
    limit greatest(adopt_training_runs_3.max_runs, 0)
    for update skip locked
  ), taken as (
    update public.training_runs r
    set worker = adopt_training_runs_3.worker,
        lease_token = gen_random_uuid(),
        lease_expires_at = now() + make_interval(secs => adopt_training_runs_3.lease_seconds)
    from expired e where r.id = e.id
    returning r.id, r.created_at
  )
  select array_agg(id order by created_at, id) into adopted from taken;
  return coalesce(
    (select jsonb_agg(public.training_assignment(id)) from unnest(adopted) as id), '[]');
end
$$;

revoke all on function public.adopt_training_runs_3(text, int, int, text[])
  from public, anon, authenticated, service_role;
grant execute on function public.adopt_training_runs_3(text, int, int, text[]) to service_role;
