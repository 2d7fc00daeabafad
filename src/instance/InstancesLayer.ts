/**
 * The live `Instances`: requests become records and commands, replies become views and problems. What creates or removes
 * a name (create, removal of an image) takes one lock, so that no image goes while an instance of it appears.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Random from "effect/Random"
import * as Semaphore from "effect/Semaphore"
import * as Stream from "effect/Stream"
import { InstanceId, timestamp } from "../domain/Ids.ts"
import type { BootImage } from "../domain/Image.ts"
import type { CreateInstance, InstanceSpec, PatchInstance, Verb } from "../domain/Instance.ts"
import {
  HostUnfit,
  InstanceExists,
  InsufficientMemory,
  Unprocessable,
  VolumeNotFound,
  WaitTimeout
} from "../domain/problems.ts"
import { readLines } from "../guest/Console.ts"
import type { FileFault } from "../host/Fault.ts"
import { HostMemory } from "../host/Memory.ts"
import { Paths } from "../host/Paths.ts"
import { Images } from "../image/Images.ts"
import { Network } from "../network/Network.ts"
import { logEvent } from "../telemetry/LogEvent.ts"
import { Fitness } from "../vmm/Fitness.ts"
import { Vmm } from "../vmm/Vmm.ts"
import { availableMb, holdsMemory } from "./admission.ts"
import { createAnswer, notFound, patchAnswer, verbAnswer } from "./answers.ts"
import { EventLog } from "./EventLog.ts"
import { Instances, type LogSource, type VerbOptions } from "./Instances.ts"
import type { Command } from "./Lifecycle.ts"
import { begin } from "./Record.ts"
import { Store } from "./Store.ts"
import { Supervisor } from "./Supervisor.ts"

/** 8 of 36 characters: a clash on one host is not to be expected, and is answered like any other taken id. */
const generatedIdLength = 8
const idAlphabet = "abcdefghijklmnopqrstuvwxyz0123456789"

const generateId = Effect.map(
  Effect.forEach(Array.from({ length: generatedIdLength }), () =>
    Random.nextIntBetween(0, idAlphabet.length - 1)
  ),
  (picks) => InstanceId.make(`vm-${picks.map((pick) => idAlphabet.charAt(pick)).join("")}`)
)

const specOf = (
  request: CreateInstance,
  id: InstanceId,
  image: BootImage,
  kind: InstanceSpec["vmm"]
): InstanceSpec => ({
  id,
  name: request.name,
  image: image.id,
  image_digest: image.digest,
  memory_mb: request.memory_mb,
  memory_max_mb: request.memory_max_mb ?? request.memory_mb,
  vcpus: request.vcpus,
  env: request.env,
  overlay_mb: request.overlay_mb,
  volumes: request.volumes,
  network: { enabled: request.network.enabled },
  command: request.command ?? null,
  entrypoint: request.entrypoint ?? null,
  working_dir: request.working_dir ?? null,
  user: request.user ?? null,
  hostname: request.hostname ?? id,
  labels: request.labels,
  restart_policy: request.restart_policy,
  vmm: kind
})

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
      return { _tag: "Restore", resume: options.resume ?? true }
    case "delete":
      return { _tag: "Delete" }
  }
}

const cannotRecord = (fault: FileFault) =>
  new HostUnfit({
    detail: `The instance cannot be recorded (${fault.code}). Make room on the host's disk and try again.`
  })

/** What makes a request impossible before anything is touched. */
const check = Effect.fnUntraced(function* (request: CreateInstance, image: BootImage) {
  const vmm = yield* Vmm
  const unfit = yield* Fitness
  if (unfit !== null) return yield* new HostUnfit({ detail: unfit })
  if (request.vmm !== undefined && request.vmm !== vmm.kind)
    return yield* new Unprocessable({
      detail: `This host runs ${vmm.kind}; ${request.vmm} is not available on it.`
    })
  const maximum = request.memory_max_mb ?? request.memory_mb
  if (maximum < request.memory_mb)
    return yield* new Unprocessable({
      detail: `memory_max_mb ${maximum} is less than memory_mb ${request.memory_mb}.`
    })
  if (maximum > request.memory_mb && !vmm.capabilities.memoryGrowth)
    return yield* new Unprocessable({
      detail: `${vmm.kind} cannot grow memory here: leave memory_max_mb out.`
    })
  const argv = [...(request.entrypoint ?? image.config.entrypoint), ...(request.command ?? image.config.cmd)]
  if (argv.length === 0)
    return yield* new Unprocessable({
      detail: `The image '${image.id}' has no entrypoint and no command: give one in 'command' or 'entrypoint'.`
    })
  const [volume] = request.volumes
  if (volume !== undefined)
    return yield* new VolumeNotFound({
      detail: `There is no volume '${volume.volume_id}' on this host.`,
      volume_id: volume.volume_id
    })
})

