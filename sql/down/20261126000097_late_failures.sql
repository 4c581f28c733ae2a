-- Undoes 20261126000097_late_failures.sql: the function as 20261123000010_breakers.sql has it.

do $down$
begin
  -- Undone twice, there is no such table any more.
  if to_regclass('public.training_runs') is null then
    return;
  end if;
  execute $function$
create or replace function public.training_note_breakers(run public.training_runs, blame jsonb, failure jsonb)
returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
  breaker public.training_breakers;
  opens boolean;
begin
  if blame is null or run.base_model is null or run.endpoint is null then
    return;
  end if;
  insert into public.training_breakers (kind, name, endpoint)
  values (blame->>'kind', case blame->>'kind' when 'base_model' then run.base_model else '' end, run.endpoint)
  on conflict (kind, name, endpoint) do update
  set user_ids = case when training_breakers.failed_at < now() - interval '7 days' then '{}'
                      else training_breakers.user_ids end
  returning * into breaker;
  if run.user_id <> all (breaker.user_ids) then
    breaker.user_ids := (breaker.user_ids || run.user_id)[1:10];
  end if;
  opens := case when breaker.opened_at is null
    then coalesce((blame->>'at_once')::boolean, false) or cardinality(breaker.user_ids) > 1
    -- Runs that were launched before it opened add no new information.
    else breaker.probe_run_id = run.id end;
  update public.training_breakers b
  set user_ids = breaker.user_ids, failed_at = now(),
      error_code = left(failure->>'error_code', 100), error_message = left(failure->>'error_message', 500),
      opened_at = case when opens then coalesce(b.opened_at, now()) else b.opened_at end,
      times_opened = b.times_opened + opens::int,
      probe_at = case when opens then now() + make_interval(secs => least(
        (blame->>'hold_seconds')::double precision * 2 ^ least(b.times_opened, 20), 86400)) else b.probe_at end,
      probe_run_id = case when opens then null else b.probe_run_id end
  where (b.kind, b.name, b.endpoint) = (breaker.kind, breaker.name, breaker.endpoint);
end
$$
$function$;
end
$down$;
