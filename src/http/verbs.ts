/** What a request for a verb or a wait comes to, by whichever door it came in: REST or RPC. */
import * as Effect from "effect/Effect"
import { waitDefaultMs } from "../api/Instances.ts"
import type { InstanceId } from "../domain/Ids.ts"
import type { InstanceState } from "../domain/Instance.ts"
import { InsufficientMemory, InvalidRequest, Unprocessable } from "../domain/problems.ts"
import type { Instances } from "../instance/Instances.ts"

/** Only start and restore ask something of the host; from another verb these problems would be a defect. */
export const neverLaunches = <A, E, R>(effect: Effect.Effect<A, E | InsufficientMemory | Unprocessable, R>) =>
  Effect.catchIf(
    effect,
    (problem) => problem instanceof InsufficientMemory || problem instanceof Unprocessable,
    (problem) => Effect.die(problem)
  )

const nothingToWaitFor = new InvalidRequest({
  detail: "Say what to wait for: `state=Running` (or another state), `ready=true`, or both."
})

export interface WaitRequest {
  readonly state?: InstanceState
  readonly ready?: boolean
  readonly timeout_ms?: number
}

export const waitFor = Effect.fnUntraced(function* (
  instances: Instances["Service"],
  id: InstanceId,
  { state, ready, timeout_ms: timeoutMs = waitDefaultMs }: WaitRequest
) {
  if (state === undefined && ready !== true) return yield* nothingToWaitFor
  return yield* instances.wait(id, {
    ...(state === undefined ? {} : { state }),
    ...(ready === undefined ? {} : { ready }),
    timeoutMs
  })
})
