/** The doctor's eyes, on this very machine and on one whose programs and files the test made. */
import { chmodSync, mkdirSync, writeFileSync } from "node:fs"
import * as path from "node:path"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import { checks, doctor } from "../../../src/host/doctor/doctor.ts"
import { survey, versionIn } from "../../../src/host/doctor/probe.ts"
import { accelerator, hasVirtualization } from "../../../src/host/Kvm.ts"
import { decodeSettings, type Environment, Settings } from "../../../src/host/Settings.ts"
import { temporaryDirectory } from "../../support/temporary.ts"

const withSettings = (env: Environment) =>
  Effect.provideService(Settings, Settings.of(Result.getOrThrow(decodeSettings(env, false))))

const program = (file: string, script: string): string => {
  writeFileSync(file, `#!/bin/sh\n${script}\n`)
  chmodSync(file, 0o755)
  return file
}

describe("the doctor's eyes", () => {
  it.live("see programs as they are: there, missing, broken", () =>
    Effect.gen(function* () {
      const directory = yield* temporaryDirectory("doctor")
      const qemu = program(path.join(directory, "qemu"), "echo QEMU emulator version 9.1.2 '(Debian 1:9.1)'")
      const seen = yield* survey.pipe(
        withSettings({
          DATA_DIR: directory,
          QEMU_BIN: qemu,
          CLOUD_HYPERVISOR_BIN: path.join(directory, "none")
        })
      )
      assert.deepStrictEqual(seen.qemu, { _tag: "Found", version: "9.1.2" })
      assert.deepStrictEqual(seen.cloudHypervisor, [{ _tag: "Missing" }])
      const broken = program(path.join(directory, "broken"), "echo no luck >&2; exit 3")
      const again = yield* survey.pipe(withSettings({ DATA_DIR: directory, QEMU_BIN: broken }))
      assert.strictEqual(again.qemu._tag, "Broken")
    })
  )

  it.live("see a DATA_DIR that is not there yet, and one below a file", () =>
    Effect.gen(function* () {
      const directory = yield* temporaryDirectory("doctor")
      const later = yield* survey.pipe(withSettings({ DATA_DIR: path.join(directory, "not", "yet") }))
      assert.strictEqual(later.dataDirectory._tag, "Usable")
      writeFileSync(path.join(directory, "file"), "")
      const never = yield* survey.pipe(withSettings({ DATA_DIR: path.join(directory, "file") }))
      assert.deepStrictEqual(never.dataDirectory, { _tag: "Unusable", code: "ENOTDIR" })
    })
  )

  it.live("see kernel and initrd: missing, a directory, short, whole", () =>
    Effect.gen(function* () {
      const directory = yield* temporaryDirectory("doctor")
      mkdirSync(path.join(directory, "system/vmlinuz"), { recursive: true })
      const first = yield* survey.pipe(withSettings({ DATA_DIR: directory }))
      assert.deepStrictEqual(first.kernel, { _tag: "Unreadable", code: "EISDIR" })
      assert.deepStrictEqual(first.initrd, { _tag: "Missing" })
      writeFileSync(path.join(directory, "short"), "ab")
      const second = yield* survey.pipe(
        withSettings({ DATA_DIR: directory, KERNEL_PATH: path.join(directory, "short") })
      )
      assert.deepStrictEqual(second.kernel, { _tag: "Found", bytes: 2, head: Uint8Array.from([97, 98]) })
    })
  )

  it.live("change nothing and end in a verdict on this machine", () =>
    Effect.gen(function* () {
      const directory = yield* temporaryDirectory("doctor")
      const env = { DATA_DIR: path.join(directory, "data") }
      const found = yield* checks.pipe(withSettings(env))
      assert.includeMembers(
        found.map((check) => check.name),
        ["accelerator", "skopeo", "bridge", "subnet", "kernel", "initrd"]
      )
      const { text, exitCode } = yield* doctor.pipe(withSettings(env))
      // Kernel and initrd are missing in a new DATA_DIR, whatever else this machine has.
      assert.strictEqual(exitCode, 1)
      assert.match(text, /^FAIL kernel/m)
    })
  )

  it("find versions in what programs say", () => {
    assert.strictEqual(versionIn("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u20)"), "7.2.22")
    assert.strictEqual(versionIn("ip utility, iproute2-6.1.0, libbpf 1.1.2"), "6.1.0")
    assert.strictEqual(versionIn("cloud-hypervisor v53.0.0"), "53.0.0")
    assert.strictEqual(versionIn("no number"), null)
  })
})

describe("KVM", () => {
  it("needs a CPU that virtualizes", () => {
    assert.isTrue(hasVirtualization("processor\t: 0\nflags\t\t: fpu vmx sse\n"))
    assert.isTrue(hasVirtualization("flags : svm\n"))
    assert.isFalse(hasVirtualization("flags\t\t: fpu sse\nmodel name: vmx\n"))
    assert.isFalse(hasVirtualization("flags\t\t: vmxoff\n"))
  })

  it("is taken by auto only where it is usable; a wish is a wish", () => {
    assert.strictEqual(accelerator("auto", { _tag: "Usable" }), "kvm")
    assert.strictEqual(accelerator("auto", { _tag: "NoVirtualization" }), "tcg")
    assert.strictEqual(accelerator("kvm", { _tag: "NoDevice" }), "kvm")
    assert.strictEqual(accelerator("tcg", { _tag: "Usable" }), "tcg")
  })
})