export const instancesLayer = Layer.effect(
  Instances,
  Effect.gen(function* () {
    const { registry, start } = yield* Supervisor
    const store = yield* Store
    const images = yield* Images
    const network = yield* Network
    const memory = yield* HostMemory
    const events = yield* EventLog
    const paths = yield* Paths
    const vmm = yield* Vmm
    const unfit = yield* Fitness
    const lock = yield* Semaphore.make(1)

    const admit = Effect.fnUntraced(function* (requestedMb: number, except?: InstanceId) {
      const others = registry.list({}).filter((view) => view.id !== except)
      const available = availableMb(memory.totalMb, others)
      if (requestedMb <= available) return
      return yield* new InsufficientMemory({
        detail: `The guest wants ${requestedMb} MiB and ${available} MiB are free: stop an instance, put one into standby, or ask for less.`,
        requested_mb: requestedMb,
        available_mb: available
      })
    })

    /** Everything up to a durable record and a live actor; not to be interrupted in between. */
    const found = Effect.fnUntraced(function* (request: CreateInstance) {
      const id = request.id ?? (yield* generateId)
      if (registry.actor(id) !== undefined)
        return yield* new InstanceExists({ detail: `There is an instance '${id}' already.`, instance_id: id })
      const image = yield* images.resolve(request.image)
      yield* check(request, image).pipe(
        Effect.provideService(Vmm, vmm),
        Effect.provideService(Fitness, unfit)
      )
      yield* admit(request.memory_mb)
      const spec = specOf(request, id, image, vmm.kind)
      const lease = spec.network.enabled ? yield* network.lease(id) : null
      const now = timestamp(yield* Clock.currentTimeMillis)
      const record = begin(spec, lease, request.start, vmm.version, now)
      yield* store.prepare(id).pipe(
        Effect.andThen(store.save(record)),
        Effect.tapError(() => Effect.andThen(network.release(id), Effect.ignore(store.remove(id)))),
        Effect.mapError(cannotRecord)
      )
      if (lease !== null)
        yield* logEvent("network.lease", `${id}: ${lease.ip}`, {
          instance_id: id,
          ip: lease.ip,
          mac: lease.mac
        })
      return { id, actor: yield* start(record, null) }
    }, Effect.uninterruptible)

    const create = Effect.fn("Instances.create")(function* (request: CreateInstance) {
      const { id, actor } = yield* lock.withPermit(found(request))
      yield* createAnswer(id, yield* actor.created)
      return actor.view()
    })

    const actorOf = (id: InstanceId) => {
      const actor = registry.actor(id)
      return actor === undefined ? Effect.fail(notFound(id)) : Effect.succeed(actor)
    }

    const send = Effect.fnUntraced(function* (id: InstanceId, verb: Verb, options: VerbOptions) {
      const actor = yield* actorOf(id)
      if ((verb === "start" || verb === "restore") && !holdsMemory(actor.view()))
        yield* admit(actor.view().memory_mb, id)
      const reply = yield* actor.send(commandOf(verb, options, yield* Clock.currentTimeMillis))
      yield* verbAnswer(id, verb, reply)
      return actor.view()
    })

    const patch = Effect.fn("Instances.patch")(function* (id: InstanceId, changes: PatchInstance) {
      const actor = yield* actorOf(id)
      const view = actor.view()
      const growth = (changes.memory_mb ?? 0) - view.memory_mb
      if (growth > 0 && holdsMemory(view)) yield* admit(growth)
      yield* patchAnswer(id, yield* actor.amend(changes))
      return actor.view()
    })

    const wait = Effect.fn("Instances.wait")(function* (
      id: InstanceId,
      condition: { readonly state?: string; readonly ready?: boolean; readonly timeoutMs: number }
    ) {
      const { view } = yield* actorOf(id)
      const met = yield* registry
        .when(
          id,
          (it) =>
            (condition.state === undefined || (it.state === condition.state && it.transition === null)) &&
            (condition.ready === undefined || it.ready === condition.ready)
        )
        .pipe(Effect.timeoutOption(condition.timeoutMs))
      if (met._tag === "Some") return met.value === null ? yield* notFound(id) : met.value
      const { state, transition } = registry.view(id) ?? view()
      return yield* new WaitTimeout({
        detail: `After ${condition.timeoutMs} ms '${id}' is ${state}${transition === null ? "" : ` and busy with ${transition}`}.`,
        state,
        transition
      })
    })

    const directoryOf = (id: InstanceId, source: LogSource): string => {
      const files = paths.instance(id)
      return source === "app" ? files.console : source === "vmm" ? files.vmm : files.journal
    }

    return Instances.of({
      create,
      get: (id) => {
        const view = registry.view(id)
        return view === undefined ? Effect.fail(notFound(id)) : Effect.succeed(view)
      },
      getJson: (id) => {
        const json = registry.json(id)
        return json === undefined ? Effect.fail(notFound(id)) : Effect.succeed(json)
      },
      list: (filter) => Effect.sync(() => registry.list(filter)),
      listJson: (filter) => Effect.sync(() => registry.listJson(filter)),
      command: (id, verb, options = {}) => send(id, verb, options),
      patch,
      events: events.read,
      remove: (id) => Effect.asVoid(send(id, "delete", {})),
      wait,
      logs: (id, request) =>
        Effect.map(actorOf(id), () =>
          readLines(directoryOf(id, request.source), request).pipe(Stream.catchCause(() => Stream.empty))
        ),
      removeImage: (id) =>
        lock.withPermit(
          images.remove(
            id,
            registry
              .list({})
              .filter((view) => view.image === id)
              .map((view) => view.id)
          )
        )
    })
  })
)
