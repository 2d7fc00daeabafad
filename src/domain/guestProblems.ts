/** What goes wrong inside a guest, or on the way into it (see problems.ts). */
import * as Schema from "effect/Schema"
import * as HttpApiError from "effect/http-api/HttpApiError"
import { InstanceId } from "./Ids.ts"
import { problemBase } from "./problems.ts"

const detail = Schema.String
const type = <const Name extends string>(name: Name) => `${problemBase}${name}` as const

/** The instance runs, and its guest's init has not answered yet, or does not answer any more. */
export class GuestNotReady extends HttpApiError.Problem<GuestNotReady>()(
  "GuestNotReady",
  { type: type("guest-not-ready"), status: 409, title: "The guest has not answered yet" },
  { detail, instance_id: InstanceId }
) {}

/** The guest understood and says why it does not: no such program, no such file, no such user, no room. */
export class GuestRefused extends HttpApiError.Problem<GuestRefused>()(
  "GuestRefused",
  { type: type("guest-refused"), status: 422, title: "The guest refuses that" },
  { detail, instance_id: InstanceId }
) {}

/** The connection to the guest ended, or it fell silent, before it was done. */
export class GuestLost extends HttpApiError.Problem<GuestLost>()(
  "GuestLost",
  { type: type("guest-lost"), status: 503, title: "The guest went away" },
  { detail, instance_id: InstanceId }
) {}
