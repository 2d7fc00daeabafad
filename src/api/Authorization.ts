/**
 * Who may call: a bearer token, HS256 under JWT_SECRET, with `exp` and `scope` (`Token.ts`). Where the service has no
 * JWT_SECRET, it asks for none. What a call takes is said beside its endpoint, or follows from its method.
 */
import * as Context from "effect/Context"
import type * as HttpApiEndpoint from "effect/http-api/HttpApiEndpoint"
import * as HttpApiMiddleware from "effect/http-api/HttpApiMiddleware"
import * as HttpApiSecurity from "effect/http-api/HttpApiSecurity"
import * as OpenApi from "effect/http-api/OpenApi"
import { Forbidden, Unauthorized } from "../domain/problems.ts"
import type { Scope } from "../domain/Scope.ts"

/** Annotates an endpoint whose scope does not follow from its method, such as a GET that becomes a terminal. */
export class RequiredScope extends Context.Service<RequiredScope, Scope>()("dataplane/api/RequiredScope") {}

/** The least scope that an endpoint takes: `read` for GET, `write` for what changes something, unless it says so. */
export const requiredScope = (endpoint: Pick<HttpApiEndpoint.Top, "method" | "annotations">): Scope =>
  Context.getOrUndefined(endpoint.annotations, RequiredScope) ??
  (endpoint.method === "GET" ? "read" : "write")

export class Authorization extends HttpApiMiddleware.Service<Authorization>()("dataplane/api/Authorization", {
  error: [Unauthorized, Forbidden],
  security: {
    bearer: HttpApiSecurity.bearer.pipe(
      HttpApiSecurity.annotateMerge(
        OpenApi.annotations({
          description:
            "A JWT signed with HS256 under JWT_SECRET. `exp` and `scope` are required; each operation names the least of `read`, `write` and `admin` that it takes, and each includes those before it. A service without JWT_SECRET asks for no token.",
          format: "JWT"
        })
      )
    )
  }
}) {}
