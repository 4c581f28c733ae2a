-- Undoes 20261123000001_function_rights.sql: the procedure is only there where the last file was never applied.

drop procedure if exists public.training_set_function_rights(boolean);
