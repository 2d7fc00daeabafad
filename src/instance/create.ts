/**
 * Creation: from a request to a durable record and a live actor, and the answer once the instance is up. Checks come
 * first and touch nothing; from the lease on it cannot be interrupted, so that nothing stands half-made in between.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import { InstanceId, timestamp } from "../domain/Ids.ts"
import type { BootImage } from "../domain/Image.ts"
import type { CreateInstance, InstanceSpec } from "../domain/Instance.ts"
import { HostUnfit, InstanceExists, InsufficientMemory, Unprocessable } from "../domain/problems.ts"
import type { FileFault } from "../host/Fault.ts"
import { step, VerbInProgress } from "../host/Boundary.ts"
import { HostMemory } from "../host/Memory.ts"
import { Images } from "../image/Images.ts"
import { Network } from "../network/Network.ts"
import { logEvent } from "../telemetry/LogEvent.ts"
import { Fitness } from "../vmm/Fitness.ts"
import { Vmm } from "../vmm/Vmm.ts"
import { availableMb } from "./admission.ts"
import { createAnswer } from "./answers.ts"
import { checkGrowing, checkVolumes, type Names } from "./attachments.ts"
import { begin, type Record } from "./Record.ts"
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

const cannotRecord = (fault: FileFault) =>
  new HostUnfit({
    detail: `The instance cannot be recorded (${fault.code}). Make room on the host's disk and try again.`
  })

/** Fails on a host that can start no VM, with what it lacks. */
export const mustBeFit = Effect.flatMap(Fitness, (unfit) =>
  unfit === null ? Effect.void : Effect.fail(new HostUnfit({ detail: unfit }))
)

/** What makes a request impossible before anything is touched. */
const check = Effect.fnUntraced(function* (request: CreateInstance, image: BootImage) {
  const vmm = yield* Vmm
  yield* mustBeFit
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
  yield* checkVolumes(request.volumes)
})

/** Refuses a guest that the host has no room for; `except` is the one that asks and holds nothing yet. */
export const admit = Effect.fnUntraced(function* (requestedMb: number, except?: InstanceId) {
  const { registry } = yield* Supervisor
  const { totalMb } = yield* HostMemory
  const others = registry.list({}).filter((view) => view.id !== except)
  const available = availableMb(totalMb, others)
  if (requestedMb <= available) return
  return yield* new InsufficientMemory({
    detail: `The guest wants ${requestedMb} MiB and ${available} MiB are free: stop an instance, put one into standby, or ask for less.`,
    requested_mb: requestedMb,
    available_mb: available
  })
})

/** Makes the record durable; where that fails, the address goes back and nothing is left. */
const record = Effect.fnUntraced(function* (made: Record) {
  const store = yield* Store
  const network = yield* Network
  const { id } = made.spec
  yield* store.prepare(id).pipe(
    step("prepare"),
    Effect.andThen(store.save(made).pipe(step("persist-Launching"))),
    Effect.tapError(() => Effect.andThen(network.release(id), Effect.ignore(store.remove(id)))),
    Effect.mapError(cannotRecord)
  )
})

const found = Effect.fnUntraced(
  function* (request: CreateInstance, names: Names) {
    const { registry, start } = yield* Supervisor
    const images = yield* Images
    const network = yield* Network
    const vmm = yield* Vmm
    const id = request.id ?? (yield* generateId)
    if (registry.actor(id) !== undefined)
      return yield* new InstanceExists({ detail: `There is an instance '${id}' already.`, instance_id: id })
    const image = yield* images.resolve(request.image)
    yield* check(request, image)
    yield* checkGrowing(names, request.volumes)
    yield* admit(request.memory_mb)
    const spec = specOf(request, id, image, vmm.kind)
    const lease = spec.network.enabled ? yield* network.lease(id) : null
    const now = timestamp(yield* Clock.currentTimeMillis)
    const made = begin(spec, lease, request.volumes, request.start, vmm.version, now)
    yield* record(made)
    if (lease !== null)
      yield* logEvent("network.lease", `${id}: ${lease.ip}`, {
        instance_id: id,
        ip: lease.ip,
        mac: lease.mac
      })
    return { id, actor: yield* start(made, null) }
  },
  Effect.provideService(VerbInProgress, "create"),
  Effect.uninterruptible
)

/** Creates an instance and waits until it is up. `names` is the lock that everything takes that gives or takes a name. */
export const create = Effect.fn("Instances.create")(function* (request: CreateInstance, names: Names) {
  const { id, actor } = yield* names.withPermit(found(request, names))
  yield* createAnswer(id, yield* actor.created)
  return actor.view()
})
