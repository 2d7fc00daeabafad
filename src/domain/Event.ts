/** One outward change of an instance, as GET /events tells it. */
import * as Schema from "effect/Schema"
import { Generation, InstanceId, Timestamp } from "./Ids.ts"
import { InstanceExit, InstanceState, Transition } from "./Instance.ts"

export const InstanceEvent = Schema.Struct({
  /** Grows by one with every event of this host, also over restarts: the cursor. */
  id: Schema.Int,
  time: Timestamp,
  type: Schema.Literals(["instance.created", "instance.changed", "instance.deleted"]),
  instance_id: InstanceId,
  generation: Generation,
  from: Schema.NullOr(InstanceState),
  to: Schema.NullOr(InstanceState),
  transition: Schema.NullOr(Transition),
  ready: Schema.Boolean,
  exit: Schema.NullOr(InstanceExit)
}).annotate({ identifier: "InstanceEvent" })
export type InstanceEvent = typeof InstanceEvent.Type
