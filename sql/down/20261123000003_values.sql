-- Undoes 20261123000003_values.sql.

drop function if exists public.training_bound_row();
drop function if exists public.training_name_faults(jsonb);
drop function if exists public.training_text_fault(text, int);
drop function if exists public.training_json_fault(jsonb, int);
drop function if exists public.training_number(jsonb, numeric, numeric);
drop function if exists public.training_decoded(jsonb);
