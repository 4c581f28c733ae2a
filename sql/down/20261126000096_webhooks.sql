-- Undoes 20261126000096_webhooks.sql.

do $down$
declare
  added record;
begin
  for added in
    select t.tgrelid::regclass as added_to from pg_trigger t join pg_proc p on p.oid = t.tgfoid
    where p.pronamespace = 'public'::regnamespace and p.proname = 'training_note_event' and t.tgname = p.proname
  loop
    execute format('drop trigger training_note_event on %s', added.added_to);
  end loop;
end
$down$;
drop function if exists public.training_webhook_state();
drop function if exists public.enable_webhook_endpoint(text);
drop function if exists public.replay_webhook_events(jsonb);
drop function if exists public.note_webhook_delivery(text, text, uuid, jsonb);
drop function if exists public.claim_webhook_deliveries(jsonb, int, int);
drop function if exists public.training_note_event();
drop table if exists public.training_webhook_deliveries;
drop table if exists public.training_webhook_events;
drop table if exists public.training_webhook_endpoints;
