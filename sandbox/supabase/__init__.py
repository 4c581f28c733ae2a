"""A Supabase project on this machine: PostgreSQL, `@supabase/lite` for REST, Auth and Storage, and a proxy before it.

`local` starts and stops them together. `postgres`, `node` and `proxy` are the parts, `rights` holds the grants that
hosted projects begin with, and `project` is what users of any project know: its address, keys and users.
"""

from sandbox.supabase.local import LocalSupabase

__all__ = ["LocalSupabase"]
