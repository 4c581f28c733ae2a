-- What a training has brought, in figures: how base model and adapter compare on held-out conversations, that the adapter
-- is applied, and the name under which it answers. No text of a dataset is among them.

do $migration$
begin
  -- Looked up first: `add column if not exists` locks the table even where there is nothing to add.
  if not exists (select from pg_attribute where attrelid = 'public.training_runs'::regclass and attname = 'measured') then
    alter table public.training_runs add column measured jsonb;
  end if;
end
$migration$;

-- Notes what a run has brought. The caller has locked it and has just settled its job as completed.
-- measured: {evaluation, application, serving_name, method, dataset_sha256, reward_accuracy},
-- each null where it is not known.
-- figures: [{id, name, value, unit, raw}]. The older queue has them in its model's quality_metrics. The newer one gets a
-- row of each, which its metrics page reads: of the whole training, so without a step. They replace those of the same
-- method only; the curve's rows (`training_log`) and the application's own evaluations stay, and no writing of a curve
-- touches these.
create or replace function public.training_note_measured(run_id uuid, measured jsonb, figures jsonb) returns void
language plpgsql set search_path = '' as $$
#variable_conflict use_column
declare
  run public.training_runs;
begin
  update public.training_runs r set measured = nullif(training_note_measured.measured, 'null')
  where r.id = training_note_measured.run_id
  returning * into run;
  if run.queue <> 'pipeline_training_jobs' or to_regclass('public.pipeline_training_metrics') is null
     or jsonb_typeof(training_note_measured.figures) is distinct from 'array' then
    return;
  end if;
  delete from public.pipeline_training_metrics m
  where m.job_id = run.job_id and m.measurement_method = 'base_comparison';
  insert into public.pipeline_training_metrics (job_id, metric_id, metric_name, metric_level, value, unit, measured_at,
                                                measurement_version, measurement_method, raw_data)
  -- The page sorts by time, so that of each row is a microsecond after the one before.
  select run.job_id, f->>'id', f->>'name', 'universal', (f->>'value')::double precision, f->>'unit',
         now() + x.place * interval '1 microsecond', '1', 'base_comparison', f->'raw'
  from jsonb_array_elements(training_note_measured.figures) with ordinality x (f, place)
  order by x.place;
end
$$;

revoke all on function public.training_note_measured(uuid, jsonb, jsonb) from public, anon, authenticated, service_role;
