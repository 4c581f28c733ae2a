-- How the target of an alias gets to the endpoint that answers. An errand (20261126000085) puts a copy of the adapter
-- under <alias>:live on the volume. A machine of the endpoint that has loaded what lay there before goes on with it until
-- it is replaced. So after such a change the endpoint's machines are replaced, and only then the move counts as served.

-- Aliases that were erased with their user while something lay under them on the volume.
create table if not exists public.training_removed_aliases (
  name text primary key check (length(name) <= 63),
  attempts int not null default 0,
  next_at timestamptz not null default now()
);

-- That the endpoint's machines are to be replaced, since when, and how far that is. The table has one row at most.
create table if not exists public.training_endpoint_releases (
  only_row boolean primary key default true check (only_row),
  wanted_at timestamptz not null,
  released_at timestamptz,
  -- The machines that were there then; the release is done when none of them is left.
  old_workers text[] not null default '{}',
  done_at timestamptz,
  claimed_by text check (length(claimed_by) <= 200),
  claimed_at timestamptz,
  claimed_until timestamptz
);

do $migration$
declare
  own_table text;
begin
  foreach own_table in array array['training_removed_aliases', 'training_endpoint_releases'] loop
    if not (select relrowsecurity from pg_class where oid = format('public.%I', own_table)::regclass) then
      execute format('alter table public.%I enable row level security', own_table);
    end if;
    execute format('revoke all on public.%I from public, anon, authenticated, service_role', own_table);
    execute format('grant select on public.%I to service_role', own_table);
  end loop;
end
$migration$;

-- Keeps the name of an alias that is deleted, for as long as something lies under it.
create or replace function public.training_keep_removed_alias() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  insert into public.training_removed_aliases (name)
  select g.name from gone g where g.placed_number > 0
  on conflict do nothing;
  return null;
end
$$;

do $migration$
begin
  if not exists (select from pg_trigger
                 where tgrelid = 'public.training_aliases'::regclass and tgname = 'training_keep_removed_alias') then
    create trigger training_keep_removed_alias after delete on public.training_aliases
    referencing old table as gone for each statement execute function public.training_keep_removed_alias();
  end if;
end
$migration$;

-- Asks for the replacement of the endpoint's machines: what was changed on the volume until now, they have to read again.
create or replace function public.training_want_release() returns void
language sql volatile set search_path = '' as $$
  insert into public.training_endpoint_releases as e (wanted_at) values (clock_timestamp())
  on conflict (only_row) do update set wanted_at = excluded.wanted_at
$$;

-- Returns what an errand is to change of aliases on the volume now, 50 at most: {<alias>:live: the name of the adapter
-- that it holds from then on, or null for an alias that is removed}.
create or replace function public.training_alias_changes() returns jsonb
language sql stable set search_path = '' as $$
  select coalesce(jsonb_object_agg(c.name || ':live', c.adapter), '{}')
  from (
    select l.name, case when t.is_there then m.adapter end as adapter
    from public.training_aliases l
    join public.training_alias_moves m on m.alias = l.name and m.number = l.move_number
    cross join lateral (select public.training_has_adapter(m.run_id) as is_there) t
    where l.next_at <= now() and case when t.is_there then l.placed_number < l.move_number else l.placed_number > 0 end
    union all
    select g.name, null from public.training_removed_aliases g
    where g.next_at <= now() and not exists (select from public.training_aliases l where l.name = g.name)
    order by 1 limit 50) c
$$;

-- Writes down what became of such changes: `asked` as above, `done` the aliases that are now as they were asked for,
-- `problem` why others are not. Those are tried again later: after half a minute, then twice as long each time, up to
-- an hour.
create or replace function public.training_note_alias_changes(asked jsonb, done jsonb, problem text) returns void
language plpgsql volatile set search_path = '' as $$
#variable_conflict use_column
declare
  change record;
  wanted text;
  number int;
  was_erased boolean;
  is_loaded boolean;
  needs_release boolean := false;
