/**
 * POST /instances with an idempotency key: at most one instance for a key at any moment. An instance without an id of its
 * own is named after the key, so that an attempt which was cut off is known by its name: where the instance is there, it is
 * the answer; where not, nothing was made, or what was made has been deleted since, and it is made now. Of an id that the
 * client chose it cannot be told who made the instance that is there; then nothing is guessed.
 */
import { createHash } from "node:crypto"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { InstanceId } from "../domain/Ids.ts"
import type { CreateInstance, Instance } from "../domain/Instance.ts"
import type { Instances } from "../instance/Instances.ts"
import { Attempt } from "./idempotency.ts"
import { outcomeUnknown } from "./IdempotencyKeys.ts"

/** As many characters as the names that the service makes up, and a few more, since nobody tries another one. */
const nameLength = 12
/** How long an answer waits for an instance whose creation was resumed by a restart. */
const resumedMs = 120_000

const nameOf = (token: string): InstanceId => {
  const digest = BigInt(`0x${createHash("sha256").update(token).digest("hex")}`)
  return InstanceId.make(`vm-${digest.toString(36).slice(0, nameLength)}`)
}

/** Once its creation is over, however it ended. */
const settled = (instances: Instances["Service"], instance: Instance, started: boolean) =>
  instance.transition === "create"
    ? Effect.catchTag(
        instances.wait(instance.id, { state: started ? "Running" : "Created", timeoutMs: resumedMs }),
        "WaitTimeout",
        () => instances.get(instance.id)
      )
    : Effect.succeed(instance)

export const createOnce = Effect.fnUntraced(function* (
  instances: Instances["Service"],
  request: CreateInstance
) {
  const attempt = yield* Attempt
  if (attempt === null) return yield* instances.create(request)
  const id = request.id ?? nameOf(attempt.token)
  if (attempt.interrupted) {
    const found = yield* Effect.option(instances.get(id))
    if (Option.isSome(found)) {
      if (request.id !== undefined) return yield* outcomeUnknown
      const instance = yield* Effect.option(settled(instances, found.value, request.start))
      if (Option.isSome(instance)) return instance.value
    }
  }
  return yield* instances.create({ ...request, id })
})
