/**
 * Volumes and the instances that hold them: one writer, or any number of readers. The instances' records are the truth
 * of it, so whoever adds to them has looked at all of them before, under the one lock of names; what is being grown or
 * removed is nobody's meanwhile.
 *
 *   attach:  lock ──► nobody in the way? ──► in the instance's record ──► unlock ──► device ──► mounted
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Semaphore from "effect/Semaphore"
import type { InstanceId, VolumeId } from "../domain/Ids.ts"
import type { Instance } from "../domain/Instance.ts"
import { Unprocessable, VolumeInUse } from "../domain/problems.ts"
import { type AttachVolume, type VolumeAttachment, volumeBytes, type VolumeMount } from "../domain/Volume.ts"
import { Volumes } from "../volume/Volumes.ts"
import { attachmentAnswer, growthAnswer, notFound } from "./answers.ts"
import { Supervisor } from "./Supervisor.ts"

/** The lock of names: whatever gives or takes one holds it, and so does whoever gives a volume to an instance. */
export const makeNames = Effect.map(Semaphore.make(1), (lock) => ({
  withPermit: <A, E, R>(body: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> => lock.withPermit(body),
  /** Volumes that are being grown: nobody may take or remove them. */
  growing: new Set<VolumeId>()
}))
export type Names = Effect.Success<typeof makeNames>

/** Who holds which volume, as the published views say. */
export const attachmentsOf = (
  views: ReadonlyArray<Instance>
): ReadonlyMap<VolumeId, ReadonlyArray<VolumeAttachment>> => {
  const found = new Map<VolumeId, Array<VolumeAttachment>>()
  for (const view of views)
    for (const { volume_id, mount_path, readonly } of view.volumes) {
      const attachment = { instance_id: view.id, mount_path, readonly }
      const present = found.get(volume_id)
      if (present === undefined) found.set(volume_id, [attachment])
      else present.push(attachment)
    }
  return found
}

const named = (holders: ReadonlyArray<VolumeAttachment>): string =>
  holders.map((it) => `'${it.instance_id}'${it.readonly ? " (read-only)" : ""}`).join(", ")

const inUse = (volume: VolumeId, holders: ReadonlyArray<VolumeAttachment>, wish: string) =>
  new VolumeInUse({
    detail: `The volume '${volume}' is attached to ${named(holders)}: ${wish}`,
    volume_id: volume,
    instances: holders.map((it) => it.instance_id)
  })

const isGrowing = (volume: VolumeId) =>
  new VolumeInUse({
    detail: `The volume '${volume}' is being grown; try again when it is.`,
    volume_id: volume,
    instances: []
  })

/** Whether the instance may have the volume so, given who else has it. */
const admitMount = Effect.fnUntraced(function* (mount: VolumeMount, own: InstanceId | null) {
  const { registry } = yield* Supervisor
  const volumes = yield* Volumes
  yield* volumes.get(mount.volume_id)
  const holders = attachmentsOf(registry.list({})).get(mount.volume_id) ?? []
  const others = holders.filter((it) => it.instance_id !== own)
  if (others.length === 0 || (mount.readonly && others.every((it) => it.readonly))) return
  return yield* inUse(
    mount.volume_id,
    others,
    "a volume has one writer, or any number of readers. Detach it there, or attach it everywhere with readonly=true."
  )
})

const repeated = (values: ReadonlyArray<string>): string | undefined =>
  values.find((value, at) => values.indexOf(value) !== at)

/** The volumes that a new instance asks for; under the lock of names. */
export const checkVolumes = Effect.fnUntraced(function* (mounts: ReadonlyArray<VolumeMount>) {
  const twice = repeated(mounts.map((it) => it.volume_id)) ?? repeated(mounts.map((it) => it.mount_path))
  if (twice !== undefined)
    return yield* new Unprocessable({ detail: `'${twice}' is named twice in 'volumes'.` })
  yield* Effect.forEach(mounts, (mount) => admitMount(mount, null), { discard: true })
})

/** Refuses a volume that is being grown. */
export const checkGrowing = (names: Names, mounts: ReadonlyArray<VolumeMount>) =>
  Effect.suspend(() => {
    const found = mounts.find((it) => names.growing.has(it.volume_id))
    return found === undefined ? Effect.void : Effect.fail(isGrowing(found.volume_id))
  })

const actorOf = Effect.fnUntraced(function* (id: InstanceId) {
  const { registry } = yield* Supervisor
  return registry.actor(id) ?? (yield* notFound(id))
})

/** Attaches; answers when the guest has it mounted, or when it is as far as the instance's state lets it be. */
export const attach = Effect.fn("Instances.attach")(function* (
  id: InstanceId,
  volume: VolumeId,
  { mount_path, readonly }: AttachVolume,
  names: Names
) {
  const mount: VolumeMount = { volume_id: volume, mount_path, readonly }
  const actor = yield* actorOf(id)
  const begun = yield* names.withPermit(
    Effect.gen(function* () {
      yield* checkGrowing(names, [mount])
      yield* admitMount(mount, id)
      const begun = yield* actor.begin({ _tag: "Attach", volume: mount })
      yield* begun.taken
      return begun
      // A client that goes away must not leave the lock before the volume is in the record.
    }).pipe(Effect.uninterruptible)
  )
  yield* attachmentAnswer(id, volume, "attach", yield* begun.reply)
  return actor.view()
})

/** Detaches; answers when the volume is nobody's, or when it will be at the resume of a paused guest. */
export const detach = Effect.fn("Instances.detach")(function* (
  id: InstanceId,
  volume: VolumeId,
  force: boolean
) {
  const volumes = yield* Volumes
  const actor = yield* actorOf(id)
  // One that is gone from the host may still be named by an instance.
  if (!actor.view().volumes.some((it) => it.volume_id === volume)) yield* volumes.get(volume)
  yield* attachmentAnswer(id, volume, "detach", yield* actor.send({ _tag: "Detach", volume, force }, null))
  return actor.view()
})

export const removeVolume = Effect.fn("Instances.removeVolume")(function* (id: VolumeId, names: Names) {
  const { registry } = yield* Supervisor
  const volumes = yield* Volumes
  yield* names.withPermit(
    Effect.gen(function* () {
      yield* volumes.get(id)
      if (names.growing.has(id)) return yield* isGrowing(id)
      const holders = attachmentsOf(registry.list({})).get(id) ?? []
      if (holders.length > 0) return yield* inUse(id, holders, "detach it there first.")
      return yield* volumes.remove(id)
    }).pipe(Effect.uninterruptible)
  )
})

/** How the one who holds it grows it: nobody, a guest that is off for good, or one that has it mounted. */
const onlineOf = Effect.fnUntraced(function* (id: VolumeId, sizeGb: number) {
  const { registry } = yield* Supervisor
  const holders = attachmentsOf(registry.list({})).get(id) ?? []
  const up = holders.filter((it) => {
    const view = registry.view(it.instance_id)
    return view !== undefined && !(view.state === "Stopped" && view.transition === null)
  })
  const [writer] = up
  if (writer === undefined) return Option.none()
  const actor = registry.actor(writer.instance_id)
  if (up.length > 1 || writer.readonly || actor === undefined)
    return yield* inUse(id, up, "its readers cannot grow it. Stop them, or detach it there first.")
  const grown = Effect.flatMap(actor.growVolume(id, volumeBytes(sizeGb)), (reply) =>
    growthAnswer(writer.instance_id, id, reply)
  )
  const state = actor.record().lifecycle.state._tag
  return state === "Running"
    ? Option.some(grown)
    : yield* inUse(id, up, `it can be grown while that instance is Running or Stopped; it is ${state}.`)
})

/** Grows a volume, with the guest that has it mounted or, where none has, without. */
export const growVolume = Effect.fn("Instances.growVolume")(function* (
  id: VolumeId,
  sizeGb: number,
  names: Names
) {
  const volumes = yield* Volumes
  const claim = names.withPermit(
    Effect.gen(function* () {
      const { size_gb } = yield* volumes.get(id)
      if (sizeGb < size_gb)
        return yield* new Unprocessable({
          detail: `The volume '${id}' has ${size_gb} GiB: a volume only grows.`
        })
      if (names.growing.has(id)) return yield* isGrowing(id)
      const online = yield* onlineOf(id, sizeGb)
      names.growing.add(id)
      return online
    })
  )
  return yield* Effect.acquireUseRelease(
    claim,
    (online) => volumes.grow(id, sizeGb, online),
    () => Effect.sync(() => void names.growing.delete(id))
  )
})
