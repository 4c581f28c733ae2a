-- Creates the application's tables where they are missing. A table that exists is not changed at all. Needs Postgres
-- 15 or newer and Supabase's schema `auth`, and no extension.

do $migration$
declare
  made text[] := '{}';
  made_table text;
begin
  if to_regclass('public.datasets') is null then
    made := made || 'datasets'::text;
    create table public.datasets (
      id uuid primary key default gen_random_uuid(),
      user_id uuid not null references auth.users (id) on delete cascade,
      name varchar(200) not null,
      description text,
      format varchar(50) default 'brightrun_lora_v4',
      status varchar(50) default 'uploading',
      storage_bucket varchar(100) default 'lora-datasets',
      storage_path text not null unique,
      file_name varchar(255) not null,
      file_size bigint not null,
      total_training_pairs int,
      total_validation_pairs int,
      total_tokens bigint,
      avg_turns_per_conversation decimal(10, 2),
      avg_tokens_per_turn decimal(10, 2),
      training_ready boolean default false,
      validated_at timestamptz,
      validation_errors jsonb,
      error_message text,
      sample_data jsonb,
      created_at timestamptz default now(),
      updated_at timestamptz default now(),
      deleted_at timestamptz
    );
    create index datasets_user_id_idx on public.datasets (user_id);
    create index datasets_status_idx on public.datasets (status);
    create policy "owners read their datasets" on public.datasets
      for select using (auth.uid() = user_id);
    create policy "owners add datasets" on public.datasets
      for insert with check (auth.uid() = user_id);
    create policy "owners change their datasets" on public.datasets
      for update using (auth.uid() = user_id);
  end if;

  if to_regclass('public.training_jobs') is null then
    made := made || 'training_jobs'::text;
    create table public.training_jobs (
      id uuid primary key default gen_random_uuid(),
      user_id uuid not null references auth.users (id) on delete cascade,
      dataset_id uuid not null references public.datasets (id) on delete restrict,
      preset_id varchar(50) not null,
      hyperparameters jsonb not null,
      gpu_config jsonb not null,
      status varchar(50) default 'queued',
      current_stage varchar(50) default 'queued',
      progress decimal(5, 2) default 0,
      current_epoch int default 0,
      total_epochs int not null,
      current_step int default 0,
      total_steps int,
      current_metrics jsonb,
      queued_at timestamptz default now(),
      started_at timestamptz,
      completed_at timestamptz,
      estimated_completion_at timestamptz,
      current_cost decimal(10, 2) default 0,
      estimated_total_cost decimal(10, 2) not null,
      final_cost decimal(10, 2),
      error_message text,
      error_stack text,
      retry_count int default 0,
      external_job_id varchar(255) unique,
      artifact_id uuid,
      created_at timestamptz default now(),
      updated_at timestamptz default now()
    );
    create index training_jobs_user_id_idx on public.training_jobs (user_id);
    create index training_jobs_status_idx on public.training_jobs (status);
    create index training_jobs_dataset_id_idx on public.training_jobs (dataset_id);
    create policy "owners read their jobs" on public.training_jobs
      for select using (auth.uid() = user_id);
    create policy "owners add jobs" on public.training_jobs
      for insert with check (auth.uid() = user_id);
  end if;

  if to_regclass('public.metrics_points') is null then
    made := made || 'metrics_points'::text;
    create table public.metrics_points (
      id uuid primary key default gen_random_uuid(),
      job_id uuid not null references public.training_jobs (id) on delete cascade,
      timestamp timestamptz default now(),
      epoch int not null,
      step int not null,
      training_loss decimal(10, 6) not null,
      validation_loss decimal(10, 6),
      learning_rate decimal(12, 10) not null,
      gradient_norm decimal(10, 6),
      throughput decimal(10, 2),
      gpu_utilization decimal(5, 2)
    );
    create index metrics_points_job_id_idx on public.metrics_points (job_id);
    create index metrics_points_job_id_timestamp_idx on public.metrics_points (job_id, timestamp desc);
  end if;

  if to_regclass('public.model_artifacts') is null then
    made := made || 'model_artifacts'::text;
    create table public.model_artifacts (
      id uuid primary key default gen_random_uuid(),
      user_id uuid not null references auth.users (id) on delete cascade,
      job_id uuid not null unique references public.training_jobs (id) on delete restrict,
      dataset_id uuid not null references public.datasets (id) on delete restrict,
      name varchar(200) not null,
      version varchar(50) default '1.0.0',
      description text,
      status varchar(50) default 'stored',
      deployed_at timestamptz,
      quality_metrics jsonb not null,
      training_summary jsonb not null,
      configuration jsonb not null,
      artifacts jsonb not null,
      parent_model_id uuid references public.model_artifacts (id) on delete set null,
      created_at timestamptz default now(),
      updated_at timestamptz default now(),
      deleted_at timestamptz
    );
    create index model_artifacts_user_id_idx on public.model_artifacts (user_id);
    create index model_artifacts_dataset_id_idx on public.model_artifacts (dataset_id);
    create policy "owners read their artifacts" on public.model_artifacts
      for select using (auth.uid() = user_id);
    if not exists (
      select from pg_constraint
      where conrelid = 'public.training_jobs'::regclass and confrelid = 'public.model_artifacts'::regclass
    ) then
      alter table public.training_jobs add constraint training_jobs_artifact_id_fkey
        foreign key (artifact_id) references public.model_artifacts (id) on delete set null;
    end if;
  end if;

  if to_regclass('public.cost_records') is null then
    made := made || 'cost_records'::text;
    create table public.cost_records (
      id uuid primary key default gen_random_uuid(),
      user_id uuid not null references auth.users (id) on delete cascade,
      job_id uuid references public.training_jobs (id) on delete set null,
      cost_type varchar(50) not null,
      amount decimal(10, 2) not null,
      details jsonb,
      billing_period date not null,
      recorded_at timestamptz default now()
    );
    create index cost_records_user_id_idx on public.cost_records (user_id);
    create index cost_records_job_id_idx on public.cost_records (job_id);
  end if;

  if to_regclass('public.notifications') is null then
    made := made || 'notifications'::text;
    create table public.notifications (
      id uuid primary key default gen_random_uuid(),
      user_id uuid not null references auth.users (id) on delete cascade,
      type varchar(50) not null,
      title varchar(200) not null,
      message text not null,
      priority varchar(20) default 'medium',
      read boolean default false,
      action_url text,
      metadata jsonb,
      created_at timestamptz default now()
    );
    create index notifications_user_id_idx on public.notifications (user_id);
  end if;

  foreach made_table in array made loop
    -- This comment tells later migrations and sql/down/ that the table was created here.
    execute format('comment on table public.%I is %L', made_table, 'Made by lora-worker');
    execute format('alter table public.%I enable row level security', made_table);
  end loop;
