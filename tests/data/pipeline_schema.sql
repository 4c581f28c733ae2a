-- The application's newer queue as its own migrations leave it: the columns that came later at the end, row
-- level security as there, and no trigger for updated_at. The foreign key to workbases is left out.

create table public.pipeline_training_jobs (
  id uuid primary key default gen_random_uuid(),
  user_id uuid references auth.users (id) on delete cascade,
  job_name text not null,
  status text not null default 'pending',
  training_sensitivity text not null default 'medium',
  training_progression text not null default 'medium',
  training_repetition int not null default 3,
  learning_rate float not null default 0.0001,
  batch_size int not null default 4,
  epochs int not null default 3,
  rank int not null default 16,
  alpha int default 32,
  dropout float default 0.05,
  dataset_id uuid references public.datasets (id),
  dataset_name text,
  dataset_file_path text,
  engine_id text not null,
  engine_name text not null,
  engine_features jsonb,
  gpu_type text not null default 'NVIDIA A40',
  gpu_count int not null default 1,
  estimated_cost decimal(10, 2),
  actual_cost decimal(10, 2),
  progress int default 0,
  current_epoch int default 0,
  current_step int default 0,
  total_steps int,
  current_loss float,
  current_learning_rate float,
  tokens_per_second float,
  runpod_job_id text,
  runpod_endpoint_id text,
  final_loss float,
  training_time_seconds int,
  adapter_file_path text,
  adapter_download_url text,
  created_at timestamptz default now(),
  started_at timestamptz,
  completed_at timestamptz,
  updated_at timestamptz default now(),
  error_message text,
  error_details jsonb,
  workbase_id uuid,
  hf_adapter_path text,
  deployment_log jsonb,
  adapter_status text default 'active' check (adapter_status in ('active', 'superseded', 'deleted')),
  created_by uuid references auth.users (id),
  updated_by uuid references auth.users (id)
);

alter table public.pipeline_training_jobs enable row level security;
create policy "owners read" on public.pipeline_training_jobs for select using (auth.uid() = user_id);
create policy "owners add" on public.pipeline_training_jobs for insert with check (auth.uid() = user_id);
create policy "owners change" on public.pipeline_training_jobs for update using (auth.uid() = user_id);

create table public.pipeline_training_metrics (
  id uuid primary key default gen_random_uuid(),
  job_id uuid not null references public.pipeline_training_jobs (id) on delete cascade,
  metric_id text not null,
  metric_name text not null,
  metric_level text not null check (metric_level in ('universal', 'domain', 'specialized')),
  value float not null,
  unit text,
  measured_at timestamptz default now(),
  measurement_version text,
  measurement_method text,
  step_number int,
  epoch_number int,
  raw_data jsonb
);

alter table public.pipeline_training_metrics enable row level security;
create policy "owners read through the job" on public.pipeline_training_metrics for select using (
  exists (select from public.pipeline_training_jobs j where j.id = job_id and j.user_id = auth.uid())
);

-- The webhook that deploys an adapter, as a table of its calls: any update whose new row is completed and
-- has its archive.
create table public.deploy_webhook_calls (job_id uuid not null, user_id uuid, called_at timestamptz default now());

create function public.call_deploy_webhook() returns trigger language plpgsql as $$
begin
  insert into public.deploy_webhook_calls (job_id, user_id) values (new.id, new.user_id);
  return null;
end
$$;

create trigger call_deploy_webhook after update on public.pipeline_training_jobs for each row
when (new.status = 'completed' and new.adapter_file_path is not null and new.user_id is not null)
execute function public.call_deploy_webhook();
