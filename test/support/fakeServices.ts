/**
 * `Instances` and `Images` in memory, so that the HTTP layer is tested without VMs. They obey the state table as far as
 * HTTP can see it; `answer` makes any call fail with any problem or defect; logs are what the test says.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import type { InstanceEvent } from "../../src/domain/Event.ts"
import { Digest, ImageId, InstanceId, timestamp, type Generation } from "../../src/domain/Ids.ts"
import type { Image } from "../../src/domain/Image.ts"
import type { CreateInstance, Instance, Verb } from "../../src/domain/Instance.ts"
import { InterfaceName, Ipv4, Mac } from "../../src/domain/Network.ts"
import {
  type Busy,
  ImageExists,
  ImageInUse,
  ImageNotFound,
  InstanceExists,
  InstanceNotFound,
  type InvalidRequest,
  InvalidState,
  type PayloadTooLarge,
  type Unprocessable,
  WaitTimeout,
  type VerbFailed
} from "../../src/domain/problems.ts"
import { Images } from "../../src/image/Images.ts"
import {
  type CreateProblem,
  Instances,
  type ListFilter,
  type LogLine,
  type LogRequest,
  type VerbProblem
} from "../../src/instance/Instances.ts"
import type { VolumeRecord } from "../../src/volume/VolumeRecord.ts"
import { Volumes } from "../../src/volume/Volumes.ts"
import { fakeAttachments, fakeVolumes } from "./fakeVolumes.ts"

export const epoch = timestamp(Date.UTC(2026, 0, 31, 12))
export const someDigest = Digest.make(`sha256:${"ab".repeat(32)}`)

export const fakeImage = (id: string, status: Image["status"] = "ready"): Image => ({
  id: ImageId.make(id),
  name: `docker.io/library/${id}:latest`,
  digest: someDigest,
  status,
  progress: { phase: status, bytes_done: 10, bytes_total: 10, layers_done: 1, layers_total: 1 },
  error: null,
  size_bytes: 10,
  entrypoint: [],
  cmd: ["/bin/sh"],
  env: { PATH: "/bin" },
  working_dir: "/",
  user: "",
  created_at: epoch
})

/** A realistic view: every field filled, about 1 KB of JSON. */
export const fakeInstance = (
  id: string,
  index = 0,
  given: Partial<CreateInstance> & Partial<Pick<Instance, "state" | "generation">> = {}
): Instance => ({
  id: InstanceId.make(id),
  name: given.name ?? `Workload ${index}`,
  image: ImageId.make("img-nginx"),
  image_digest: someDigest,
  memory_mb: given.memory_mb ?? 1024,
  memory_max_mb: given.memory_max_mb ?? given.memory_mb ?? 1024,
  vcpus: given.vcpus ?? 2,
  env: given.env ?? { NODE_ENV: "production", PORT: "8080", LOG_LEVEL: "info" },
  overlay_mb: 10_240,
  volumes: [],
  network: {
    enabled: true,
    ip: Ipv4.make(`192.168.100.${2 + (index % 250)}`),
    mac: Mac.make("52:54:00:12:34:56"),
    gateway: Ipv4.make("192.168.100.1"),
    dns: Ipv4.make("1.1.1.1"),
    tap: InterfaceName.make(`tap${index}`)
  },
  command: null,
  entrypoint: null,
  working_dir: null,
  user: null,
  hostname: id.slice(0, 63),
  labels: given.labels ?? { tier: "web", owner: "team-a" },
  restart_policy: "on-failure",
  vmm: { kind: "qemu", version: "10.0.2", pid: 4000 + index },
  state: given.state ?? "Running",
  transition: null,
  generation: given.generation ?? 3,
  ready: true,
  memory_actual_mb: 1024,
  has_snapshot: false,
  exit: null,
  restarts: 0,
  created_at: epoch,
  started_at: epoch,
  stopped_at: null,
  standby_at: null
})

