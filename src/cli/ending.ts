/** Waiting until an instance has ended, and what its end says to a script. */
import { constants } from "node:os"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import type { InstanceId } from "../domain/Ids.ts"
import type { Instance, InstanceState } from "../domain/Instance.ts"
import { exitCodes, Failure, failure } from "./Failure.ts"
import { followEvents } from "./following.ts"
import type { Remote } from "./Remote.ts"
import { printable } from "./text.ts"

const over: ReadonlySet<InstanceState> = new Set(["Stopped", "Shutdown", "Standby"])

const hasEnded = ({ state, transition }: Pick<Instance, "state" | "transition">): boolean =>
  over.has(state) && transition === null

/** The instance once it has ended for good, or null where it was deleted. */
export const untilEnded = (service: Remote, id: InstanceId) =>
  Effect.gen(function* () {
    const ended = yield* Deferred.make<Instance | null>()
    const look = service.api.instances.get({ params: { id } }).pipe(
      Effect.flatMap((now) => (hasEnded(now) ? Deferred.succeed(ended, now) : Effect.void)),
      Effect.catchTag("InstanceNotFound", () => Deferred.succeed(ended, null))
    )
    const watch = followEvents({
      position: { after: undefined },
      goesOn: true,
      open: (after) =>
        service.api.events
          .read({ query: {}, headers: after === undefined ? {} : { "last-event-id": after } })
          // What happened before the stream began is seen by looking once it has.
          .pipe(Effect.tap(() => look)),
      each: ({ data }) => (data.instance_id === id ? look : Effect.void)
    })
    return yield* Effect.raceFirst(Deferred.await(ended), Effect.andThen(watch, Effect.never))
  })

/** 128 and the signal's number, as shells have it; 128 alone for a signal that this system does not know. */
export const signalCode = (name: string): number => {
  const full = name.startsWith("SIG") ? name : `SIG${name}`
  const [, number = 0] = Object.entries(constants.signals).find(([known]) => known === full) ?? []
  return 128 + number
}

const quietly = (exitCode: number) =>
  exitCode === 0 ? Effect.void : Effect.fail(new Failure({ sentence: "", exitCode }))

/** Fails with the guest's own code where it has one; with a sentence where it came to another end than its own. */
export const endLike = (instance: Instance | null): Effect.Effect<void, Failure> => {
  const exit = instance?.exit ?? null
  if (exit === null) return Effect.void
  if (exit.reason === "exited" || exit.code !== undefined || exit.signal !== undefined)
    return quietly(exit.signal === undefined ? (exit.code ?? 0) : signalCode(exit.signal))
  switch (exit.reason) {
    case "guest-panic":
    case "boot-failed":
    case "vmm-died":
      return Effect.fail(
        new Failure({
          sentence: printable(
            `The guest ended: ${exit.reason}${exit.message === undefined ? "" : `, ${exit.message}`}`
          ),
          exitCode: exitCodes.failure
        })
      )
    default:
      return Effect.void
  }
}

export const gone = failure("The instance was deleted meanwhile.", "notFound")
