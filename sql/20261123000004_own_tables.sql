-- The tables of this schema's own: what the worker knows beyond the application's tables. The service's key may read
-- them and nobody else; they are written by the functions of the files that follow.

-- One attempt to train a job. There is no foreign key to training_jobs on purpose: when a user's
-- deletion takes the job with it, the run must stay, since somebody still has to stop its GPU.
create table if not exists public.training_runs (
  id uuid primary key default gen_random_uuid(),
  -- The table that the job is a row of. Ids are random: one names no job in both.
  queue text not null default 'training_jobs' check (queue in ('training_jobs', 'pipeline_training_jobs')),
  job_id uuid not null,
  user_id uuid not null,
  attempt int not null check (attempt >= 1),
  status text not null default 'claimed'
    check (status in ('claimed', 'launched', 'running', 'succeeded', 'failed', 'cancelled', 'lost')),
  -- The lease. `worker` is null after a clean release.
  worker text,
  lease_token uuid not null default gen_random_uuid(),
  lease_expires_at timestamptz not null,
  -- How many worker processes began the work on this run that could kill them (preflight, settling).
  handlings int not null default 0,
  -- The fence. external_job_id is the last launch's until somebody checks in, then the owner's.
  token_sha256 text unique,
  launcher text,
  -- Where that launch was made: the endpoint's address, never a key.
  endpoint text check (length(endpoint) <= 500),
  external_job_id text,
  execution_id uuid,
  former_execution_ids uuid[] not null default '{}',
  checked_in_at timestamptz,
  last_seen_at timestamptz,
  -- Progress within this run; only ever grows.
  stage text,
  current_step int not null default 0,
  point_steps int[] not null default '{}',
  -- Of the points that were stored last: the same ones, which come with each report, are not looked at again.
  points_md5 text,
  -- What keeps the run from going on, for the operator.
  problem text,
  -- What it is trained on; known once it may be launched.
  base_model text check (length(base_model) <= 300),
  -- What the run was last launched with, whatever becomes of the job's row since: the job's dataset_id,
  -- hyperparameters and gpu_config, and the bill's gpu_type, gpu_count, price_per_hour and max_cost (USD, all runs
  -- of the job together).
  launched_with jsonb,
  -- Publishing. upload_grant is sealed with the run's token: the row shows nobody a signed URL.
  upload_request jsonb,
  upload_grant text,
  upload_granted_at timestamptz,
  -- The end.
  fault text check (fault in ('permanent', 'transient', 'infrastructure')),
  error_code text,
  error_message text,
  next_attempt_at timestamptz,
  gpu_seconds numeric(12, 3),
  -- The job's status when the run was settled, for a worker that never got the answer.
  settled_as text,
  created_at timestamptz not null default now(),
  launched_at timestamptz,
  ended_at timestamptz,
  unique (job_id, attempt)
);

-- Every POST to a launcher that may have been accepted. RunPod has no idempotency key, so a run can
-- have several; the fence lets one train, and this table is how the others are found and stopped.
create table if not exists public.training_launches (
  id bigint generated always as identity primary key,
  run_id uuid not null references public.training_runs (id) on delete cascade,
  launcher text not null,
  -- Where it was sent: it is polled, cancelled and billed there, whatever the settings say later.
  endpoint text check (length(endpoint) <= 500),
  external_job_id text unique,
  posted_at timestamptz not null default now(),
  -- When a worker last asked for it as a stray: those that were never asked for come first, then the longest ago.
  looked_at timestamptz,
  ended_at timestamptz,
  gpu_seconds numeric(12, 3)
);

-- Users that may have a waiting job. The rows of the newer queue without a user_id stand under the zero id.
create table if not exists public.training_waiting_users (
  user_id uuid primary key,
  -- No job of the user that waits is older, in either queue.
  waits_since timestamptz not null,
  -- No live run of the user is older.
  lives_since timestamptz not null default '-infinity',
  -- When the two were last brought up to date.
  looked_at timestamptz not null default '-infinity'
);

-- The endpoints as workers saw them last: how long their workers have been starting in vain, and what is wrong there.
create table if not exists public.training_endpoints (
  launcher text not null check (length(launcher) <= 100),
  endpoint text not null check (length(endpoint) <= 500),
  looked_at timestamptz not null default now(),
  starting_since timestamptz,
  problem text,
  primary key (launcher, endpoint)
);