const after: Readonly<Record<Exclude<Verb, "delete">, Instance["state"]>> = {
  start: "Running",
  pause: "Paused",
  resume: "Running",
  shutdown: "Shutdown",
  stop: "Stopped",
  standby: "Standby",
  restore: "Running"
}
const legal: Readonly<Record<Exclude<Verb, "delete">, ReadonlyArray<Instance["state"]>>> = {
  start: ["Created", "Shutdown", "Stopped"],
  pause: ["Running"],
  resume: ["Paused"],
  shutdown: ["Running", "Paused"],
  stop: ["Created", "Running", "Paused", "Shutdown"],
  standby: ["Running", "Paused"],
  restore: ["Standby"]
}

const notFound = (id: InstanceId) =>
  new InstanceNotFound({ detail: `There is no instance ${id}.`, instance_id: id })

const withGeneration = (instance: Instance, state: Instance["state"]): Instance => ({
  ...instance,
  state,
  generation: (instance.generation + 1) satisfies typeof Generation.Type
})

type ImageProblem = ImageExists | Unprocessable | Busy

/** Any problem that the interface knows, or a defect (`Effect.die`), for each call. */
export interface FakeFailures {
  create?: Effect.Effect<never, CreateProblem>
  get?: Effect.Effect<never, InstanceNotFound>
  listJson?: Effect.Effect<never>
  command?: Effect.Effect<never, VerbProblem>
  remove?: Effect.Effect<never, VerbProblem>
  patch?: Effect.Effect<never, InstanceNotFound | InvalidState | VerbFailed | Busy>
  wait?: Effect.Effect<never, InstanceNotFound | WaitTimeout>
  logs?: Effect.Effect<never, InstanceNotFound>
  removeImage?: Effect.Effect<never, ImageNotFound | ImageInUse>
  createImage?: Effect.Effect<never, ImageProblem>
  importArchive?: Effect.Effect<never, ImageProblem | InvalidRequest | PayloadTooLarge>
  getImage?: Effect.Effect<never, ImageNotFound>
  listImages?: Effect.Effect<never>
}

/** What the fakes hold and what was asked of them; a test reads and writes it. */
export interface FakeWorld {
  readonly instances: Map<string, Instance>
  readonly images: Map<string, Image>
  readonly volumes: Map<string, VolumeRecord>
  readonly calls: Array<readonly [string, ...ReadonlyArray<unknown>]>
  /** What every call of a name ends with, instead of its answer. */
  readonly failures: FakeFailures
  /** Comes before a verb is carried out, and after an instance was made. */
  beforeCommand?: Effect.Effect<unknown>
  afterCreate?: Effect.Effect<unknown>
  logs: (id: InstanceId, request: LogRequest) => Stream.Stream<LogLine>
  events: (after: Option.Option<number>) => Stream.Stream<InstanceEvent>
  /** Processes and files of the guest; nothing runs and nothing is there unless the test says so. */
  exec: Instances["Service"]["exec"]
  readFiles: Instances["Service"]["readFiles"]
  writeFiles: Instances["Service"]["writeFiles"]
  /** Hands out one text for the whole list, as the service does between two changes. */
  cacheList: boolean
  /** Bytes of the last imported archive, counted as they came. */
  imported: { bytes: number; chunks: number }
}

const noGuest = (id: InstanceId) => Effect.fail(notFound(id))

export const fakeWorld = (): FakeWorld => ({
  instances: new Map(),
  images: new Map([["img-nginx", fakeImage("img-nginx")]]),
  volumes: new Map(),
  calls: [],
  failures: {},
  logs: () => Stream.empty,
  events: () => Stream.empty,
  exec: noGuest,
  readFiles: noGuest,
  writeFiles: noGuest,
  cacheList: false,
  imported: { bytes: 0, chunks: 0 }
})

