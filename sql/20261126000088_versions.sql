-- Versions of a model with their held-out figures, and stable names for one of them each ("aliases"). The endpoint that
-- answers serves the target of an alias under <name>:live.

-- One stable name of a user's adapters. Each has one target; moves are numbered, and only whoever names the number of
-- the move that he saw may make the next one. What the endpoint has of it follows later (20261126000089).
create table if not exists public.training_aliases (
  name text primary key check (name ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
  user_id uuid not null,
  move_number int not null,
  -- The move whose adapter lies under the alias on the endpoint's volume (0: none), and since when.
  placed_number int not null default 0,
  placed_at timestamptz,
  -- Whether a machine of the endpoint may have an adapter in memory that lay there before.
  is_stale boolean not null default false,
  -- How often the volume could not be changed since the last move, and when it is tried again.
  attempts int not null default 0,
  next_at timestamptz not null default now(),
  -- Why the last move is not served yet, for the operator.
  problem text check (length(problem) <= 500),
  check (placed_number <= move_number)
);

-- The moves of an alias, the newest 200 of each: who, when, from what, to what. `run_id` is the run that made the
-- adapter; it is null once that run's rows are removed, and such an adapter is never a target again.
create table if not exists public.training_alias_moves (
  alias text not null references public.training_aliases (name) on delete cascade,
  number int not null check (number >= 1),
  moved_at timestamptz not null default now(),
  moved_by text not null check (length(moved_by) <= 200),
  run_id uuid references public.training_runs (id) on delete set null,
  -- The adapter's own name on the volume of the endpoint.
  adapter text not null check (adapter ~ '^adapter-[A-Za-z0-9_-]{1,100}$'),
  -- The target before this move.
  from_run_id uuid,
  -- Of a rollback: the number of the earlier move whose target is current again.
  restores int,
  -- The move whose target was current before, never a rollback: where a rollback of this move leads.
  follows int,
  primary key (alias, number)
);

do $migration$
declare
  own_table text;
begin
  foreach own_table in array array['training_aliases', 'training_alias_moves'] loop
    if not (select relrowsecurity from pg_class where oid = format('public.%I', own_table)::regclass) then
      execute format('alter table public.%I enable row level security', own_table);
    end if;
    execute format('revoke all on public.%I from public, anon, authenticated, service_role', own_table);
    execute format('grant select on public.%I to service_role', own_table);
  end loop;
  if to_regclass('public.training_alias_moves_run_idx') is null then
    create index training_alias_moves_run_idx on public.training_alias_moves (run_id);
  end if;
  if to_regclass('public.training_aliases_user_idx') is null then
    create index training_aliases_user_idx on public.training_aliases (user_id);
  end if;
end
$migration$;

-- Returns the versions of both queues: of one user, or of all with null. The id of a version is that of its model, and
-- of the run that made it. In the newer queue the job is the model.
create or replace function public.training_version_keys(user_id uuid)
returns table (id uuid, queue text, job_id uuid, owner_id uuid, dataset text, parent_id uuid, made_at timestamptz,
               is_deleted boolean)
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
begin
  return query
    select a.id, 'training_jobs', a.job_id, a.user_id, a.dataset_id::text, a.parent_model_id,
           coalesce(public.training_moment(a.created_at), '-infinity'), a.deleted_at is not null
    from public.model_artifacts a
    where training_version_keys.user_id is null or a.user_id = training_version_keys.user_id;
  if to_regclass('public.pipeline_training_jobs') is not null then
    return query
      select r.id, r.queue, r.job_id, r.user_id,
             coalesce(r.launched_with->>'dataset_id', j.dataset_id::text, left(j.dataset_file_path, 1024)),
             case when r.launched_with->'init_adapter'->>'id' ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
                  then (r.launched_with->'init_adapter'->>'id')::uuid end,
             coalesce(public.training_moment(r.ended_at), '-infinity'),
             -- The application added the column later.
             coalesce((select adapter_status from (select j.*) own), '') = 'deleted'
      from (
        select distinct on (s.job_id) s.* from public.training_runs s
        where s.queue = 'pipeline_training_jobs' and s.status = 'succeeded' and s.settled_as = 'completed'
          and (training_version_keys.user_id is null or s.user_id = training_version_keys.user_id)
        order by s.job_id, s.attempt desc) r
      join public.pipeline_training_jobs j on j.id = r.job_id
      cross join (select null::text as adapter_status) absent;
  end if;
end
$$;

-- The figures of a version that its row may hold, as an object of numbers. What is no number is left out.
create or replace function public.training_version_figures(queue text, job_id uuid, quality jsonb) returns jsonb
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
declare
  known text[] := array['overall_score', 'base_validation_loss', 'tuned_validation_loss', 'held_out_gain',
    'held_out_gain_low', 'held_out_gain_high', 'base_token_accuracy', 'tuned_token_accuracy',
    'general_loss_change_percent'];
begin
  if training_version_figures.queue = 'training_jobs' then
    return (
      select coalesce(jsonb_object_agg(f.id, f.value) filter (where f.value is not null), '{}')
      from (select k.id, public.training_number(training_version_figures.quality->k.id, -1e6, 1e6) as value
            from unnest(known) k (id)) f);
  elsif to_regclass('public.pipeline_training_metrics') is null then
    return '{}';
  end if;
  return (
    select coalesce(jsonb_object_agg(f.metric_id, f.value), '{}')
    from (select distinct on (m.metric_id) m.metric_id, m.value
          from public.pipeline_training_metrics m
          where m.job_id = training_version_figures.job_id and m.metric_id = any (known)
            and m.metric_level = 'universal' and m.value between -1e6 and 1e6
          order by m.metric_id, m.measured_at desc nulls last) f);
end
$$;

-- Returns a version as operators see it: {id, queue, job_id, run_id, user_id, name, version, dataset_id, dataset_name,
-- parent_id, made_at, deleted, base_model, method, measured, figures, aliases: [name]}. run_id is null for a model that
-- another program has stored. Whatever a user can make long is cut.
create or replace function public.training_version_entry(
  id uuid, queue text, job_id uuid, owner_id uuid, dataset text, parent_id uuid, made_at timestamptz, is_deleted boolean
) returns jsonb
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
declare
  run public.training_runs;
  entry jsonb;
  summary jsonb;
  quality jsonb;
begin
  select r.* into run from public.training_runs r
  where r.id = training_version_entry.id and r.status = 'succeeded' and r.settled_as = 'completed';
  if training_version_entry.queue = 'training_jobs' then
    select jsonb_build_object('name', left(a.name, 200), 'version', left(a.version, 50)),
           case when public.training_json_fault(a.training_summary, 32768) is null then a.training_summary end,
           case when public.training_json_fault(a.quality_metrics, 16384) is null then a.quality_metrics end
    into entry, summary, quality
    from public.model_artifacts a where a.id = training_version_entry.id;
  else
    select jsonb_build_object('name', left(j.job_name, 200), 'version', null) into entry
    from public.pipeline_training_jobs j where j.id = training_version_entry.job_id;
  end if;
  return entry || jsonb_build_object(
    'id', training_version_entry.id, 'queue', training_version_entry.queue, 'job_id', training_version_entry.job_id,
    'run_id', run.id, 'user_id', training_version_entry.owner_id,
    'dataset_id', left(training_version_entry.dataset, 1024),
    'dataset_name', (select left(d.name, 200) from public.datasets d
                     where d.id::text = training_version_entry.dataset),
    'parent_id', training_version_entry.parent_id,
    'made_at', public.training_moment(training_version_entry.made_at),
    'deleted', training_version_entry.is_deleted,
    'base_model', left(coalesce(run.base_model, summary->>'base_model'), 300),
    'method', left(coalesce(summary->>'method', run.launched_with->'hyperparameters'->>'method', 'sft'), 50),
    'measured', case when public.training_json_fault(run.measured, 16384) is null then run.measured end,
    'figures', public.training_version_figures(training_version_entry.queue, training_version_entry.job_id, quality),
    'aliases', coalesce((
      select jsonb_agg(l.name order by l.name)
      from public.training_alias_moves m join public.training_aliases l on l.name = m.alias and l.move_number = m.number
      where m.run_id = training_version_entry.id), '[]'));
end
$$;

-- Lists versions, newest first: {of, user_id, limit}, each of which may be missing; 50 are listed, 200 at most. `of` is
-- the id of a dataset, a model or a job: listed are the versions of that dataset, and those that began with one another.
-- The version that is named itself is among them, however many are newer.
-- Deleted ones are listed as long as an alias leads to them.
create or replace function public.training_versions(filter jsonb) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
#variable_conflict use_column
declare
  asked jsonb := coalesce(public.training_decoded(training_versions.filter), '{}');
  of_user uuid;
  named uuid;
  most int;
  chosen uuid[];
begin
  begin
    of_user := (asked->>'user_id')::uuid;
    named := (asked->>'of')::uuid;
    most := least(greatest(coalesce((asked->>'limit')::int, 50), 1), 200);
  exception when data_exception then
    raise exception using errcode = 'PT400',
      message = 'a value of filter can''t be read: of and user_id are ids, limit is a number';
  end;
  if named is not null then
    -- Versions of one user belong together only. So the rest is not read.
    of_user := coalesce(of_user,
      (select d.user_id from public.datasets d where d.id = named),
      (select r.user_id from public.training_runs r where r.id = named),
      (select r.user_id from public.training_runs r where r.job_id = named order by r.attempt desc limit 1),
      (select a.user_id from public.model_artifacts a where a.id = named or a.job_id = named limit 1));
    if of_user is null then
      return '[]';
    end if;
    with recursive known as materialized (
      select k.id, k.job_id, k.dataset, k.parent_id from public.training_version_keys(of_user) k
    ), related (id) as (
      select k.id from known k
      where named in (k.id, k.job_id) or k.dataset = named::text
      union
      select o.id from related r join known k on k.id = r.id
        join known o on o.dataset = k.dataset or o.parent_id = k.id or o.id = k.parent_id
    )
    select array_agg(r.id) into chosen from related r;
  end if;
  return (
    select coalesce(jsonb_agg(public.training_version_entry(
      v.id, v.queue, v.job_id, v.owner_id, v.dataset, v.parent_id, v.made_at, v.is_deleted)
      order by v.made_at desc, v.id), '[]')
    from (
      select k.* from public.training_version_keys(of_user) k
      where (named is null or k.id = any (chosen))
        and (not k.is_deleted or exists (
          select from public.training_alias_moves m
          join public.training_aliases l on l.name = m.alias and l.move_number = m.number
          where m.run_id = k.id))
      order by (named in (k.id, k.job_id)) is true desc, k.made_at desc, k.id limit most) v);
end
$$;

-- Says whether the adapter of a run is still there for its user: neither deleted, nor its job removed.
create or replace function public.training_has_adapter(run_id uuid) returns boolean
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
declare
  run public.training_runs;
begin
  select r.* into run from public.training_runs r
  where r.id = training_has_adapter.run_id and r.status = 'succeeded' and r.settled_as = 'completed';
  return run.id is not null and exists (
    select from public.training_version_keys(run.user_id) k where k.id = run.id and not k.is_deleted);
end
$$;

-- Returns an alias as operators see it: {name, user_id, number, run_id, job_id, adapter, base_model, moved_at, moved_by,
-- deleted, placed, served, problem, rollback}. rollback is {number, run_id, job_id, adapter} of the move to which a
-- rollback leads: the latest before the current one whose adapter is still there; null if there is none.
create or replace function public.training_alias_entry(name text) returns jsonb
language sql stable set search_path = '' as $$
  with recursive back as (
    select m.* from public.training_aliases l
    join public.training_alias_moves c on c.alias = l.name and c.number = l.move_number
    join public.training_alias_moves m on m.alias = l.name and m.number = coalesce(c.restores, c.number)
    where l.name = training_alias_entry.name
    union
    select m.* from back b join public.training_alias_moves m on m.alias = b.alias and m.number = b.follows
  )
  select jsonb_build_object(
    'name', l.name, 'user_id', l.user_id, 'number', l.move_number, 'run_id', c.run_id, 'job_id', r.job_id,
    'adapter', c.adapter, 'base_model', r.base_model, 'moved_at', c.moved_at, 'moved_by', c.moved_by,
    'deleted', not public.training_has_adapter(c.run_id), 'placed', l.placed_number = l.move_number,
    'served', l.placed_number = l.move_number and not l.is_stale, 'problem', l.problem,
    'rollback', (
      select jsonb_build_object('number', b.number, 'run_id', b.run_id, 'job_id', o.job_id, 'adapter', b.adapter)
      from back b join public.training_runs o on o.id = b.run_id
      where b.number <> coalesce(c.restores, c.number) and b.run_id is distinct from c.run_id
        and public.training_has_adapter(b.run_id)
      order by b.number desc limit 1))
  from public.training_aliases l
  join public.training_alias_moves c on c.alias = l.name and c.number = l.move_number
  left join public.training_runs r on r.id = c.run_id
  where l.name = training_alias_entry.name
$$;

-- Lists aliases as above: that of a name, those of a user, or all with nulls; 200 at most.
create or replace function public.list_training_aliases(name text, user_id uuid) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
#variable_conflict use_column
begin
  return (
    select coalesce(jsonb_agg(public.training_alias_entry(a.name) order by a.name), '[]')
    from (select l.name from public.training_aliases l
          where (list_training_aliases.name is null or l.name = list_training_aliases.name)
            and (list_training_aliases.user_id is null or l.user_id = list_training_aliases.user_id)
          order by l.name limit 200) a);
end
$$;

-- Returns the moves of an alias, newest first, 200 at most: [{number, moved_at, moved_by, run_id, job_id, adapter,
-- from_run_id, from_job_id, restores}].
create or replace function public.training_alias_history(name text) returns jsonb
language plpgsql stable security definer set search_path = '' as $$
begin
  return (
    select coalesce(jsonb_agg(jsonb_build_object(
      'number', m.number, 'moved_at', m.moved_at, 'moved_by', m.moved_by, 'run_id', m.run_id,
      'job_id', r.job_id, 'adapter', m.adapter, 'from_run_id', m.from_run_id, 'from_job_id', f.job_id,
      'restores', m.restores) order by m.number desc), '[]')
    from (select * from public.training_alias_moves o where o.alias = training_alias_history.name
          order by o.number desc limit 200) m
    left join public.training_runs r on r.id = m.run_id
    left join public.training_runs f on f.id = m.from_run_id);
end
$$;

-- Moves an alias to the adapter of a run, and makes the alias where there is none: {name, run_id, adapter, moved_by,
-- number, restores}. `number` is that of the current move as the caller saw it; 0 where there was no alias. If somebody
-- else has moved it since, nothing happens: of two that move at once, one is told so. `restores` is the number of the
-- move that a rollback goes back to. Returns {moved, reason, alias}: why nothing was moved, as a sentence without its
-- end, and the alias as it stands now.
create or replace function public.move_training_alias(change jsonb) returns jsonb
language plpgsql security definer set search_path = '' as $$
#variable_conflict use_column
declare
  asked jsonb := public.training_decoded(move_training_alias.change);
  wanted text := asked->>'name';
  seen int := coalesce((asked->>'number')::int, 0);
  goes_back_to int := (asked->>'restores')::int;
  run public.training_runs;
  held public.training_aliases;
  current_move public.training_alias_moves;
  reason text;
begin
  if wanted is null or wanted !~ '^[a-z0-9][a-z0-9._-]{0,62}$' then
    raise exception using errcode = 'PT400', message = 'the name of an alias is made of a-z, 0-9, ".", "_" and "-"';
  end if;
  perform pg_advisory_xact_lock(hashtextextended('training alias ' || wanted, 0));
  -- Erasing a user locks the user's runs, too. So no alias appears for rows that are being removed.
  select r.* into run from public.training_runs r where r.id = (asked->>'run_id')::uuid for share;
  select l.* into held from public.training_aliases l where l.name = wanted for update;
  select m.* into current_move from public.training_alias_moves m
  where m.alias = wanted and m.number = held.move_number;
  reason := case
    when run.id is null or not public.training_has_adapter(run.id) then 'its adapter was deleted, or is not stored'
    when held.user_id <> run.user_id then 'the name ' || wanted || ' belongs to another user: choose another one'
    when coalesce(held.move_number, 0) <> seen then format(
      '%s was moved by %s at %s UTC, after you looked: look again, and repeat it if it still should be moved', wanted,
      current_move.moved_by, to_char(current_move.moved_at at time zone 'utc', 'YYYY-MM-DD HH24:MI:SS'))
    when current_move.run_id = run.id then wanted || ' leads to it already'
    when goes_back_to is not null and not exists (
      select from public.training_alias_moves m
      where m.alias = wanted and m.number = goes_back_to and m.run_id = run.id and m.restores is null)
      then format('%s was never moved to it in a move %s', wanted, goes_back_to) end;
  if reason is not null then
    return jsonb_build_object('moved', false, 'reason', reason, 'alias', public.training_alias_entry(wanted));
  end if;
  insert into public.training_aliases as l (name, user_id, move_number) values (wanted, run.user_id, 1)
  on conflict (name) do update set move_number = l.move_number + 1, problem = null, attempts = 0, next_at = now()
  returning l.* into held;
  insert into public.training_alias_moves (alias, number, moved_by, run_id, adapter, from_run_id, restores, follows)
  values (wanted, held.move_number, left(asked->>'moved_by', 200), run.id, asked->>'adapter', current_move.run_id,
          goes_back_to, case when goes_back_to is null then coalesce(current_move.restores, current_move.number) end);
  delete from public.training_alias_moves m where m.alias = wanted and m.number <= held.move_number - 200;
  return jsonb_build_object('moved', true, 'reason', null, 'alias', public.training_alias_entry(wanted));
end
$$;

revoke all on function public.training_version_keys(uuid), public.training_version_figures(text, uuid, jsonb),
  public.training_version_entry(uuid, text, uuid, uuid, text, uuid, timestamptz, boolean),
  public.training_versions(jsonb), public.training_has_adapter(uuid), public.training_alias_entry(text),
  public.list_training_aliases(text, uuid), public.training_alias_history(text), public.move_training_alias(jsonb)
  from public, anon, authenticated, service_role;
grant execute on function public.training_versions(jsonb), public.list_training_aliases(text, uuid),
  public.training_alias_history(text), public.move_training_alias(jsonb) to service_role;
