/**
 * The live `Instances`: requests become commands, replies become views and problems. What creates or removes a name
 * (create, removal of an image) takes one lock, so that no image goes while an instance of it appears.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"
import { type ImageId, type InstanceId, timestamp } from "../domain/Ids.ts"
import type { ImageGcReport } from "../domain/Image.ts"
import type { CreateInstance, PatchInstance, Verb } from "../domain/Instance.ts"
import { WaitTimeout } from "../domain/problems.ts"
import { readLines } from "../guest/Console.ts"
import { type InstancePaths, Paths } from "../host/Paths.ts"
import { ImageGc } from "../image/ImageGc.ts"
import { Images } from "../image/Images.ts"
import { reportDefects } from "../telemetry/defects.ts"
import { holdsMemory } from "./admission.ts"
import {
  attach,
  attachmentsOf,
  detach,
  growVolume,
  makeNames,
  type Names,
  removeVolume
} from "./attachments.ts"
import { notFound, patchAnswer, verbAnswer } from "./answers.ts"
import { admit, create, mustBeFit } from "./create.ts"
import { EventLog } from "./EventLog.ts"
import * as guestCalls from "./guestCalls.ts"
import {
  type ChangeOptions,
  Instances,
  type LogRequest,
  type LogSource,
  type VerbOptions,
  type WaitFor
} from "./Instances.ts"
import type { Command } from "./Lifecycle.ts"
import { Supervisor } from "./Supervisor.ts"

const commandOf = (verb: Verb, options: VerbOptions, epochMs: number): Command => {
  const at = timestamp(epochMs)
  switch (verb) {
    case "start":
      return { _tag: "Start" }
    case "pause":
      return { _tag: "Pause" }
    case "resume":
      return { _tag: "Resume" }
    case "shutdown":
      return { _tag: "Shutdown", at }
    case "stop":
      return { _tag: "Stop", discardSnapshot: options.discardSnapshot ?? false, at }
    case "standby":
      return { _tag: "Standby" }
    case "restore":
      return {
        _tag: "Restore",
        resume: options.resume ?? true,
        ...(options.restoreMode === undefined ? {} : { mode: options.restoreMode })
      }
    case "delete":
      return { _tag: "Delete" }
  }
}

const actorOf = Effect.fnUntraced(function* (id: InstanceId) {
  const { registry } = yield* Supervisor
  return registry.actor(id) ?? (yield* notFound(id))
})

const send = Effect.fnUntraced(function* (id: InstanceId, verb: Verb, options: VerbOptions) {
  const actor = yield* actorOf(id)
  if ((verb === "start" || verb === "restore") && !holdsMemory(actor.view())) {
    yield* mustBeFit
    yield* admit(actor.view().memory_mb, id)
  }
  const command = commandOf(verb, options, yield* Clock.currentTimeMillis)
  const reply = yield* actor.send(command, options.ifMatch ?? null)
  yield* verbAnswer(id, verb, reply)
  return actor.view()
})

/** Deleted is what nobody finds any more: the answer waits until the name is free. */
const remove = Effect.fn("Instances.remove")(function* (id: InstanceId, options: ChangeOptions) {
  const { registry } = yield* Supervisor
  const actor = yield* actorOf(id)
  yield* send(id, "delete", options)
  if (registry.actor(id) === actor) yield* registry.when(id, () => false)
})

const patch = Effect.fn("Instances.patch")(function* (
  id: InstanceId,
  changes: PatchInstance,
  options: ChangeOptions
) {
  const actor = yield* actorOf(id)
  const view = actor.view()
  const growth = (changes.memory_mb ?? 0) - view.memory_mb
  if (growth > 0 && holdsMemory(view)) yield* admit(growth)
  yield* patchAnswer(id, yield* actor.amend(changes, options.ifMatch ?? null))
  return actor.view()
})

const wait = Effect.fn("Instances.wait")(function* (id: InstanceId, condition: WaitFor) {
  const { registry } = yield* Supervisor
  const { view } = yield* actorOf(id)
  const met = yield* registry
    .when(
      id,
      (it) =>
        (condition.state === undefined || (it.state === condition.state && it.transition === null)) &&
        (condition.ready === undefined || it.ready === condition.ready)
    )
    .pipe(Effect.timeoutOption(condition.timeoutMs))
  if (met._tag === "Some") return met.value ?? (yield* notFound(id))
  const { state, transition } = registry.view(id) ?? view()
  const busy = transition === null ? "" : ` and busy with ${transition}`
  return yield* new WaitTimeout({
    detail: `After ${condition.timeoutMs} ms '${id}' is ${state}${busy}.`,
    state,
    transition
  })
})

