/** The driver's own part of a spawn, over a program that passes for Cloud Hypervisor; the live tests have the real one. */
import { accessSync, constants, existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs"
import * as path from "node:path"
import { assert, beforeEach, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { discover } from "../../../src/vmm/cloud-hypervisor/discovery.ts"
import type { VmConfig } from "../../../src/vmm/Vmm.ts"
import { type CloudHypervisorHost, cloudHypervisorHost } from "../../support/cloudHypervisor.ts"
import type { FakePlan } from "../../support/fakeCloudHypervisor.ts"
import { temporaryDirectory } from "../../support/temporary.ts"
import { startVm } from "../../support/vmmHost.ts"

const fake = path.resolve(import.meta.dirname, "../../support/fakeCloudHypervisor.ts")

/** A program of this plan. */
const program = (plan: FakePlan = {}) =>
  Effect.map(temporaryDirectory("fake"), (directory) => {
    const file = path.join(directory, "cloud-hypervisor")
    writeFileSync(file, `#!/bin/sh\nexec '${process.execPath}' '${fake}' '${JSON.stringify(plan)}' "$@"\n`, {
      mode: 0o755
    })
    return file
  })

const hostOf = (plan: FakePlan) => Effect.flatMap(program(plan), cloudHypervisorHost)

const calls = (config: VmConfig) =>
  readFileSync(config.logPath, "utf8")
    .split("\n")
    .filter((line) => line.startsWith("vm"))

const refusal = (host: CloudHypervisorHost) =>
  Effect.gen(function* () {
    const config = host.configure("vm")
    const fault = yield* Effect.flip(host.vmm.spawn(config))
    assert.deepStrictEqual(yield* host.processes.scan, [])
    assert.deepStrictEqual(readdirSync(config.runDirectory), [])
    return fault.reason
  })

const kvm = (): string | null => {
  try {
    accessSync("/dev/kvm", constants.R_OK | constants.W_OK)
    return null
  } catch {
    return "needs /dev/kvm, which does not open here"
  }
}

describe("the programs of CLOUD_HYPERVISOR_BIN", () => {
  beforeEach((context) => {
    const why = kvm()
    if (why !== null) context.skip(why)
  })

  it.live("stand side by side, the first one for new VMs, no version twice", () =>
    Effect.gen(function* () {
      const versions = ["v52.0", "v53.0", "v52.0-dirty", "v51.2"]
      const programs = yield* Effect.forEach(versions, (version) => program({ version }))
      const { installed } = yield* discover(programs)
      assert.deepStrictEqual(
        installed.map((it) => [it.program, it.release.version]),
        [
          [programs[0], "52.0"],
          [programs[1], "53.0"],
          [programs[3], "51.2"]
        ]
      )
    }).pipe(Effect.scoped)
  )

  it.live("are refused with a sentence where one is missing, too old or something else", () =>
    Effect.gen(function* () {
      const good = yield* program()
      const old = yield* program({ version: "v51.1" })
      const reasons = yield* Effect.forEach(
        [[good, old], ["/nonexistent/ch"], ["/bin/true"], []],
        (programs) => Effect.map(Effect.flip(discover(programs)), (fault) => fault.reason)
      )
      const said = [
        "at least 51.2 is needed",
        "is not installed",
        "does not say that it is",
        "names no program"
      ]
      said.forEach((text, index) => assert.include(reasons[index] ?? "", text))
    }).pipe(Effect.scoped)
  )
})

describe("a spawn", () => {
  beforeEach((context) => {
    const why = kvm()
    if (why !== null) context.skip(why)
  })

  it.live("gives the VMM its VM, under Landlock, and nothing else", () =>
    Effect.gen(function* () {
      const host = yield* hostOf({})
      const config = host.configure("vm")
      const { ref, session } = yield* startVm(host, config)
      assert.strictEqual((yield* session.status)._tag, "Prelaunch")
      yield* session.boot
      assert.strictEqual((yield* session.status)._tag, "Running")
      assert.deepStrictEqual(calls(config).slice(0, 3), ["vmm.ping", "vm.create", "vmm.ping"])
      yield* session.quit
      assert.deepStrictEqual(yield* host.processes.exit(ref), { code: 0, signal: null })
    }).pipe(Effect.scoped)
  )

  it.live("goes without Landlock where the kernel has none, and asks for it once only", () =>
    Effect.gen(function* () {
      const host = yield* hostOf({ noLandlock: true })
      const first = host.configure("first")
      yield* host.vmm.spawn(first)
      assert.deepStrictEqual(calls(first), ["vmm.ping", "vm.create", "vm.delete", "vm.create"])
      const second = host.configure("second")
      yield* host.vmm.spawn(second)
      assert.deepStrictEqual(calls(second), ["vmm.ping", "vm.create"])
    }).pipe(Effect.scoped)
  )

  it.live("that is refused leaves no process and no file", () =>
    Effect.gen(function* () {
      const host = yield* hostOf({ refuseCreate: "Identifier disk-a is not unique" })
      assert.include(yield* refusal(host), "Identifier disk-a is not unique")
    }).pipe(Effect.scoped)
  )

  it.live("that ends at once says what its VMM said last", () =>
    Effect.gen(function* () {
      const host = yield* hostOf({ lastWords: "Failed to open hypervisor interface" })
      assert.include(yield* refusal(host), "exit code 1: Failed to open hypervisor interface")
    }).pipe(Effect.scoped)
  )

  it.live("is not adopted where another process answers for it", () =>
    Effect.gen(function* () {
      const host = yield* hostOf({ pid: 4 })
      const config = host.configure("vm")
      const ref = host.ref(config, yield* host.vmm.spawn(config))
      const fault = yield* Effect.flip(host.vmm.attach(ref))
      assert.include(fault.reason, `process 4 answers for process ${ref.process.pid}`)
      assert.isTrue(existsSync(config.runDirectory))
    }).pipe(Effect.scoped)
  )
})
