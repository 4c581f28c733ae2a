// Loaded into @supabase/lite before it starts. Changes what differs from hosted projects and a proxy can't correct:
// errors keep their SQLSTATE, the first request grants nothing, and statements have the time limits of their role.
import { pathToFileURL } from "node:url";

const modules = process.env.LORA_SANDBOX_NODE_MODULES;
const load = (path) => import(pathToFileURL(`${modules}/${path}`).href);

const { default: postgres } = await load("postgres/src/index.js");
const { sql } = await load("kysely/dist/esm/index.js");
const { PostgresConnection } = await load("@supabase/lite/dist/db/postgres/PostgresConnection.js");

// lite shows an error whose code it does not know only as a text. With this text the proxy can read the code.
postgres.PostgresError.prototype.toString = function () {
   const { code, message, detail, hint } = this;
   return `PostgresError: ${JSON.stringify({ code, message, details: detail ?? null, hint: hint ?? null })}`;
};

// lite would create the roles and grant them all tables. `sandbox.supabase` has already created them, with the grants of a
// project.
PostgresConnection.prototype.ensureRlsContext = async function () {
   this.rlsState = "active";
   return true;
};

// PostgREST sets the time limits of the caller's role. service_role has none of its own, so it gets the authenticator's.
const limits = JSON.parse(process.env.LORA_SANDBOX_STATEMENT_SECONDS);
const apply = PostgresConnection.prototype.applyJwtSessionContext;
PostgresConnection.prototype.applyJwtSessionContext = async function (transaction, context, ...rest) {
   await apply.call(this, transaction, context, ...rest);
   const seconds = limits[context.auth?.role || "anon"] ?? limits.authenticator;
   await sql`select set_config('statement_timeout', ${`${seconds}s`}, true),
                    set_config('lock_timeout', ${`${limits.authenticator}s`}, true)`.execute(transaction);
};