begin
  for change in
    select a.key, a.value #>> '{}' as adapter,
           jsonb_typeof(training_note_alias_changes.done) = 'array' and training_note_alias_changes.done ? a.key as is_done
    from jsonb_each(training_note_alias_changes.asked) a order by a.key
  loop
    wanted := left(change.key, -5);
    if change.is_done is not true then
      update public.training_aliases l
      set attempts = l.attempts + 1, next_at = now() + make_interval(secs => least(3600, 30 * 2 ^ least(l.attempts, 7))),
          problem = left(coalesce(training_note_alias_changes.problem, 'the errand that changes the volume failed'), 500)
      where l.name = wanted;
      update public.training_removed_aliases g
      set attempts = g.attempts + 1, next_at = now() + make_interval(secs => least(3600, 30 * 2 ^ least(g.attempts, 7)))
      where g.name = wanted;
      continue;
    end if;
    number := (select max(m.number) from public.training_alias_moves m
               where m.alias = wanted and m.adapter = change.adapter);
    if change.adapter is not null and number is null then
      -- The alias was erased while the errand was under way.
      insert into public.training_removed_aliases (name) values (wanted) on conflict do nothing;
      continue;
    end if;
    delete from public.training_removed_aliases g where g.name = wanted;
    was_erased := found;
    update public.training_aliases l
    set placed_number = coalesce(number, 0), placed_at = clock_timestamp(),
        is_stale = l.is_stale or l.placed_number > 0 or was_erased,
        attempts = 0, next_at = now(), problem = null
    where l.name = wanted
    returning l.is_stale into is_loaded;
    needs_release := needs_release or was_erased or coalesce(is_loaded, false);
  end loop;
  if needs_release then
    perform public.training_want_release();
  end if;
end
$$;

-- Gives one worker at a time the replacement of the endpoint's machines, for so many seconds: {release, old_workers}.
-- `release`: they are to be replaced now; else only looked at, whether the old ones are gone. After again_seconds they
-- are replaced once more. Null if there is nothing to do, or another worker does it.
create or replace function public.claim_endpoint_release(worker text, lease_seconds int, again_seconds int) returns jsonb
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  due public.training_endpoint_releases;
begin
  -- The test call of a read-only transaction.
  if coalesce(claim_endpoint_release.lease_seconds, 0) <= 0 then
    return null;
  end if;
  update public.training_endpoint_releases e
  set claimed_by = left(claim_endpoint_release.worker, 200), claimed_at = clock_timestamp(),
      claimed_until = clock_timestamp() + make_interval(secs => claim_endpoint_release.lease_seconds)
  where (e.done_at is null or e.done_at < e.wanted_at)
    and (e.claimed_until is null or e.claimed_until <= clock_timestamp()
         or e.claimed_by = left(claim_endpoint_release.worker, 200))
  returning e.* into due;
  if not found then
    return null;
  end if;
  return jsonb_build_object(
    'release', due.released_at is null or due.released_at < due.wanted_at
               or due.released_at < now() - make_interval(secs => claim_endpoint_release.again_seconds),
    'old_workers', to_jsonb(due.old_workers));
end
$$;

-- Writes down how far that replacement is: {released, old_workers, done, problem}. `released`: it was asked for after the
-- claim, and old_workers, 200 at most, are the machines that are to go. `done`: none of them is left, so that what was
-- placed before it is served. Returns whether the claim still held.
create or replace function public.note_endpoint_release(worker text, note jsonb) returns boolean
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  told jsonb := public.training_decoded(note_endpoint_release.note);
  current_row public.training_endpoint_releases;
begin
  select e.* into current_row from public.training_endpoint_releases e
  where e.claimed_by = left(note_endpoint_release.worker, 200) and e.claimed_until > clock_timestamp() for update;
  if not found then
    return false;
  end if;
  if (told->>'released')::boolean then
    update public.training_endpoint_releases e
    set released_at = e.claimed_at, old_workers = array(
      select left(w, 200) from jsonb_array_elements_text(coalesce(nullif(told->'old_workers', 'null'), '[]')) w limit 200)
    returning e.* into current_row;
  end if;
  if (told->>'done')::boolean and current_row.released_at is not null then
    update public.training_endpoint_releases e
    set done_at = e.released_at, old_workers = '{}', claimed_by = null, claimed_until = null;
    update public.training_aliases l set is_stale = false, problem = null
    where l.is_stale and l.placed_at <= current_row.released_at;
  else
    update public.training_aliases l set problem = left(told->>'problem', 500) where l.is_stale;
  end if;
  return true;
end
$$;

revoke all on function public.training_keep_removed_alias(), public.training_want_release(),
  public.training_alias_changes(), public.training_note_alias_changes(jsonb, jsonb, text),
  public.claim_endpoint_release(text, int, int), public.note_endpoint_release(text, jsonb)
  from public, anon, authenticated, service_role;
grant execute on function public.claim_endpoint_release(text, int, int), public.note_endpoint_release(text, jsonb)
  to service_role;
