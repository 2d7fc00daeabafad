import * as fs from "node:fs"
import * as path from "node:path"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { discover, newestMachine, versionOf } from "../../../src/vmm/qemu/discovery.ts"
import { compareVersions } from "../../../src/host/version.ts"
import { temporaryDirectory } from "../../support/temporary.ts"

const help = `Supported machines are:
pc-i440fx-9.2        Standard PC (i440FX + PIIX, 1996)
q35                  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-10.0)
pc-q35-9.2           Standard PC (Q35 + ICH9, 2009)
pc-q35-10.0          Standard PC (Q35 + ICH9, 2009)
pc-q35-4.0.1         Standard PC (Q35 + ICH9, 2009)
pc-q35-noble         Ubuntu 24.04 PC (Q35 + ICH9, 2009)
`

/** A program that answers as QEMU would. */
const program = (version: string, machines = help) =>
  Effect.map(temporaryDirectory("qemu"), (directory) => {
    const file = path.join(directory, "qemu")
    fs.writeFileSync(
      file,
      `#!/bin/sh\ncase "$1" in\n--version) cat <<'X'\n${version}\nX\n;;\n*) cat <<'X'\n${machines}\nX\n;;\nesac\n`,
      { mode: 0o755 }
    )
    return file
  })

const refusal = (file: string) => Effect.map(Effect.flip(discover(file, "tcg")), (fault) => fault.reason)

describe("the QEMU of this host", () => {
  it("says its version and machines", () => {
    assert.strictEqual(
      versionOf("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright"),
      "7.2.22"
    )
    assert.strictEqual(versionOf("QEMU emulator version 10.0 (qemu-10.0)"), "10.0")
    assert.isUndefined(versionOf("bash, version 5.2"))
    assert.strictEqual(newestMachine(help), "pc-q35-10.0")
    assert.isUndefined(newestMachine("virt  QEMU 9.2 ARM Virtual Machine"))
    assert.isAbove(compareVersions("10.0", "9.2"), 0)
    assert.isBelow(compareVersions("7.2", "7.2.1"), 0)
    assert.strictEqual(compareVersions("7.2", "7.2.0"), 0)
  })

  it.live("is taken, or refused with a sentence", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const good = yield* program("QEMU emulator version 10.0.2 (Debian)")
        assert.deepStrictEqual(yield* discover(good, "tcg"), {
          program: good,
          version: "10.0.2",
          machine: "pc-q35-10.0",
          accelerator: "tcg",
          cpu: "max"
        })
        assert.include(yield* refusal(yield* program("QEMU emulator version 6.2.0")), "at least 7.2")
        assert.include(yield* refusal(yield* program("not at all")), "does not say that it is QEMU")
        assert.include(
          yield* refusal(yield* program("QEMU emulator version 9.0", "virt  ARM")),
          "qemu-system-x86_64"
        )
        assert.include(yield* refusal("/nowhere/qemu"), "not installed")
      })
    )
  )
})
