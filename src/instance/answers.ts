/** From an actor's reply to what a client gets: nothing, or the problem that says why not. Pure. */
import * as Effect from "effect/Effect"
import type { InstanceId, VolumeId } from "../domain/Ids.ts"
import type { Transition, Verb } from "../domain/Instance.ts"
import {
  Busy,
  InstanceNotFound,
  InvalidState,
  PreconditionFailed,
  Unprocessable,
  VerbCancelled,
  VerbFailed,
  VolumeBusy,
  VolumeInUse
} from "../domain/problems.ts"
import { checkStep, type Failure } from "./Lifecycle.ts"
import type { Reply } from "./Reply.ts"

export const notFound = (id: InstanceId): InstanceNotFound =>
  new InstanceNotFound({ detail: `There is no instance '${id}'.`, instance_id: id })

export const verbFailed = (id: InstanceId, verb: Transition, failure: Failure): VerbFailed =>
  new VerbFailed({
    detail: `${verb} of '${id}' failed at the step '${failure.step}': ${failure.reason}`,
    instance_id: id,
    verb,
    step: failure.step
  })

const verbCancelled = (id: InstanceId, verb: Transition, by: Verb): VerbCancelled =>
  new VerbCancelled({ detail: `${verb} of '${id}' was cancelled by ${by}.`, instance_id: id, verb, by })

const moved = (id: InstanceId, generation: number): PreconditionFailed =>
  new PreconditionFailed({
    detail: `'${id}' is at generation ${generation} now: look at what changed, then send that with \`If-Match\`.`,
    instance_id: id,
    generation
  })

/** The reply to a create; only its own client asks. */
export const createAnswer = (
  id: InstanceId,
  reply: Reply
): Effect.Effect<void, VerbFailed | VerbCancelled | Busy> => {
  switch (reply._tag) {
    case "Reached":
      return Effect.void
    case "Failed":
      return Effect.fail(verbFailed(id, "create", reply.failure))
    case "Cancelled":
      return Effect.fail(verbCancelled(id, reply.verb, reply.by))
    case "Gone":
      return Effect.fail(verbCancelled(id, "create", "delete"))
    case "Moved":
      return Effect.die(new Error("a create expects no generation"))
    case "Denied":
    case "Impossible":
    case "Busy":
      return Effect.fail(new Busy({ detail: reply.reason }))
  }
}

/** A restore that its check refused: nothing failed, this host cannot do it as it is now. */
const isRefusal = (failure: Failure): boolean => failure.step === checkStep

/** The reply to a verb. */
export const verbAnswer = (
  id: InstanceId,
  verb: Verb | "attach" | "detach",
  reply: Reply
): Effect.Effect<
  void,
  InstanceNotFound | InvalidState | PreconditionFailed | Unprocessable | VerbFailed | VerbCancelled | Busy
> => {
  switch (reply._tag) {
    case "Reached":
      return Effect.void
    case "Denied":
      return Effect.fail(
        new InvalidState({
          detail: reply.reason,
          instance_id: id,
          state: reply.state,
          transition: reply.transition,
          verb,
          allowed: reply.allowed
        })
      )
    case "Impossible":
      return Effect.fail(new Unprocessable({ detail: reply.reason }))
    case "Failed":
      return Effect.fail(
        isRefusal(reply.failure)
          ? new Unprocessable({ detail: `'${id}' cannot be restored here: ${reply.failure.reason}` })
          : verbFailed(id, verb, reply.failure)
      )
    case "Cancelled":
      return Effect.fail(verbCancelled(id, reply.verb, reply.by))
    case "Gone":
      return verb === "delete" ? Effect.void : Effect.fail(notFound(id))
    case "Moved":
      return Effect.fail(moved(id, reply.generation))
    case "Busy":
      return Effect.fail(new Busy({ detail: reply.reason }))
  }
}

/** The reply to an attach or detach. A mount that is in use is the guest's to say, and the client's to end. */
export const attachmentAnswer = (
  id: InstanceId,
  volume: VolumeId,
  verb: "attach" | "detach",
  reply: Reply
): Effect.Effect<void, InstanceNotFound | InvalidState | VolumeBusy | VerbFailed | VerbCancelled | Busy> =>
  reply._tag === "Failed" && reply.failure.holders !== undefined
    ? Effect.fail(
        new VolumeBusy({
          detail: reply.failure.reason,
          volume_id: volume,
          instance_id: id,
          holders: reply.failure.holders
        })
      )
    : // Whether it can be at all was seen before it was asked: from here on this problem would be a defect.
      Effect.catchTag(verbAnswer(id, verb, reply), "Unprocessable", Effect.die)

/** The reply to the growth of a volume that a guest has mounted. */
export const growthAnswer = (
  id: InstanceId,
  volume: VolumeId,
  reply: Reply
): Effect.Effect<void, VolumeInUse | VerbFailed | Busy> => {
  switch (reply._tag) {
    case "Reached":
      return Effect.void
    case "Failed":
      return Effect.fail(verbFailed(id, "resize", reply.failure))
    case "Denied":
    case "Impossible":
      return Effect.fail(new VolumeInUse({ detail: reply.reason, volume_id: volume, instances: [id] }))
    case "Moved":
      return Effect.die(new Error("a growth expects no generation"))
    case "Cancelled":
    case "Gone":
      return Effect.fail(new Busy({ detail: `The instance '${id}' went off meanwhile; try again.` }))
    case "Busy":
      return Effect.fail(new Busy({ detail: reply.reason }))
  }
}

/** The reply to a change of an instance. It has no verb of the table: a denial names start, which its memory waits for. */
export const patchAnswer = (
  id: InstanceId,
  reply: Reply
): Effect.Effect<
  void,
  InstanceNotFound | InvalidState | PreconditionFailed | Unprocessable | VerbFailed | Busy
> => {
  switch (reply._tag) {
    case "Failed":
      return Effect.fail(verbFailed(id, "resize", reply.failure))
    case "Cancelled":
      return Effect.fail(
        verbFailed(id, "resize", { step: "memory", reason: `${reply.by} came before it was done.` })
      )
    default:
      return Effect.catchTag(verbAnswer(id, "start", reply), "VerbCancelled", () => Effect.void)
  }
}