const directoryOf = (files: InstancePaths, source: LogSource): string => {
  switch (source) {
    case "app":
      return files.console
    case "vmm":
      return files.vmm
    case "dataplane":
      return files.journal
  }
}

const logs = Effect.fnUntraced(function* (id: InstanceId, request: LogRequest) {
  const paths = yield* Paths
  yield* actorOf(id)
  return readLines(directoryOf(paths.instance(id), request.source), request).pipe(
    Stream.catchCause((cause) =>
      Stream.fromEffectDrain(reportDefects(cause, `${id}: its log cannot be read`))
    )
  )
})

const removeImage = Effect.fnUntraced(function* (id: ImageId) {
  const { registry } = yield* Supervisor
  const images = yield* Images
  const users = registry.list({}).filter((view) => view.image === id)
  yield* images.remove(
    id,
    users.map((view) => view.id)
  )
})

/** How often older versions of images, whose tag moved on, are looked for that no instance was created from. */
const collectEveryMs = 60_000

const nothingCollected: ImageGcReport = { layers_removed: 0, bytes_freed: 0 }

/**
 * Collects every minute, and gives the effect that does it at once. Takes the lock of names: an instance that is being
 * created holds a version that no view names yet.
 */
const collectImages = Effect.fnUntraced(function* (names: Names) {
  const { registry } = yield* Supervisor
  const gc = yield* Effect.serviceOption(ImageGc)
  if (Option.isNone(gc)) return Effect.succeed(nothingCollected)
  const inUse = Effect.sync(() =>
    registry.list({}).map((view) => ({ id: view.image, digest: view.image_digest }))
  )
  const collect = names.withPermit(Effect.flatMap(inUse, gc.value.collect))
  yield* Effect.forkScoped(Effect.repeat(collect, Schedule.spaced(collectEveryMs)))
  return collect
})

type Services =
  | Effect.Services<ReturnType<typeof create>>
  | Effect.Services<ReturnType<typeof wait>>
  | Effect.Services<ReturnType<typeof logs>>

export const instancesLayer = Layer.effect(
  Instances,
  Effect.gen(function* () {
    const supervisor = yield* Supervisor
    const { registry } = supervisor
    const events = yield* EventLog
    const services = yield* Effect.context<Services>()
    const names = yield* makeNames
    const collect = yield* collectImages(names)
    const provided = <A, E>(effect: Effect.Effect<A, E, Services>) => Effect.provideContext(effect, services)
    const inGuest = Effect.provideService(Supervisor, supervisor)
    const known = <A>(id: InstanceId, value: A | undefined) =>
      value === undefined ? Effect.fail(notFound(id)) : Effect.succeed(value)

    return Instances.of({
      create: (request: CreateInstance) => provided(create(request, names)),
      get: (id) => Effect.suspend(() => known(id, registry.view(id))),
      getJson: (id) => Effect.suspend(() => known(id, registry.json(id))),
      list: (filter) => Effect.sync(() => registry.list(filter)),
      listJson: (filter) => Effect.sync(() => registry.listJson(filter)),
      command: (id, verb, options = {}) => provided(send(id, verb, options)),
      patch: (id, changes, options = {}) => provided(patch(id, changes, options)),
      remove: (id, options = {}) => provided(remove(id, options)),
      wait: (id, condition) => provided(wait(id, condition)),
      logs: (id, request) => provided(logs(id, request)),
      events: events.read,
      exec: (id, request) => inGuest(guestCalls.exec(id, request)),
      readFiles: (id, path) => inGuest(guestCalls.readFiles(id, path)),
      writeFiles: (id, path, archive) => inGuest(guestCalls.writeFiles(id, path, archive)),
      attach: (id, volume, how) => provided(attach(id, volume, how, names)),
      detach: (id, volume, force) => provided(detach(id, volume, force)),
      attachments: Effect.sync(() => attachmentsOf(registry.list({}))),
      removeVolume: (id) => provided(removeVolume(id, names)),
      growVolume: (id, sizeGb) => provided(growVolume(id, sizeGb, names)),
      removeImage: (id) => names.withPermit(provided(removeImage(id))),
      collectImages: collect
    })
  })
)
