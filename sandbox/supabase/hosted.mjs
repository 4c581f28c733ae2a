// Loaded into @supabase/lite before it starts, for what hosted projects do otherwise and no proxy can tell from outside:
// errors keep their SQLSTATE, nothing is granted at the first request, and statements have the time limits of their role.
import { pathToFileURL } from "node:url";

const modules = process.env.LORA_SANDBOX_NODE_MODULES;
const load = (path) => import(pathToFileURL(`${modules}/${path}`).href);

const { default: postgres } = await load("postgres/src/index.js");
const { sql } = await load("kysely/dist/esm/index.js");
const { PostgresConnection } = await load("@supabase/lite/dist/db/postgres/PostgresConnection.js");

// Codes that lite does not map become the error's text; the proxy reads the code from there.
postgres.PostgresError.prototype.toString = function () {
   const { code, message, detail, hint } = this;
   return `PostgresError: ${JSON.stringify({ code, message, details: detail ?? null, hint: hint ?? null })}`;
};

// It would make the roles and grant them every table; `sandbox.supabase` has made them, with a project's own grants.
PostgresConnection.prototype.ensureRlsContext = async function () {
   this.rlsState = "active";
   return true;
};

// PostgREST sets what the caller's role is limited to; service_role has no limits of its own and has the
// authenticator's.
const limits = JSON.parse(process.env.LORA_SANDBOX_STATEMENT_SECONDS);
const apply = PostgresConnection.prototype.applyJwtSessionContext;
PostgresConnection.prototype.applyJwtSessionContext = async function (transaction, context, ...rest) {
   await apply.call(this, transaction, context, ...rest);
   const seconds = limits[context.auth?.role || "anon"] ?? limits.authenticator;
   await sql`select set_config('statement_timeout', ${`${seconds}s`}, true),
                    set_config('lock_timeout', ${`${limits.authenticator}s`}, true)`.execute(transaction);
};
