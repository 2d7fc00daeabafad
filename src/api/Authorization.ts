/**
 * Who may call: a bearer token, HS256 under JWT_SECRET, with `exp` and a `scope`. Where the service has no JWT_SECRET,
 * it asks for none.
 */
import * as Context from "effect/Context"
import * as OpenApi from "effect/http-api/OpenApi"
import * as HttpApiMiddleware from "effect/http-api/HttpApiMiddleware"
import * as HttpApiSecurity from "effect/http-api/HttpApiSecurity"
import { Forbidden, Unauthorized } from "../domain/problems.ts"

/** Annotates a GET that changes something all the same: it takes the scope of a write. */
export const Writes = Context.Reference<boolean>("dataplane/api/Writes", { defaultValue: () => false })

export class Authorization extends HttpApiMiddleware.Service<Authorization>()("dataplane/api/Authorization", {
  error: [Unauthorized, Forbidden],
  security: {
    bearer: HttpApiSecurity.bearer.pipe(
      HttpApiSecurity.annotateMerge(
        OpenApi.annotations({
          description:
            "A JWT signed with HS256 under JWT_SECRET. `exp` is required; `scope` is `read` (GET), `write` or `admin` (everything). A service without JWT_SECRET asks for no token.",
          format: "JWT"
        })
      )
    )
  }
}) {}
