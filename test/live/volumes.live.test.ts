/**
 * Volumes on real guests: real files and their checksums through attach, detach, standby, restore, growth, and the deaths
 * of the service and of the VMM.
 */
import * as fs from "node:fs/promises"
import * as path from "node:path"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { busyboxLayer } from "../../scripts/demoImage.ts"
import { layerTar } from "../../scripts/imageArchive.ts"
import { InstanceId, VolumeId } from "../../src/domain/Ids.ts"
import type { Instance } from "../../src/domain/Instance.ts"
import { volumeSerial } from "../../src/host/volumeSerial.ts"
import { run } from "../../src/host/Command.ts"
import { createInstance, importImage } from "../support/guests.ts"
import { expectNoLeaks, ledger } from "../support/leaks.ts"
import { shared } from "../support/live.ts"
import { sh as shell } from "../support/liveExec.ts"
import { allLines, refused, untilLine, untilReady, untilState } from "../support/liveGuest.ts"
import { type Service, startService } from "../support/Service.ts"

const a = InstanceId.make("a")
const b = InstanceId.make("b")
const data = VolumeId.make("data")

/** Appends its next number, fsyncs it, and only then says so on the console: what a database calls a commit. */
const committer = `#!/bin/sh
n=0
while :; do
  if [ -e /data/go ]; then
    n=$((n + 1))
    echo "$n" >> /data/log && sync /data/log && echo "committed $n"
  fi
  sleep 0.05
done
`

const guestImage = {
  layers: [busyboxLayer(), [{ kind: "file" as const, path: "committer", content: committer, mode: 0o755 }]],
  entrypoint: ["/bin/sh", "/committer"],
  env: { PATH: "/bin" },
  name: "volumes:latest"
}

const ground = Effect.gen(function* () {
  const service = yield* startService({ env: { QEMU_ACCEL: "tcg" } })
  const image = yield* importImage(service, "img-volumes", guestImage)
  const before = yield* ledger(service)
  yield* service.client.volumes.create({ payload: { id: data, name: "Data", size_gb: 1 } })
  const make = (name: string, volumes: ReadonlyArray<{ volume_id: string; mount_path: string }>) =>
    createInstance(service, {
      id: name,
      name,
      image: image.id,
      memory_mb: 128,
      volumes: [...volumes],
      network: { enabled: false }
    })
  const [first, second] = yield* Effect.all(
    [make("a", [{ volume_id: "data", mount_path: "/data" }]), make("b", [])],
    { concurrency: 2 }
  )
  yield* untilReady(service, first)
  yield* untilReady(service, second)
  return { service, before, image }
})

/** A command line in a guest; dies where it fails, with what it said. */
const sh = (service: Service, id: InstanceId, line: string) =>
  Effect.map(shell(service, id, line), (it) => it.trim())

/** Goes on after the exec that started it. */
const behind = (line: string) => `setsid sh -c '${line}' > /dev/null 2>&1 < /dev/null &`

const attach = (service: Service, id: InstanceId, how: { mount_path?: string; readonly?: boolean } = {}) =>
  service.client.attachments.attach({
    params: { id, volume: data },
    payload: { mount_path: how.mount_path ?? "/data", readonly: how.readonly ?? false }
  })
const detach = (service: Service, id: InstanceId, force = false) =>
  service.client.attachments.detach({ params: { id, volume: data }, query: { force } })
const statuses = (view: Instance) => view.volumes.map(({ volume_id, status }) => `${volume_id} ${status}`)
const view = (service: Service, id: InstanceId) => service.client.instances.get({ params: { id } })

const checksum = (service: Service, id: InstanceId) =>
  Effect.map(sh(service, id, "sha256sum /data/blob"), (it) => it.split(" ")[0])

/** A writer that opens, appends and closes all the time is in the way now and then: asked again, it is a moment's. */
const untilDetached = (service: Service, id: InstanceId) =>
  detach(service, id).pipe(Effect.retry({ schedule: Schedule.spaced("50 millis"), times: 200 }))

