/**
 * How far a token reaches. Each scope includes those before it: `read` sees, `write` changes what is the caller's,
 * `admin` also what belongs to the host as a whole.
 */
import * as Schema from "effect/Schema"

export const Scope = Schema.Literals(["read", "write", "admin"]).annotate({ identifier: "Scope" })
export type Scope = typeof Scope.Type

const rank = (scope: string): number => Scope.literals.findIndex((known) => known === scope)

/** Whether one of the scopes reaches as far as is needed; names that are not known reach nowhere. */
export const grants = (scopes: ReadonlyArray<string>, needed: Scope): boolean =>
  scopes.some((scope) => rank(scope) >= rank(needed))
