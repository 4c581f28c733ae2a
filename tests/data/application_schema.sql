-- The application's own tables for training, as its committed migrations make them: names, types, defaults
-- and row level security. Three tables have no security there. Where those files leave something open
-- (indexes, what a deleted row does to others), it is as in our first migration.

create function public.update_updated_at_column() returns trigger language plpgsql as $$
begin
  new.updated_at = now();
  return new;
end
$$;

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
  total_training_pairs integer,
  total_validation_pairs integer,
  total_tokens bigint,
  avg_turns_per_conversation decimal(10, 2),
  avg_tokens_per_turn decimal(10, 2),
  training_ready boolean default false,
  validated_at timestamptz,
  validation_errors jsonb,
  sample_data jsonb,
  created_at timestamptz default now(),
  updated_at timestamptz default now(),
  deleted_at timestamptz,
  created_by uuid,
  updated_by uuid
);
create index idx_datasets_user_id on public.datasets (user_id);
create index idx_datasets_status on public.datasets (status);
alter table public.datasets enable row level security;
create policy "Users can view own datasets" on public.datasets for select using (auth.uid() = user_id);
create policy "Users can create own datasets" on public.datasets for insert with check (auth.uid() = user_id);
create policy "Users can update own datasets" on public.datasets for update using (auth.uid() = user_id);
create trigger update_datasets_updated_at before update on public.datasets
  for each row execute function public.update_updated_at_column();

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
  current_epoch integer default 0,
  total_epochs integer not null,
  current_step integer default 0,
  total_steps integer,
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
  retry_count integer default 0,
  external_job_id varchar(255) unique,
  artifact_id uuid,
  created_at timestamptz default now(),
  updated_at timestamptz default now()
);
create index idx_training_jobs_user_id on public.training_jobs (user_id);
create index idx_training_jobs_status on public.training_jobs (status);
create index idx_training_jobs_dataset_id on public.training_jobs (dataset_id);
alter table public.training_jobs enable row level security;
create policy "Users can view own training jobs" on public.training_jobs for select using (auth.uid() = user_id);
create policy "Users can create own training jobs" on public.training_jobs
  for insert with check (auth.uid() = user_id);
create trigger update_training_jobs_updated_at before update on public.training_jobs
  for each row execute function public.update_updated_at_column();

create table public.metrics_points (
  id uuid primary key default gen_random_uuid(),
  job_id uuid not null references public.training_jobs (id) on delete cascade,
  timestamp timestamptz default now(),
  epoch integer not null,
  step integer not null,
  training_loss decimal(10, 6) not null,
  validation_loss decimal(10, 6),
  learning_rate decimal(12, 10) not null,
  gradient_norm decimal(10, 6),
  throughput decimal(10, 2),
  gpu_utilization decimal(5, 2)
);
create index idx_metrics_points_job_id on public.metrics_points (job_id);
create index idx_metrics_points_timestamp on public.metrics_points (job_id, timestamp desc);

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
create index idx_model_artifacts_user_id on public.model_artifacts (user_id);
create index idx_model_artifacts_dataset_id on public.model_artifacts (dataset_id);
alter table public.model_artifacts enable row level security;
create policy "Users can view own models" on public.model_artifacts for select using (auth.uid() = user_id);
create trigger update_model_artifacts_updated_at before update on public.model_artifacts
  for each row execute function public.update_updated_at_column();
alter table public.training_jobs add constraint fk_training_jobs_artifact
  foreign key (artifact_id) references public.model_artifacts (id) on delete set null;

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
create index idx_cost_records_user_id on public.cost_records (user_id);
create index idx_cost_records_job_id on public.cost_records (job_id);

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
create index idx_notifications_user_id on public.notifications (user_id);
