-- Undoes 20261126000095_routing.sql. The functions that it replaced go with the files that made them.

drop function if exists public.withdraw_launch(uuid, uuid, int);
drop function if exists public.put_back_run(uuid, uuid, text, int);
drop function if exists public.begin_launch_2(uuid, uuid, text, text, jsonb, text, int);
drop function if exists public.training_places_of_runs(jsonb, jsonb);
drop function if exists public.training_places(jsonb, text, uuid);
drop function if exists public.training_breaker_seconds(public.training_breakers, uuid);
drop function if exists public.training_launches_at(text, uuid);
drop function if exists public.note_endpoint_2(text, text, text, text, boolean);
