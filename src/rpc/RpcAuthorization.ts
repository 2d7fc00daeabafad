/**
 * What happens to a call before its handler sees it: its token is checked, and what should never happen becomes a problem.
 * Definitions only.
 *
 * The token is the call's own `authorization` header, or that of the request that carries the call. It is never part of a
 * URL, which proxies and browsers write down, nor a WebSocket subprotocol, which the server would have to repeat: a
 * browser, which cannot set headers of a WebSocket, puts it into each call.
 */
import * as Context from "effect/Context"
import * as Schema from "effect/Schema"
import * as RpcMiddleware from "effect/rpc/RpcMiddleware"
import { Forbidden, InternalError, Unauthorized } from "../domain/problems.ts"
import type { Scope } from "../domain/Scope.ts"

/** The least scope that a call takes. */
export const RpcScope = Context.Reference<Scope>("dataplane/rpc/RpcScope", { defaultValue: () => "write" })

export class RpcAuthorization extends RpcMiddleware.Service<RpcAuthorization>()(
  "dataplane/rpc/RpcAuthorization",
  { error: Schema.Union([Unauthorized, Forbidden]) }
) {}

/** A defect is reported by the service and told without its cause. */
export class RpcDefects extends RpcMiddleware.Service<RpcDefects>()("dataplane/rpc/RpcDefects", {
  error: InternalError
}) {}