create table if not exists public.training_breakers (
  kind text not null check (kind in ('base_model', 'image')),
  -- The base model's name; empty for the image.
  name text not null check (length(name) <= 300),
  endpoint text not null check (length(endpoint) <= 500),
  -- For whom it failed since it last worked; ten at most.
  user_ids uuid[] not null default '{}',
  error_code text,
  error_message text,
  failed_at timestamptz not null default now(),
  -- Null while it holds nobody.
  opened_at timestamptz,
  times_opened int not null default 0,
  -- From when on one job may try, and the run that does.
  probe_at timestamptz,
  probe_run_id uuid,
  primary key (kind, name, endpoint)
);

-- The jobs that were looked at and wait for a breaker. A claim passes them over until then.
create table if not exists public.training_holds (
  job_id uuid primary key,
  kind text not null,
  name text not null,
  endpoint text not null,
  reason text not null,
  held_until timestamptz not null
);

create table if not exists public.training_workers (
  name text primary key,
  version text,
  started_at timestamptz not null,
  seen_at timestamptz not null default now(),
  -- How many runs it may hold, and how many it holds; how many live runs it allows a user (null: any number).
  slots int not null,
  held int not null,
  max_per_user int,
  -- Why it does not do its work, as /readyz says it; null while it does.
  problem text,
  -- Whether it was one pass, as from cron, which has a name of its own and leaves one sign.
  single_pass boolean not null default false
);

-- The worker's terms (worker/lora_worker/money/terms.py): prices, speeds, sizes, limits. One row; each worker writes it
-- when it starts, so the files in the worker stay the only place where the numbers are kept.
create table if not exists public.training_terms (
  only_row boolean primary key default true check (only_row),
  document jsonb not null,
  written_by text not null,
  written_at timestamptz not null default now()
);

-- One row for each dataset that a worker reads, or has put off; it goes when the dataset is settled.
create table if not exists public.dataset_validations (
  dataset_id uuid primary key references public.datasets (id) on delete cascade,
  worker text not null,
  lease_token uuid not null default gen_random_uuid(),
  lease_expires_at timestamptz not null,
  -- How many workers began to read it: a file that kills its reader must not go round for ever.
  attempts int not null default 1,
  -- The dataset as it was claimed. The confirm route may be called again while we read.
  dataset_updated_at timestamptz
);

-- Here and in the files that follow, what locks a table looks first whether there is anything to do.
-- `create index if not exists`, `create or replace trigger` and `enable row level security` do not: they wait
-- for every writer, and every writer behind them, on a database that has been migrated before.
do $migration$
declare
  own_table text;
begin
  foreach own_table in array array[
    'training_runs', 'training_launches', 'training_waiting_users', 'training_endpoints', 'training_breakers',
    'training_holds', 'training_workers', 'training_terms', 'dataset_validations']
  loop
    if not (select relrowsecurity from pg_class where oid = format('public.%I', own_table)::regclass) then
      execute format('alter table public.%I enable row level security', own_table);
    end if;
    execute format('revoke all on public.%I from public, anon, authenticated, service_role', own_table);
    execute format('grant select on public.%I to service_role', own_table);
  end loop;
  if to_regclass('public.training_runs_one_live_run') is null then
    create unique index training_runs_one_live_run
      on public.training_runs (job_id) where status in ('claimed', 'launched', 'running');
  end if;
  if to_regclass('public.training_runs_lease_idx') is null then
    create index training_runs_lease_idx
      on public.training_runs (lease_expires_at) where status in ('claimed', 'launched', 'running');
  end if;
  if to_regclass('public.training_runs_live_user_idx') is null then
    create index training_runs_live_user_idx
      on public.training_runs (user_id, created_at) where status in ('claimed', 'launched', 'running');
  end if;
  if to_regclass('public.training_launches_run_idx') is null then
    create index training_launches_run_idx on public.training_launches (run_id);
  end if;
  if to_regclass('public.training_launches_open_idx') is null then
    create index training_launches_open_idx
      on public.training_launches (run_id) where ended_at is null and external_job_id is not null;
  end if;
end
$migration$;

call public.training_set_function_rights(open => false);
