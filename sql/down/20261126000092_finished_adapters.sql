-- Undoes 20261126000092_finished_adapters.sql.

drop function if exists public.training_finished_adapters();
