-- Undoes 20261126000040_costs_and_budgets.sql. The functions that it replaced go with the files that made them.

drop function if exists public.training_budget_state();
drop function if exists public.remove_training_budget(uuid);
drop function if exists public.set_training_budget(uuid, numeric);
drop function if exists public.training_fits_budget(text, uuid);
drop function if exists public.training_may_cost(text, uuid);
drop function if exists public.training_spending(uuid);
drop function if exists public.training_budget(uuid);
drop function if exists public.training_failures(timestamptz);
drop function if exists public.training_costs(timestamptz, timestamptz, text);
drop function if exists public.training_bills(timestamptz);
drop function if exists public.training_bill_details(public.cost_records);
drop index if exists public.training_runs_ended_idx;
drop index if exists public.cost_records_billing_period_idx;
drop table if exists public.training_erased_costs;
drop table if exists public.training_reservations;
drop table if exists public.training_budgets;
