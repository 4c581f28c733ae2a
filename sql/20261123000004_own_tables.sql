-- The worker's own tables: what it knows in addition to the application's tables. Only the service role may read
-- them; only the functions in the files that follow write them.

-- One attempt to train a job. It has no foreign key to training_jobs, because the run must stay when a user's
-- deletion removes the job: the worker still has to stop its GPU.
create table if not exists public.training_runs (
  id uuid primary key default gen_random_uuid(),
  -- The table of the job. Job ids are random, so one id never exists in both tables.
  queue text not null default 'training_jobs' check (queue in ('training_jobs', 'pipeline_training_jobs')),
  job_id uuid not null,
  user_id uuid not null,
  attempt int not null check (attempt >= 1),
  status text not null default 'claimed'
    check (status in ('claimed', 'launched', 'running', 'succeeded', 'failed', 'cancelled', 'lost')),
  -- The lease. `worker` is null after a worker has released it.
  worker text,
  lease_token uuid not null default gen_random_uuid(),
  lease_expires_at timestamptz not null,
  -- How many workers have started a step of this run that could crash them (preflight, settling).
  handlings int not null default 0,
  -- The fence. external_job_id is that of the last launch until a trainer checks in, and then that trainer's.
  token_sha256 text unique,
  launcher text,
  -- The address of the endpoint where that launch was made. It never contains a key.
  endpoint text check (length(endpoint) <= 500),
  external_job_id text,
  execution_id uuid,
  former_execution_ids uuid[] not null default '{}',
  checked_in_at timestamptz,
  last_seen_at timestamptz,
  -- Progress within this run. It never decreases.
  stage text,
  current_step int not null default 0,
  point_steps int[] not null default '{}',
  -- The md5 of the points that were stored last. Every report repeats them, and equal ones are skipped.
  points_md5 text,
  -- Why the run makes no progress, for the operator.
  problem text,
  -- The base model; known as soon as the run may be launched.
  base_model text check (length(base_model) <= 300),
  -- What the run was last launched with. It stays when the job's row changes later: the job's dataset_id,
  -- hyperparameters and gpu_config, and for the bill gpu_type, gpu_count, price_per_hour and max_cost (USD, for all
  -- runs of the job together).
  launched_with jsonb,
  -- Publishing. upload_grant is encrypted with the run's token, so that nobody can read a signed URL in this row.
  upload_request jsonb,
  upload_grant text,
  upload_granted_at timestamptz,
  -- How the run ended.
  fault text check (fault in ('permanent', 'transient', 'infrastructure')),
  error_code text,
  error_message text,
  next_attempt_at timestamptz,
  gpu_seconds numeric(12, 3),
  -- The job's status after the run was settled. A worker that lost the answer of its call reads it here.
  settled_as text,
  created_at timestamptz not null default now(),
  launched_at timestamptz,
  ended_at timestamptz,
  unique (job_id, attempt)
);

-- One row for every request to a launcher that may have been accepted. RunPod has no idempotency key, so a run can
-- have several launches. The fence lets only one of them train; the worker finds and stops the others through this
-- table.
create table if not exists public.training_launches (
  id bigint generated always as identity primary key,
  run_id uuid not null references public.training_runs (id) on delete cascade,
  launcher text not null,
  -- The endpoint of the launch. It is polled, cancelled and billed there, also after the setting has changed.
  endpoint text check (length(endpoint) <= 500),
  external_job_id text unique,
  posted_at timestamptz not null default now(),
  -- When a worker last asked the launcher about it as a stray. Those with the oldest time are next.
  looked_at timestamptz,
  ended_at timestamptz,
  gpu_seconds numeric(12, 3)
);

-- Users that may have waiting jobs. Jobs of the newer queue without a user_id are under the zero uuid.
create table if not exists public.training_waiting_users (
  user_id uuid primary key,
  -- No waiting job of the user is older than this, in both queues.
  waits_since timestamptz not null,
  -- No live run of the user is older than this.
  lives_since timestamptz not null default '-infinity',
  -- When both times were last brought up to date.
  looked_at timestamptz not null default '-infinity'
);

-- The state of each endpoint as a worker last saw it: since when its machines have been starting without success, and
-- what is wrong there.
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
  -- The name of the base model; empty for the image.
  name text not null check (length(name) <= 300),
  endpoint text not null check (length(endpoint) <= 500),
  -- The users for whom it has failed since its last success, ten at most.
  user_ids uuid[] not null default '{}',
  error_code text,
  error_message text,
  failed_at timestamptz not null default now(),
  -- Null while the breaker is closed.
  opened_at timestamptz,
  times_opened int not null default 0,
  -- When one job may try again, and the run that tries.
  probe_at timestamptz,
  probe_run_id uuid,
  primary key (kind, name, endpoint)
);

-- Jobs that wait for a breaker. Claims skip them until held_until.
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
  -- How many runs it may hold, how many it holds, and how many live runs it allows each user (null: no limit).
  slots int not null,
  held int not null,
  max_per_user int,
  -- Why it is not ready, with the text of /readyz; null if it is.
  problem text,
  -- True for a single pass, for example from cron. Each pass has its own name and writes one row.
  single_pass boolean not null default false
);

-- The worker's terms (worker/lora_worker/money/terms.py): prices, speeds, sizes, limits. The table has one row. Each
-- worker writes it when it starts, so the numbers are maintained only in the worker's files.
create table if not exists public.training_terms (
  only_row boolean primary key default true check (only_row),
  document jsonb not null,
  written_by text not null,
  written_at timestamptz not null default now()
);

-- One row for each dataset that a worker reads, or has put off. It is deleted when the dataset is settled.
create table if not exists public.dataset_validations (
  dataset_id uuid primary key references public.datasets (id) on delete cascade,
  worker text not null,
  lease_token uuid not null default gen_random_uuid(),
  lease_expires_at timestamptz not null,
  -- How many workers have started to read it. The limit stops a file that crashes every worker that reads it.
  attempts int not null default 1,
  -- The dataset's updated_at at the claim. It shows whether the dataset was changed while the worker read it.
  dataset_updated_at timestamptz
);

-- Here and in the files that follow, every statement that locks a table is executed only if it would change
-- something. `create index if not exists`, `create or replace trigger` and `enable row level security` lock first: on
-- a database that is already migrated they would wait for every writer, and later writers would wait for them.
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
