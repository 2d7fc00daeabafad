import { assert, describe, it } from "@effect/vitest"
import { sayable } from "../../src/instance/perform/subject.ts"

describe("what a client is told of a VMM's own words", () => {
  for (const [said, told] of [
    ["could not open disk layer-0", "could not open disk layer-0"],
    [
      "qemu: -drive file=/var/lib/x/overlay.raw: Could not open '/var/lib/x/overlay.raw'",
      "qemu: -drive file=(a file): Could not open '(a file)'"
    ],
    ["first\n/secret/second", "first"],
    ["/etc/passwd", "(a file)"],
    ["TCP/IP and 1/2 stay", "TCP/IP and 1/2 stay"]
  ] as const)
    it(JSON.stringify(said), () => assert.strictEqual(sayable(said), told))

  it("is bounded", () => assert.isAtMost(sayable("x".repeat(5_000)).length, 200))
})
