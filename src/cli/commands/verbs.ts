/** The verbs of an instance's life: each answers when its end state is reached and durable. */
import * as Argument from "effect/cli/Argument"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Effect from "effect/Effect"
import type { InstanceId } from "../../domain/Ids.ts"
import type { Instance } from "../../domain/Instance.ts"
import { findInstance } from "../names.ts"
import { withProgress } from "../Progress.ts"
import { type ApiClient, remote } from "../Remote.ts"
import { forEachReference } from "../results.ts"

export const instances = Argument.String("INSTANCE").pipe(
  Argument.withDescription("Id, name, or the beginning of an id"),
  Argument.variadic({ min: 1 })
)

export const stateLine = ({ id, state }: Instance): string => `${id} ${state}\n`

/** The call on each instance that is named. */
const onEach = <E, R>(
  references: ReadonlyArray<string>,
  call: (api: ApiClient, id: InstanceId) => Effect.Effect<Instance, E, R>
) =>
  Effect.gen(function* () {
    const service = yield* remote
    yield* forEachReference(
      references,
      (reference) => Effect.flatMap(findInstance(service, reference), ({ id }) => call(service.api, id)),
      stateLine
    )
  })

const plain = <const Name extends string, E, R>(
  name: Name,
  description: string,
  call: (api: ApiClient, id: InstanceId) => Effect.Effect<Instance, E, R>
) =>
  Command.make(name, { instances }, ({ instances }) => onEach(instances, call)).pipe(
    Command.withDescription(description)
  )

export const start = plain("start", "Boot the guest", (api, id) => api.instances.start({ params: { id } }))
export const pause = plain("pause", "Freeze the guest in memory", (api, id) =>
  api.instances.pause({ params: { id } })
)
export const resume = plain("resume", "Let a paused guest go on", (api, id) =>
  api.instances.resume({ params: { id } })
)
export const shutdown = plain("shutdown", "Turn the guest off, keep the VMM", (api, id) =>
  api.instances.shutdown({ params: { id } })
)

export const stop = Command.make(
  "stop",
  {
    instances,
    discardSnapshot: Flag.Boolean("discard-snapshot").pipe(
      Flag.withDescription("Give up the snapshot of an instance in Standby"),
      Flag.withDefault(false),
      Flag.withoutNegation
    )
  },
  ({ instances, discardSnapshot }) =>
    onEach(instances, (api, id) =>
      api.instances.stop({ params: { id }, query: { discard_snapshot: discardSnapshot } })
    )
).pipe(Command.withDescription("Turn the guest off, then end the VMM"))

export const standby = Command.make("standby", { instances }, ({ instances }) =>
  onEach(instances, (api, id) =>
    withProgress(id, { phase: "writing the snapshot" }, () => api.instances.standby({ params: { id } }))
  )
).pipe(Command.withDescription("Snapshot the guest to disk, give its memory back"))

export const restore = Command.make(
  "restore",
  {
    instances,
    resume: Flag.Boolean("resume").pipe(
      Flag.withDescription("Let it run; --no-resume keeps an instance paused that was paused before"),
      Flag.withDefault(true)
    )
  },
  ({ instances, resume }) =>
    onEach(instances, (api, id) =>
      withProgress(id, { phase: "reading the snapshot" }, () =>
        api.instances.restore({ params: { id }, query: { resume } })
      )
    )
).pipe(Command.withDescription("Bring a guest back from its snapshot"))

export const remove = Command.make("rm", { instances }, ({ instances }) =>
  Effect.gen(function* () {
    const service = yield* remote
    yield* forEachReference(
      instances,
      Effect.fnUntraced(function* (reference: string) {
        const { id } = yield* findInstance(service, reference)
        yield* service.api.instances.remove({ params: { id } })
        return { id, deleted: true }
      }),
      ({ id }) => `${id} deleted\n`
    )
  })
).pipe(Command.withDescription("Delete instances, running ones too; nothing is left on the host"))
