"""What stands in front of the lightweight Supabase so that the official clients work unchanged.

It does these things and passes everything else through, bodies streaming:

1. a legacy HS256 key sent as `apikey` is verified and swapped for the matching `sb_…` key (`keys`);
2. an `sb_…` key repeated as a bearer token is dropped (`keys`);
3. timestamps in JSON answers become ISO 8601 (`rest`);
4. signed download URLs get the spelling of the hosted Storage (`storage`);
5. signed upload URLs too, and the lifetime that the project gives them (`storage`);
6. names, signed URLs and sizes that the real Storage refuses are refused in its words (`storage_rules`);
7. lists are one folder deep and at most 1,500 rows long (`storage_lists`), parts of objects are 206 or 416
   (`storage_ranges`), and a resumable upload can be begun and ended, though none can be sent (`resumable`);
8. errors of REST have the database's code, and the status that PostgREST gives it (`rest`); a legacy key whose time is
   over is told so (`keys`);
9. for as many requests as the sandbox says, a gateway's page comes instead (`pages`).

Run as `python -m sandbox.supabase.proxy` with its settings as JSON in `LORA_SANDBOX_PROXY`.
"""
