/**
 * From a request to a volume that the guest has mounted, beside the same done by hand on the same guest: QMP commands on
 * its monitor, then a shell in the guest that waits for the disk and mounts it. The service is stopped for that, since a
 * monitor has one client; the guest runs on.
 *
 *   ours     POST /instances/{id}/volumes/{volume} ──► 200
 *   by hand  blockdev-add ──► device_add ──► httpd in the guest: until the disk is there, mount
 */
import * as path from "node:path"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { InstanceId, VolumeId } from "../../src/domain/Ids.ts"
import type { Instance } from "../../src/domain/Instance.ts"
import { qmpSocket } from "../../src/vmm/qemu/args.ts"
import { connect, type Qmp } from "../../src/vmm/qemu/Qmp.ts"
import { createInstance, importImage } from "../../test/support/guests.ts"
import { guestImage, inGuest, untilReady } from "../../test/support/liveGuest.ts"
import { type Service, startService } from "../../test/support/Service.ts"
import { type Row, spread } from "./table.ts"

const id = InstanceId.make("bench-volume")
const volume = VolumeId.make("bench")
const port = "hot15"
const device = "disk-hand"

const timed = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.suspend(() => {
    const startedAt = performance.now()
    return Effect.map(effect, () => performance.now() - startedAt)
  })

const ours = (service: Service) => {
  const params = { id, volume }
  return Effect.gen(function* () {
    const ms = yield* timed(
      service.client.attachments.attach({ params, payload: { mount_path: "/data", readonly: false } })
    )
    yield* service.client.attachments.detach({ params, query: {} })
    return ms
  })
}

const mounting =
  'mkdir -p /data; while :; do for d in /sys/block/vd*; do [ "$(cat $d/serial)" = hand ] && mount -t ext4 /dev/${d##*/} /data && exit; done; done'

const byHand = (service: Service, instance: Instance, qmp: Qmp, file: string) =>
  Effect.gen(function* () {
    const ms = yield* timed(
      qmp
        .order("blockdev-add", {
          driver: "raw",
          "node-name": device,
          file: { driver: "file", filename: file }
        })
        .pipe(
          Effect.andThen(
            qmp.order("device_add", {
              driver: "virtio-blk-pci",
              id: device,
              serial: "hand",
              drive: device,
              bus: port,
              addr: "00.0"
            })
          ),
          Effect.andThen(inGuest(service, instance, mounting))
        )
    )
    yield* inGuest(service, instance, "umount /data")
    const gone = yield* qmp.first((event) =>
      event.name === "DEVICE_DELETED" && event.data["device"] === device ? Option.some(true) : Option.none()
    )
    yield* qmp.order("device_del", { id: device })
    yield* gone
    yield* qmp.order("blockdev-del", { "node-name": device })
    return ms
  }).pipe(Effect.scoped)

/** The first one warms up. */
const several = <E, R>(rounds: number, one: Effect.Effect<number, E, R>) =>
  Effect.map(
    Effect.forEach(Array.from({ length: rounds + 1 }), () => one),
    (taken) => taken.slice(1)
  )

/** About 20 s under software emulation. */
export const benchVolume = (rounds = 10): Promise<ReadonlyArray<Row>> => {
  const measured = Effect.gen(function* () {
    const service = yield* startService({
      env: { VMM: "qemu", QEMU_ACCEL: process.env["QEMU_ACCEL"] ?? "tcg" }
    })
    const image = yield* importImage(service, "img-guest", guestImage)
    const instance = yield* createInstance(service, { id, name: id, image: image.id, memory_mb: 256 })
    yield* untilReady(service, instance)
    yield* inGuest(service, instance, "true")
    yield* service.client.volumes.create({ payload: { id: volume, name: volume, size_gb: 1 } })
    const taken = yield* several(rounds, ours(service))
    yield* service.stop("SIGTERM")
    const file = path.join(service.dataDir, "volumes", volume, "disk.raw")
    const qmp = yield* connect(qmpSocket(path.join(service.runDirectory, id)))
    const hand = yield* several(rounds, byHand(service, instance, qmp, file))
    const row: Row = {
      part: "volume",
      what: "POST of a volume to its mount in the guest",
      unit: "ms",
      ours: spread(taken),
      baseline: { name: "QMP device_add and mount by hand", spread: spread(hand) },
      aim: "",
      met: null
    }
    return [row]
  })
  return Effect.runPromise(Effect.scoped(measured))
}
