-- Undoes 20261126000050_operator_notices.sql.

drop function if exists public.claim_operator_notice(text, int);
drop table if exists public.training_operator_notices;
