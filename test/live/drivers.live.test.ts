/** The same scenarios on every driver (driverStory.ts); the table at the end says what ran here, and why not. */
import * as fs from "node:fs"
import * as path from "node:path"
import { afterAll, assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as TestClock from "effect/testing/TestClock"
import { look } from "../../src/host/simulated/ledger.ts"
import type { VmConfig } from "../../src/vmm/Vmm.ts"
import {
  binaries,
  cloudHypervisorHost,
  cloudHypervisorObstacle,
  snapshotDirectory
} from "../support/cloudHypervisor.ts"
import { type Ground, skipDriver, table, tell } from "../support/driverStory.ts"
import { liveObstacle } from "../support/liveHost.ts"
import { makeHost, prepareVm } from "../support/simulatedWorld.ts"
import { consoleText, ticks, untilConsole } from "../support/vmmGuest.ts"
import { type VmmHost, vmmHost } from "../support/vmmHost.ts"

const testMaxMs = 240_000
const tickMs = 100

/** Inverts one byte in the middle of a file. */
const damage = (directory: string, name: string) =>
  Effect.sync(() => {
    const file = path.join(directory, name)
    const handle = fs.openSync(file, "r+")
    const at = Math.floor(fs.fstatSync(handle).size / 2)
    const byte = Buffer.alloc(1)
    fs.readSync(handle, byte, 0, 1, at)
    byte[0] = (byte[0] ?? 0) ^ 0xff
    fs.writeSync(handle, byte, 0, 1, at)
    fs.closeSync(handle)
  })

/** On real processes: the guest counts on its console. */
const realGround = (host: VmmHost): Ground => {
  const counted = (config: VmConfig) => ticks(consoleText(config.consolePath))
  return {
    vmm: host.vmm,
    processes: host.processes,
    configure: (disks) => Effect.sync(() => host.configure("story", { disks })),
    counted,
    goesOn: (config) =>
      Effect.suspend(() => {
        const before = counted(config).length
        return untilConsole(config.consolePath, "more ticks", (text) => ticks(text).length >= before + 3)
      }).pipe(Effect.asVoid),
    disk: { serial: "more", path: host.disk("more.raw"), readonly: false, removable: true },
    directory: Effect.sync(() => snapshotDirectory(host, host.configure("story"), "1")),
    damage
  }
}

const simulatedGround = Effect.gen(function* () {
  const host = yield* makeHost()
  const { vmm, processes } = yield* host.startService
  // Numbers up to here were counted in an earlier run, whose process is gone.
  let [first, known] = [0, 0]
  const config = yield* prepareVm(host, "story")
  const count = () => (known = look(host.world, config.id)?.counter ?? known)
  const ground: Ground = {
    vmm,
    processes,
    configure: (disks) =>
      Effect.sync(() => {
        first = known
        return { ...config, disks: [...config.disks, ...disks] }
      }),
    counted: () => Array.from({ length: count() }, (_, index) => index + 1).filter((it) => it > first),
    goesOn: () => TestClock.adjust(3 * tickMs),
    disk: { serial: "more", path: "/data/layers/base", readonly: true, removable: true },
    directory: Effect.succeed("/data/story/snapshot"),
    damage: null
  }
  return ground
})

describe("every driver", { timeout: testMaxMs }, () => {
  afterAll(() => void process.stdout.write(`\n${table()}\n\n`))

  it.effect("simulated", () =>
    simulatedGround.pipe(
      Effect.flatMap((ground) => tell("simulated", ground)),
      Effect.scoped
    )
  )

  const noQemu = liveObstacle()
  it.live("qemu", (context) => {
    if (noQemu === null)
      return vmmHost.pipe(
        Effect.flatMap((host) => tell(`qemu ${host.vmm.version}`, realGround(host))),
        Effect.scoped
      )
    skipDriver("qemu", noQemu)
    return Effect.sync(() => context.skip(noQemu))
  })

  const noCloudHypervisor = cloudHypervisorObstacle()
  const releases = noCloudHypervisor === null ? binaries() : []
  for (const { program, version } of releases)
    it.live(`cloud-hypervisor ${version}`, () =>
      cloudHypervisorHost(program).pipe(
        Effect.flatMap((host) => tell(`cloud-hypervisor ${version}`, realGround(host))),
        Effect.scoped
      )
    )
  if (noCloudHypervisor !== null)
    it("cloud-hypervisor", (context) => {
      skipDriver("cloud-hypervisor", noCloudHypervisor)
      context.skip(noCloudHypervisor)
      assert.fail("unreachable")
    })
})