const tools = (world: FakeWorld) => ({
  /** Notes the call, fails if the test says so, and else answers. */
  call: <A, E, F>(
    name: string,
    args: ReadonlyArray<unknown>,
    failure: Effect.Effect<never, F> | undefined,
    answer: () => Effect.Effect<A, E>
  ): Effect.Effect<A, E | F> =>
    Effect.suspend((): Effect.Effect<A, E | F> => {
      if (!world.cacheList) world.calls.push([name, ...args])
      return failure ?? answer()
    }),
  find: (id: InstanceId): Effect.Effect<Instance, InstanceNotFound> => {
    const found = world.instances.get(id)
    return found === undefined ? Effect.fail(notFound(id)) : Effect.succeed(found)
  }
})

const matches = (instance: Instance, filter: ListFilter): boolean =>
  (filter.state === undefined || instance.state === filter.state) &&
  Object.entries(filter.labels ?? {}).every(([name, value]) => instance.labels[name] === value)

const command = (world: FakeWorld): Instances["Service"]["command"] => {
  const { call, find } = tools(world)
  return (id, verb, options) =>
    call("command", [id, verb, options], world.failures.command, () =>
      Effect.flatMap(
        Effect.andThen(world.beforeCommand ?? Effect.void, find(id)),
        (instance): Effect.Effect<Instance, InvalidState> => {
          if (instance.state === after[verb]) return Effect.succeed(instance)
          const discards =
            verb === "stop" && instance.state === "Standby" && options?.discardSnapshot === true
          if (!discards && !legal[verb].includes(instance.state))
            return Effect.fail(
              new InvalidState({
                detail: `${verb} is not legal in ${instance.state}.`,
                instance_id: id,
                state: instance.state,
                transition: null,
                verb,
                allowed: ["delete"]
              })
            )
          const next = withGeneration(instance, after[verb])
          world.instances.set(id, next)
          return Effect.succeed(next)
        }
      )
    )
}

const created = (
  world: FakeWorld,
  request: CreateInstance
): Effect.Effect<Instance, InstanceExists | ImageNotFound> => {
  const id = InstanceId.make(request.id ?? "inst-1")
  if (world.instances.has(id))
    return Effect.fail(new InstanceExists({ detail: `${id} exists.`, instance_id: id }))
  if (!world.images.has(request.image))
    return Effect.fail(
      new ImageNotFound({ detail: `There is no image ${request.image}.`, image: request.image })
    )
  const state = request.start ? "Running" : "Created"
  const instance = fakeInstance(id, world.instances.size, { ...request, state, generation: 1 })
  world.instances.set(id, instance)
  return Effect.succeed(instance)
}

const imageRemoved = (world: FakeWorld, id: ImageId): Effect.Effect<void, ImageInUse | ImageNotFound> => {
  if (!world.images.has(id))
    return Effect.fail(new ImageNotFound({ detail: `There is no image ${id}.`, image: id }))
  const users = [...world.instances.values()].filter((instance) => instance.image === id)
  if (users.length > 0)
    return Effect.fail(
      new ImageInUse({ detail: "In use.", image_id: id, instances: users.map((user) => user.id) })
    )
  world.images.delete(id)
  return Effect.void
}

