-- Notices to operators (mail, chat, webhook) are sent by the workers themselves. Each notice about a lasting condition, such
-- as an open breaker that every worker sees, has a key; a worker claims it here before it sends it, so that of several
-- workers one tells it, and tells it again only after a while.

create table if not exists public.training_operator_notices (
  key text primary key check (length(key) <= 300),
  claimed_at timestamptz not null default now()
);

do $migration$
begin
  if not (select c.relrowsecurity from pg_class c where c.oid = 'public.training_operator_notices'::regclass) then
    alter table public.training_operator_notices enable row level security;
  end if;
end
$migration$;

revoke all on public.training_operator_notices from public, anon, authenticated, service_role;
grant select on public.training_operator_notices to service_role;

-- Whether the caller is to tell a notice now: true for the first who asks, and again when again_seconds have passed.
-- Keys that nobody has claimed for a month are forgotten.
create or replace function public.claim_operator_notice(notice_key text, again_seconds int) returns boolean
language plpgsql security definer set search_path = '' as $$
declare
  claimed boolean;
begin
  insert into public.training_operator_notices as n (key, claimed_at)
  select left(claim_operator_notice.notice_key, 300), now()
  where claim_operator_notice.notice_key <> '' and claim_operator_notice.again_seconds > 0
  on conflict (key) do update set claimed_at = now()
  where n.claimed_at <= now() - make_interval(secs => claim_operator_notice.again_seconds);
  claimed := found;
  if claimed then
    delete from public.training_operator_notices n where n.key in (
      select o.key from public.training_operator_notices o
      where o.claimed_at < now() - interval '30 days' limit 100 for update skip locked);
  end if;
  return claimed;
end
$$;

revoke all on function public.claim_operator_notice(text, int) from public, anon, authenticated, service_role;
grant execute on function public.claim_operator_notice(text, int) to service_role;
