"""What stands in front of the lightweight Supabase so that the official clients work unchanged.

It does five things and passes everything else through, bodies streaming:

1. a legacy HS256 key sent as `apikey` is verified and swapped for the matching `sb_…` key (`keys`);
2. an `sb_…` key repeated as a bearer token is dropped (`keys`);
3. timestamps in JSON answers become ISO 8601 (`rest`);
4. signed download URLs get the spelling of the hosted Storage (`storage`);
5. signed upload URLs too (`storage`).

Run as `python -m sandbox.proxy` with its settings as JSON in `LORA_SANDBOX_PROXY`.
"""
