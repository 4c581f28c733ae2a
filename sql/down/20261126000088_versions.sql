-- Undoes 20261126000088_versions.sql.

drop function if exists public.move_training_alias(jsonb);
drop function if exists public.training_alias_history(text);
drop function if exists public.list_training_aliases(text, uuid);
drop function if exists public.training_alias_entry(text);
drop function if exists public.training_has_adapter(uuid);
drop function if exists public.training_versions(jsonb);
drop function if exists public.training_version_entry(uuid, text, uuid, uuid, text, uuid, timestamptz, boolean);
drop function if exists public.training_version_figures(text, uuid, jsonb);
drop function if exists public.training_version_keys(uuid);
drop table if exists public.training_alias_moves;
drop table if exists public.training_aliases;
