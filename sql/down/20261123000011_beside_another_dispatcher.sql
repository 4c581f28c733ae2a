-- Undoes 20261123000011_beside_another_dispatcher.sql.

drop trigger if exists training_keep_job on public.training_jobs;
do $down$
begin
  if to_regclass('public.pipeline_training_jobs') is not null then
    drop trigger if exists training_keep_job on public.pipeline_training_jobs;
  end if;
end
$down$;
drop trigger if exists training_drop_foreign_row on public.metrics_points;
drop trigger if exists training_drop_foreign_row on public.cost_records;
drop trigger if exists training_drop_foreign_row on public.notifications;
drop function if exists public.training_keep_job();
drop function if exists public.training_drop_foreign_row();
drop function if exists public.training_is_ours(uuid, text);