const committed = ({ line }: { readonly line: string }) => Number(/^committed (\d+)$/u.exec(line)?.[1] ?? 0)
const untilCommitted = (service: Service, count: number, tail?: number) =>
  Effect.map(
    untilLine(service, a, (it) => committed(it) >= count, tail === undefined ? {} : { tail }),
    (lines) => Math.max(...lines.map(committed))
  )

/** What is in the log of commits: all numbers from 1 on, in order, none missing; gives the last. */
const lastOf = (service: Service, id: InstanceId) =>
  Effect.map(sh(service, id, "cat /data/log"), (text) => {
    const numbers = text.split("\n").map(Number)
    assert.deepStrictEqual(
      numbers,
      numbers.map((_, at) => at + 1)
    )
    return numbers.length
  })

describe("volumes of real guests", { timeout: 240_000 }, () => {
  const common = shared(ground)

  it.live(
    "attached at create, it is there at the boot; what holds it is named; what was written is kept elsewhere",
    () =>
      Effect.gen(function* () {
        const { service } = yield* common
        assert.deepStrictEqual(statuses(yield* view(service, a)), ["data mounted"])
        assert.match(yield* sh(service, a, "grep ' /data ' /proc/mounts"), /^\/dev\/vd\w+ \/data ext4 rw/u)
        // Not synced: the detach is what brings it to the disk.
        yield* sh(service, a, "dd if=/dev/urandom of=/data/blob bs=64k count=128 2>/dev/null")
        const sum = yield* checksum(service, a)
        yield* sh(service, a, behind("echo $$ > /tmp/holder; exec sleep 1000 < /data/blob"))
        const holder = Number(
          yield* sh(service, a, "until [ -s /tmp/holder ]; do sleep 0.05; done; cat /tmp/holder")
        )
        const problem = yield* refused(service, "DELETE", "/instances/a/volumes/data")
        assert.deepStrictEqual([problem.name, problem.status], ["volume-busy", 409])
        const members = yield* Schema.decodeUnknownEffect(
          Schema.Struct({ holders: Schema.Array(Schema.Struct({ pid: Schema.Int, command: Schema.String })) })
        )(problem.members)
        assert.include(
          members.holders.map((it) => it.pid),
          holder
        )
        assert.match(members.holders.find((it) => it.pid === holder)?.command ?? "", /sleep|busybox/u)
        assert.deepStrictEqual(statuses(yield* view(service, a)), ["data mounted"])
        const second = yield* refused(service, "POST", "/instances/b/volumes/data", { mount_path: "/data" })
        assert.deepStrictEqual([second.name, second.status], ["volume-in-use", 409])
        yield* sh(service, a, `kill ${holder}`)

        // In the middle of writes: each line is whole, and none that was closed before the detach is missing.
        yield* sh(
          service,
          a,
          behind(
            'i=0; while grep -q " /data " /proc/mounts; do i=$((i+1)); echo line $i >> /data/lines; done'
          )
        )
        yield* sh(service, a, "until [ -s /data/lines ]; do sleep 0.05; done")
        const detached = yield* untilDetached(service, a)
        assert.deepStrictEqual(detached.volumes, [])
        assert.strictEqual(yield* sh(service, a, "grep -c ' /data ' /proc/mounts || true"), "0")
        assert.strictEqual(
          yield* sh(
            service,
            a,
            `cat /sys/block/*/serial 2>/dev/null | grep -c ${volumeSerial(data)} || true`
          ),
          "0"
        )

        const attached = yield* attach(service, b)
        assert.deepStrictEqual(statuses(attached), ["data mounted"])
        assert.strictEqual(yield* checksum(service, b), sum)
        const lines = (yield* sh(service, b, "cat /data/lines")).split("\n")
        assert.deepStrictEqual(
          lines,
          lines.map((_, at) => `line ${at + 1}`)
        )
      })
  )

  it.live("one writer by the records and by QEMU's own lock; readers as many as there are", () =>
    Effect.gen(function* () {
      const { service } = yield* common
      const file = path.join(service.dataDir, "volumes", data, "disk.raw")
      const sum = yield* checksum(service, b)
      const stranger = yield* Effect.flip(
        run("qemu-system-x86_64", [
          "-display",
          "none",
          "-nodefaults",
          "-S",
          "-blockdev",
          JSON.stringify({ driver: "file", filename: file, "node-name": "x" }),
          "-device",
          "virtio-blk-pci,drive=x"
        ])
      )
      assert.match(stranger.stderr, /Failed to get .* lock/u)
      yield* untilDetached(service, b)
      yield* attach(service, a, { readonly: true })
      yield* attach(service, b, { readonly: true })
      assert.strictEqual(yield* checksum(service, a), sum)
      assert.strictEqual(yield* checksum(service, b), sum)
      assert.match(yield* sh(service, a, "touch /data/x 2>&1 || true"), /Read-only/u)
      assert.deepStrictEqual(
        (yield* service.client.volumes.get({ params: { id: data } })).attachments
          .map((it) => `${it.instance_id} ${it.readonly}`)
          .toSorted(),
        ["a true", "b true"]
      )
      assert.strictEqual(
        (yield* refused(service, "PATCH", "/volumes/data", { size_gb: 2 })).name,
        "volume-in-use"
      )
      assert.strictEqual((yield* refused(service, "DELETE", "/volumes/data")).name, "volume-in-use")
      yield* detach(service, a)
      assert.strictEqual(
        (yield* refused(service, "POST", "/instances/a/volumes/data", { mount_path: "/data" })).name,
        "volume-in-use"
      )
      yield* detach(service, b)
    })
  )

  it.live("grows under the guest that has it mounted, and never shrinks", () =>
    Effect.gen(function* () {
      const { service } = yield* common
      yield* attach(service, a)
      const sum = yield* checksum(service, a)
      const size = () => Effect.map(sh(service, a, "df -k /data | tail -1 | awk '{print $2}'"), Number)
      const small = yield* size()
      const grown = yield* service.client.volumes.patch({ params: { id: data }, payload: { size_gb: 3 } })
      assert.strictEqual(grown.size_gb, 3)
      const large = yield* size()
      assert.isAbove(large, small * 2.5)
      assert.strictEqual(yield* checksum(service, a), sum)
      assert.strictEqual((yield* refused(service, "PATCH", "/volumes/data", { size_gb: 2 })).status, 422)
    })
  )

  it.live(
    "nothing that was committed is lost through standby and restore, the service's death and the VMM's",
    () =>
      Effect.gen(function* () {
        const { service } = yield* common
        yield* sh(service, a, "touch /data/go")
        yield* untilCommitted(service, 5)
        const standby = yield* service.client.instances.standby({ params: { id: a } })
        assert.deepStrictEqual(statuses(standby), ["data frozen"])
        assert.strictEqual(
          (yield* refused(service, "DELETE", "/instances/a/volumes/data")).name,
          "invalid-state"
        )
        assert.strictEqual(
          (yield* refused(service, "POST", "/instances/b/volumes/data", { mount_path: "/data" })).name,
          "volume-in-use"
        )
        yield* service.restart("SIGKILL")
        yield* service.client.instances.restore({ params: { id: a }, query: {} })
        const resumed = yield* untilCommitted(service, 1, 1)
        yield* untilCommitted(service, resumed + 5)
        yield* service.restart("SIGKILL")
        assert.deepStrictEqual(statuses(yield* view(service, a)), ["data mounted"])
        yield* untilReady(service, { id: a })
        const seen = yield* untilCommitted(service, resumed + 10)
        assert.isAtLeast(yield* lastOf(service, a), seen)

        const { vmm } = yield* view(service, a)
        process.kill(vmm.pid ?? 0, "SIGKILL")
        const dead = yield* untilState(service, { id: a }, "Stopped")
        assert.strictEqual(dead.exit?.reason, "vmm-died")
        assert.deepStrictEqual(statuses(dead), ["data next-boot"])
        const said = yield* allLines(service, a)
        const last = Math.max(seen, ...said.map(committed))
        yield* detach(service, a)
        // Its journal was not played back: a reader could not do that, so the host sees to it.
        yield* attach(service, b, { readonly: true })
        assert.isAtLeast(yield* lastOf(service, b), last)
        yield* detach(service, b)
      })
  )

  it.live("comes and goes with a guest that is off or paused; force takes it from who holds it", () =>
    Effect.gen(function* () {
      const { service } = yield* common
      yield* service.client.instances.pause({ params: { id: b } })
      assert.deepStrictEqual(statuses(yield* attach(service, b)), ["data attaching"])
      yield* service.client.instances.resume({ params: { id: b } })
      yield* untilState(service, { id: b }, "Running")
      assert.deepStrictEqual(statuses(yield* view(service, b)), ["data mounted"])
      yield* sh(service, b, "rm -f /data/go; echo kept > /data/kept")
      yield* sh(
        service,
        b,
        behind("echo held > /tmp/held; exec sleep 1000 < /data/kept") +
          " until [ -s /tmp/held ]; do sleep 0.05; done"
      )
      assert.strictEqual((yield* refused(service, "DELETE", "/instances/b/volumes/data")).name, "volume-busy")
      assert.deepStrictEqual((yield* detach(service, b, true)).volumes, [])
      assert.strictEqual(yield* sh(service, b, "grep -c ' /data ' /proc/mounts || true"), "0")

      yield* service.client.instances.shutdown({ params: { id: b } })
      yield* attach(service, b)
      assert.deepStrictEqual((yield* detach(service, b)).volumes, [])
      assert.strictEqual((yield* view(service, b)).state, "Shutdown")
      assert.deepStrictEqual(statuses(yield* attach(service, b)), ["data next-boot"])
      yield* service.client.instances.start({ params: { id: b } })
      yield* untilReady(service, { id: b })
      assert.strictEqual(yield* sh(service, b, "cat /data/kept"), "kept")
      yield* service.client.instances.pause({ params: { id: b } })
      assert.deepStrictEqual(statuses(yield* detach(service, b)), ["data detaching"])
      yield* service.client.instances.resume({ params: { id: b } })
      yield* untilState(service, { id: b }, "Running")
      assert.deepStrictEqual((yield* view(service, b)).volumes, [])
    })
  )

  it.live("filled from an archive, it is mounted with the archive's owners and modes", () =>
    Effect.gen(function* () {
      const { service } = yield* common
      const seed = VolumeId.make("seed")
      const archive = yield* Effect.promise(() =>
        layerTar([
          { kind: "directory", path: "conf", mode: 0o750 },
          { kind: "file", path: "conf/app", content: "from the archive\n", mode: 0o640 },
          { kind: "symlink", path: "current", target: "conf/app" }
        ])
      )
      const made = yield* service.client.volumes.import({
        query: { name: "Seed", size_gb: 1, id: seed },
        payload: Stream.make(new Uint8Array(archive))
      })
      assert.deepStrictEqual([made.id, made.size_gb], [seed, 1])
      yield* service.client.attachments.attach({
        params: { id: b, volume: seed },
        payload: { mount_path: "/seed", readonly: true }
      })
      assert.strictEqual(yield* sh(service, b, "cat /seed/current"), "from the archive")
      assert.strictEqual(yield* sh(service, b, "stat -c '%a %u' /seed/conf/app"), "640 0")
      yield* service.client.attachments.detach({ params: { id: b, volume: seed }, query: {} })
      yield* service.client.volumes.remove({ params: { id: seed } })
    })
  )

  it.live("what is deleted leaves nothing", () =>
    Effect.gen(function* () {
      const { service, before } = yield* common
      for (const id of [a, b]) yield* service.client.instances.remove({ params: { id } })
      yield* service.client.volumes.remove({ params: { id: data } })
      assert.deepStrictEqual(
        yield* Effect.promise(() => fs.readdir(path.join(service.dataDir, "volumes"))),
        []
      )
      yield* expectNoLeaks(service, before, (line) => line.startsWith("files: events/"))
    })
  )
})
