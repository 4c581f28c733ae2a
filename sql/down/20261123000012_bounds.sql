-- Undoes 20261123000012_bounds.sql.

do $down$
declare
  bounded text;
begin
  foreach bounded in array array['training_jobs', 'pipeline_training_jobs', 'datasets'] loop
    if to_regclass('public.' || bounded) is not null then
      execute format('drop trigger if exists training_bound_row on public.%I', bounded);
    end if;
  end loop;
end
$down$;
drop function if exists public.training_bound_row();
