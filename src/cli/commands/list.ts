/** What there is: instances as a table, one in full, and waiting for one. */
import * as Argument from "effect/cli/Argument"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { waitDefaultMs, waitMaxMs } from "../../api/Instances.ts"
import { type Instance, InstanceState } from "../../domain/Instance.ts"
import { ageText } from "../age.ts"
import { failure } from "../Failure.ts"
import { findInstance } from "../names.ts"
import { remote } from "../Remote.ts"
import { forEachReference, print, printJson, printTable } from "../results.ts"
import { instances, stateLine } from "./verbs.ts"

const headings = ["ID", "NAME", "IMAGE", "STATE", "READY", "IP", "MEMORY", "VCPUS", "CREATED"]

const stateText = ({ state, transition }: Instance): string =>
  transition === null ? state : `${state} (${transition})`

const row =
  (now: number) =>
  (instance: Instance): ReadonlyArray<string> => [
    instance.id,
    instance.name,
    instance.image,
    stateText(instance),
    instance.ready ? "yes" : "no",
    instance.network.ip ?? "-",
    `${instance.memory_mb} MiB`,
    `${instance.vcpus}`,
    ageText(now, instance.created_at)
  ]

export const ps = Command.make(
  "ps",
  {
    state: Flag.Literals("state", InstanceState.literals).pipe(
      Flag.withDescription("Only those in this state"),
      Flag.optional
    ),
    label: Flag.String("label").pipe(
      Flag.withAlias("l"),
      Flag.withMetavar("NAME=VALUE"),
      Flag.withDescription("Only those with this label; again for more, and all must match"),
      Flag.atLeast(0)
    ),
    quiet: Flag.Boolean("quiet").pipe(
      Flag.withAlias("q"),
      Flag.withDescription("Ids only"),
      Flag.withDefault(false),
      Flag.withoutNegation
    )
  },
  Effect.fnUntraced(function* ({ state, label, quiet }) {
    const wrong = label.find((it) => !/^[^=]+=/u.test(it))
    if (wrong !== undefined) return yield* failure(`--label takes NAME=VALUE, not "${wrong}".`, "usage")
    const { api } = yield* remote
    const found = yield* api.instances.list({
      query: {
        ...(Option.isSome(state) ? { state: state.value } : {}),
        ...(label.length > 0 ? { label } : {})
      }
    })
    if (quiet)
      return yield* print(
        found.map(({ id }) => id),
        () => found.map(({ id }) => `${id}\n`).join("")
      )
    yield* printTable(found, headings, row(yield* Clock.currentTimeMillis))
  })
).pipe(Command.withDescription("List instances"))

export const inspect = Command.make("inspect", { instances }, ({ instances }) =>
  Effect.gen(function* () {
    const service = yield* remote
    const found = yield* Effect.forEach(instances, (reference) => findInstance(service, reference))
    yield* printJson(found.length === 1 ? found[0] : found)
  })
).pipe(Command.withDescription("Show all of an instance, as JSON"))

export const wait = Command.make(
  "wait",
  {
    instances,
    state: Flag.Literals("state", InstanceState.literals).pipe(
      Flag.withDescription("Until it is in this state"),
      Flag.optional
    ),
    ready: Flag.Boolean("ready").pipe(
      Flag.withDescription("Until the guest has answered; the default where no state is given"),
      Flag.withDefault(false),
      Flag.withoutNegation
    ),
    timeout: Flag.Finite("timeout").pipe(
      Flag.withMetavar("SECONDS"),
      Flag.withDescription(
        `At most so long; ${waitDefaultMs / 1000} by default, ${waitMaxMs / 1000} at most`
      ),
      Flag.withDefault(waitDefaultMs / 1000)
    )
  },
  Effect.fnUntraced(function* ({ instances, state, ready, timeout }) {
    const timeoutMs = Math.round(timeout * 1000)
    if (timeoutMs < 0 || timeoutMs > waitMaxMs)
      return yield* failure(`--timeout takes 0 to ${waitMaxMs / 1000} seconds.`, "usage")
    const service = yield* remote
    yield* forEachReference(
      instances,
      Effect.fnUntraced(function* (reference: string) {
        const { id } = yield* findInstance(service, reference)
        return yield* service.api.instances.wait({
          params: { id },
          query: {
            ...(Option.isSome(state) ? { state: state.value } : {}),
            ...(ready || Option.isNone(state) ? { ready: true } : {}),
            timeout_ms: timeoutMs
          }
        })
      }),
      stateLine
    )
  })
).pipe(Command.withDescription("Wait for a state, or for the guest to be ready"))

/** The one operand of commands on a single instance. */
export const instance = Argument.String("INSTANCE").pipe(
  Argument.withDescription("Id, name, or the beginning of an id")
)
