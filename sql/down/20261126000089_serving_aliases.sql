-- Undoes 20261126000089_serving_aliases.sql.

drop function if exists public.note_endpoint_release(text, jsonb);
drop function if exists public.claim_endpoint_release(text, int, int);
drop function if exists public.training_note_alias_changes(jsonb, jsonb, text);
drop function if exists public.training_alias_changes();
drop function if exists public.training_want_release();
drop trigger if exists training_keep_removed_alias on public.training_aliases;
drop function if exists public.training_keep_removed_alias();
drop table if exists public.training_endpoint_releases;
drop table if exists public.training_removed_aliases;
