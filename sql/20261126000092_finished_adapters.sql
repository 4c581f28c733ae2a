-- What an endpoint that answers has to have room for: how many adapters finished jobs have made.

-- Returns the adapters that can still be called, by base model, rank and whether they are trained with DoRA, which vLLM
-- refuses: [{base_model, rank, use_dora, adapters}], the most frequent first and 100 at most. Deleted adapters don't
-- count, nor those whose job is gone. The hyperparameters are those of the launch: a job's row may say something else since.
create or replace function public.training_finished_adapters() returns jsonb
language sql stable security definer set search_path = '' as $$
  select coalesce(jsonb_agg(jsonb_build_object(
    'base_model', g.base_model, 'rank', g.rank, 'use_dora', g.use_dora, 'adapters', g.adapters)
    order by g.adapters desc, g.base_model, g.rank, g.use_dora), '[]')
  from (
    select f.base_model, f.rank, f.use_dora, count(*) as adapters
    from (
      select distinct on (r.job_id) left(r.base_model, 300) as base_model,
        coalesce(public.training_number(h.chosen->'rank', 1, 100000),
                 public.training_number(h.chosen->'lora_rank', 1, 100000), 16)::int as rank,
        coalesce(h.chosen->>'use_dora', '') = 'true' as use_dora
      from public.training_runs r
      -- As training_has_adapter, but the versions of all users are read once, not again for each run.
      join public.training_version_keys(null) k on k.id = r.id and not k.is_deleted,
      lateral (select r.launched_with->'hyperparameters' as chosen) h
      where r.status = 'succeeded' and r.settled_as = 'completed' and r.base_model is not null
      order by r.job_id, r.attempt desc
    ) f
    group by f.base_model, f.rank, f.use_dora
    order by count(*) desc, f.base_model, f.rank, f.use_dora
    limit 100
  ) g
$$;

revoke all on function public.training_finished_adapters() from public, anon, authenticated, service_role;
grant execute on function public.training_finished_adapters() to service_role;
