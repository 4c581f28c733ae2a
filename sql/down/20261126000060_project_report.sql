-- Undoes 20261126000060_project_report.sql.

drop function if exists public.training_project_report();
drop function if exists public.training_other_dispatchers();
drop function if exists public.training_callers(oid);
