/** `Volumes`, and what `Instances` does with them, in memory: as far as HTTP can see it. */
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { type InstanceId, timestamp, VolumeId } from "../../src/domain/Ids.ts"
import type { Instance } from "../../src/domain/Instance.ts"
import { InstanceNotFound, VolumeExists, VolumeInUse, VolumeNotFound } from "../../src/domain/problems.ts"
import type { CreateVolume } from "../../src/domain/Volume.ts"
import { attachmentsOf } from "../../src/instance/attachments.ts"
import type { Instances } from "../../src/instance/Instances.ts"
import type { VolumeRecord } from "../../src/volume/VolumeRecord.ts"
import type { Volumes } from "../../src/volume/Volumes.ts"

/** What of the fakes' world volumes are about. */
export interface VolumeWorld {
  readonly instances: Map<string, Instance>
  readonly volumes: Map<string, VolumeRecord>
  readonly calls: Array<readonly [string, ...ReadonlyArray<unknown>]>
  imported: { bytes: number; chunks: number }
}

const notFound = (id: VolumeId) => new VolumeNotFound({ detail: `There is no volume ${id}.`, volume_id: id })

export const fakeVolume = (id: string, sizeGb = 1): VolumeRecord => ({
  version: 1,
  id: VolumeId.make(id),
  name: id,
  size_gb: sizeGb,
  created_at: timestamp(Date.UTC(2026, 0, 31, 12))
})

const find = (world: VolumeWorld, id: VolumeId): Effect.Effect<VolumeRecord, VolumeNotFound> =>
  Effect.suspend(() => {
    const record = world.volumes.get(id)
    return record === undefined ? Effect.fail(notFound(id)) : Effect.succeed(record)
  })

const holders = (world: VolumeWorld) => attachmentsOf([...world.instances.values()])

type Attachments = Pick<
  Instances["Service"],
  "attach" | "detach" | "attachments" | "removeVolume" | "growVolume"
>

export const fakeAttachments = (world: VolumeWorld): Attachments => {
  const instance = (id: InstanceId) =>
    Effect.suspend(() => {
      const found = world.instances.get(id)
      return found === undefined
        ? Effect.fail(new InstanceNotFound({ detail: `There is no instance ${id}.`, instance_id: id }))
        : Effect.succeed(found)
    })
  const changed = Effect.fnUntraced(function* (
    id: InstanceId,
    volume: VolumeId,
    change: (view: Effect.Success<ReturnType<typeof instance>>) => Effect.Success<ReturnType<typeof instance>>
  ) {
    yield* find(world, volume)
    const view = change(yield* instance(id))
    world.instances.set(id, { ...view, generation: view.generation + 1 })
    return { ...view, generation: view.generation + 1 }
  })
  return {
    attach: (id, volume, how) => {
      world.calls.push(["attach", id, volume, how])
      return changed(id, volume, (view) => ({
        ...view,
        volumes: [...view.volumes, { volume_id: volume, ...how, status: "mounted" }]
      }))
    },
    detach: (id, volume, force) => {
      world.calls.push(["detach", id, volume, force])
      return changed(id, volume, (view) => ({
        ...view,
        volumes: view.volumes.filter((it) => it.volume_id !== volume)
      }))
    },
    attachments: Effect.sync(() => holders(world)),
    removeVolume: Effect.fnUntraced(function* (id: VolumeId) {
      yield* find(world, id)
      const held = holders(world).get(id) ?? []
      if (held.length > 0)
        return yield* new VolumeInUse({
          detail: "In use.",
          volume_id: id,
          instances: held.map((it) => it.instance_id)
        })
      world.volumes.delete(id)
    }),
    growVolume: (id, sizeGb) => {
      world.calls.push(["growVolume", id, sizeGb])
      return Effect.map(find(world, id), (record) => {
        const grown = { ...record, size_gb: sizeGb }
        world.volumes.set(id, grown)
        return grown
      })
    }
  }
}

export const fakeVolumes = (world: VolumeWorld): Volumes["Service"] => {
  const create = (request: CreateVolume) =>
    Effect.suspend(() => {
      const id = request.id ?? VolumeId.make("vol-new")
      if (world.volumes.has(id))
        return Effect.fail(new VolumeExists({ detail: `${id} exists.`, volume_id: id }))
      const record = { ...fakeVolume(id, request.size_gb), name: request.name }
      world.volumes.set(id, record)
      return Effect.succeed(record)
    })
  return {
    list: Effect.sync(() => [...world.volumes.values()]),
    get: (id) => find(world, id),
    create,
    importArchive: (request, archive) =>
      Stream.runForEach(archive, (chunk) =>
        Effect.sync(() => {
          world.imported.bytes += chunk.length
          world.imported.chunks += 1
        })
      ).pipe(Effect.andThen(create(request))),
    remove: (id) => Effect.map(find(world, id), () => void world.volumes.delete(id)),
    grow: (id) => find(world, id),
    disk: (id) => `/nowhere/${id}`,
    prepare: () => Effect.void
  }
}
