/** New instances: `create` leaves one Created, `run` boots it, waits until it is ready, and may stay with it. */
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Effect from "effect/Effect"
import { waitMaxMs } from "../../api/Instances.ts"
import type { ImageId } from "../../domain/Ids.ts"
import type { CreateInstance, Instance } from "../../domain/Instance.ts"
import { endLike, untilEnded } from "../ending.ts"
import { failure } from "../Failure.ts"
import type { Position } from "../following.ts"
import { withProgress } from "../Progress.ts"
import { pull, untilReady } from "../pulling.ts"
import { type Remote, remote } from "../Remote.ts"
import { createRequest, requestFlags } from "../request.ts"
import { print } from "../results.ts"
import { printLogs } from "./logs.ts"
import { stateLine } from "./verbs.ts"

/** What a pull that failed has left is of no use to a person who wanted an instance. */
const pullFor = (service: Remote, name: string) =>
  Effect.catchTag(pull(service, { name }), "Failure", (problem) =>
    Effect.gen(function* () {
      const all = yield* service.api.images.list()
      const left = all.filter((image) => image.status === "failed" && image.name.includes(name))
      yield* Effect.forEach(left, ({ id }) => Effect.ignore(service.api.images.remove({ params: { id } })))
      return yield* problem
    })
  )

const untilImageReady = (service: Remote, id: ImageId) =>
  Effect.flatMap(service.api.images.get({ params: { id } }), (image) => untilReady(service, image))

/** POST /instances; an image that is missing is pulled first, one that is on its way is waited for. */
const create = (service: Remote, payload: CreateInstance, mayPull: boolean) => {
  const call = withProgress(payload.name, { phase: payload.start ? "booting" : "creating" }, () =>
    service.api.instances.create({ payload })
  )
  return call.pipe(
    Effect.catchTag("ImageNotFound", (problem) =>
      mayPull ? Effect.andThen(pullFor(service, payload.image), call) : Effect.fail(problem)
    ),
    Effect.catchTag("ImageNotReady", (problem) =>
      problem.image_status === "failed"
        ? Effect.fail(problem)
        : Effect.andThen(untilImageReady(service, problem.image_id), call)
    )
  )
}

export const createCommand = Command.make(
  "create",
  requestFlags,
  Effect.fnUntraced(function* (given) {
    const service = yield* remote
    const payload = yield* createRequest(service, given, false)
    const created = yield* create(service, payload, given.pull === "missing")
    yield* print(created, () => stateLine(created))
  })
).pipe(Command.withDescription("Create an instance without booting it"))

const waitSeconds = 60

/** The console until the guest has ended, to its last line; then the end. */
const stayWith = (service: Remote, { id }: Instance, position: Position) =>
  Effect.gen(function* () {
    const wish = { source: "app", tail: undefined, timestamps: false } as const
    const following = printLogs(service, id, { ...wish, follow: true }, position)
    const ended = yield* Effect.raceFirst(
      untilEnded(service, id),
      Effect.andThen(following, untilEnded(service, id))
    )
    if (ended !== null) yield* printLogs(service, id, { ...wish, follow: false }, position)
    return ended
  })

export const run = Command.make(
  "run",
  {
    ...requestFlags,
    follow: Flag.Boolean("follow").pipe(
      Flag.withAlias("f"),
      Flag.withDescription("Show its console until it ends; ends with the guest's exit code"),
      Flag.withDefault(false),
      Flag.withoutNegation
    ),
    rm: Flag.Boolean("rm").pipe(
      Flag.withDescription("Like --follow, and delete it at the end, an interrupted one too"),
      Flag.withDefault(false),
      Flag.withoutNegation
    ),
    timeout: Flag.Finite("timeout").pipe(
      Flag.withMetavar("SECONDS"),
      Flag.withDescription(`How long the guest may take to answer; ${waitSeconds} by default`),
      Flag.withDefault(waitSeconds)
    )
  },
  Effect.fnUntraced(function* ({ follow, rm, timeout, ...given }) {
    const timeoutMs = Math.round(timeout * 1000)
    if (timeoutMs < 0 || timeoutMs > waitMaxMs)
      return yield* failure(`--timeout takes 0 to ${waitMaxMs / 1000} seconds.`, "usage")
    const service = yield* remote
    const payload = yield* createRequest(service, given, true)
    const created = yield* create(service, payload, given.pull === "missing")
    const params = { id: created.id }
    if (follow || rm) {
      const stayed = stayWith(service, created, { after: undefined })
      const removed = Effect.ignore(service.api.instances.remove({ params }))
      return yield* Effect.flatMap(rm ? Effect.ensuring(stayed, removed) : stayed, endLike)
    }
    const ready = yield* withProgress(created.id, { phase: "waiting for the guest" }, () =>
      service.api.instances.wait({ params, query: { ready: true, timeout_ms: timeoutMs } })
    )
    yield* print(ready, () => stateLine(ready))
  })
).pipe(Command.withDescription("Create an instance, boot it and wait until it is ready"))