end
$migration$;

-- Sets updated_at at each update of the tables above, unless the application has a trigger for that.
create or replace function public.training_touch_updated_at() returns trigger
language plpgsql set search_path = '' as $$
begin
  new.updated_at := now();
  return new;
end
$$;

do $migration$
declare
  touched text;
begin
  foreach touched in array array['datasets', 'training_jobs', 'model_artifacts'] loop
    if not exists (
      select from pg_trigger
      where tgrelid = format('public.%I', touched)::regclass and not tgisinternal
    ) then
      execute format(
        'create trigger training_touch_updated_at before update on public.%I
         for each row execute function public.training_touch_updated_at()', touched);
    end if;
  end loop;
end
$migration$;

-- Creates the buckets that are missing, if the database has Storage.
do $migration$
begin
  if to_regclass('storage.buckets') is not null then
    insert into storage.buckets (id, name, public, file_size_limit, allowed_mime_types)
    values
      ('lora-datasets', 'lora-datasets', false, 524288000,
        array['application/json', 'application/x-jsonlines', 'text/plain']),
      ('training-files', 'training-files', false, 52428800,
        array['application/json', 'application/x-ndjson']),
      ('lora-models', 'lora-models', false, 5368709120,
        array['application/octet-stream', 'application/x-tar', 'application/gzip', 'application/json'])
    on conflict do nothing;
  end if;
end
$migration$;

call public.training_set_function_rights(open => false);
