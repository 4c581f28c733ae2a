"""A proxy in front of `@supabase/lite`, called the upstream server here, that makes it behave like a hosted project.

It changes the following, and passes all other requests and answers through without reading them as a whole:

1. a legacy HS256 key in the header `apikey` is verified and replaced by the matching `sb_…` key (`keys`);
2. an `sb_…` key that is repeated as a bearer token is dropped (`keys`);
3. timestamps in JSON answers become ISO 8601 (`rest`);
4. signed download URLs are written as the hosted Storage writes them (`storage`);
5. so are signed upload URLs, which also get the lifetime that the project sets (`storage`);
6. names, signed URLs and sizes that the real Storage refuses are refused with its answers (`storage_rules`);
7. lists are one folder deep and at most 1,500 rows long (`storage_lists`); requests for parts of objects are answered
   with 206 or 416 (`storage_ranges`); a resumable upload can be started and ended, but not sent (`resumable`);
8. errors of REST have the database's code, and the status that PostgREST gives it (`rest`); an expired legacy key gets
   the answer that PostgREST gives (`keys`);
9. if the sandbox says so, the next requests are answered with a gateway's page (`pages`).

Run as `python -m sandbox.supabase.proxy` with its settings as JSON in `LORA_SANDBOX_PROXY`.
"""