const fakeInstances = (world: FakeWorld): Instances["Service"] => {
  const { call, find } = tools(world)
  const list = (filter: ListFilter) =>
    Effect.sync(() => [...world.instances.values()].filter((instance) => matches(instance, filter)))
  let cached: string | undefined
  return {
    create: (request) =>
      call("create", [request], world.failures.create, () =>
        Effect.tap(created(world, request), () => world.afterCreate ?? Effect.void)
      ),
    get: (id) => call("get", [id], world.failures.get, () => find(id)),
    getJson: (id) =>
      call("get", [id], world.failures.get, () => Effect.map(find(id), (it) => JSON.stringify(it))),
    list: (filter) => list(filter),
    listJson: (filter) =>
      call("listJson", [filter], world.failures.listJson, () =>
        cached === undefined || !world.cacheList
          ? Effect.map(list(filter), (all) => (cached = JSON.stringify(all)))
          : Effect.succeed(cached)
      ),
    command: command(world),
    patch: (id, changes, options) =>
      call("patch", [id, changes, options], world.failures.patch, () =>
        Effect.map(find(id), (instance) => {
          const { name = instance.name, labels = instance.labels, memory_mb = instance.memory_mb } = changes
          const patched = { ...instance, name, labels, memory_mb, generation: instance.generation + 1 }
          world.instances.set(id, patched)
          return patched
        })
      ),
    events: (after) => world.events(after),
    remove: (id, options) =>
      call("remove", [id, options], world.failures.remove, () =>
        Effect.map(find(id), () => void world.instances.delete(id))
      ),
    wait: (id, condition) =>
      call("wait", [id, condition], world.failures.wait, () =>
        Effect.filterOrElse(
          find(id),
          (instance) => condition.state === undefined || condition.state === instance.state,
          (instance) =>
            Effect.delay(
              Effect.fail(
                new WaitTimeout({ detail: "Not in time.", state: instance.state, transition: null })
              ),
              condition.timeoutMs
            )
        )
      ),
    logs: (id, request) =>
      call("logs", [id, request], world.failures.logs, () =>
        Effect.map(find(id), () => world.logs(id, request))
      ),
    exec: (id, request) => world.exec(id, request),
    readFiles: (id, path) => world.readFiles(id, path),
    writeFiles: (id, path, archive) => world.writeFiles(id, path, archive),
    ...fakeAttachments(world),
    removeImage: (id) => call("removeImage", [id], world.failures.removeImage, () => imageRemoved(world, id)),
    collectImages: Effect.succeed({ layers_removed: 0, bytes_freed: 0 })
  }
}

const fakeImages = (world: FakeWorld): Images["Service"] => {
  const { call } = tools(world)
  const find = (id: ImageId): Effect.Effect<Image, ImageNotFound> =>
    Effect.mapError(
      Effect.fromOption(Option.fromUndefinedOr(world.images.get(id))),
      () => new ImageNotFound({ detail: `There is no image ${id}.`, image: id })
    )
  const boot = (id: ImageId) =>
    Effect.map(find(id), (image) => ({ id: image.id, digest: someDigest, layers: [], config: image }))
  return {
    create: (request) =>
      call("createImage", [request], world.failures.createImage, () => {
        const id = request.id ?? ImageId.make("img-new")
        if (world.images.has(id))
          return Effect.fail(new ImageExists({ detail: `${id} exists.`, image_id: id }))
        const image = fakeImage(id, "pending")
        world.images.set(id, image)
        return Effect.succeed(image)
      }),
    importArchive: (id, archive) =>
      call("importArchive", [id], world.failures.importArchive, () => {
        world.imported = { bytes: 0, chunks: 0 }
        return Stream.runForEach(archive, (chunk) =>
          Effect.sync(() => {
            world.imported.bytes += chunk.length
            world.imported.chunks += 1
          })
        ).pipe(Effect.as(fakeImage(id ?? "img-imported", "converting")))
      }),
    list: Effect.suspend(() =>
      call("listImages", [], world.failures.listImages, () => Effect.sync(() => [...world.images.values()]))
    ),
    get: (id) => call("getImage", [id], world.failures.getImage, () => find(id)),
    resolve: (image) => boot(ImageId.make(image)),
    pinned: boot,
    remove: (id) => Effect.map(find(id), () => void world.images.delete(id))
  }
}

export const layerFakes = (world: FakeWorld): Layer.Layer<Instances | Images | Volumes> =>
  Layer.mergeAll(
    Layer.succeed(Instances, fakeInstances(world)),
    Layer.succeed(Images, fakeImages(world)),
    Layer.succeed(Volumes, fakeVolumes(world))
  )
