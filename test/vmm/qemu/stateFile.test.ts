import * as fs from "node:fs"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { headOf, portsOf, readStateFile, sizeOf, statePath, tailOf } from "../../../src/vmm/qemu/stateFile.ts"
import { temporaryDirectory } from "../../support/temporary.ts"

const head = { qemu: "7.2.22", machine: "pc-q35-7.2", ports: { "vol-a": 3, "vol-b": 0 } }
const stream = Buffer.from("QEVM and so on".repeat(40))
const whole = Buffer.concat([headOf(head), stream, tailOf(stream.length)])

describe("the state file", () => {
  it.live("gives back what was written", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const directory = yield* temporaryDirectory("state")
        fs.writeFileSync(statePath(directory), whole)
        const found = yield* readStateFile(directory)
        assert.deepStrictEqual(found.head, head)
        assert.deepStrictEqual(portsOf(found.head), new Map(Object.entries(head.ports)))
        assert.deepStrictEqual(whole.subarray(found.offset, found.offset + found.bytes), stream)
        assert.strictEqual(sizeOf(found), whole.length)
      })
    )
  )

  it.live("is none where any of its end is missing, or more is there, or head or tail are not its own", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const directory = yield* temporaryDirectory("state")
        const refused = (content: Buffer) => {
          fs.writeFileSync(statePath(directory), content)
          return Effect.map(Effect.flip(readStateFile(directory)), (fault) =>
            assert.strictEqual(fault.reason, "the snapshot's state is not complete")
          )
        }
        for (let length = 0; length < whole.length; length += 7) yield* refused(whole.subarray(0, length))
        yield* refused(Buffer.concat([whole, Buffer.alloc(1)]))
        for (const at of [0, 8, 11, 13, whole.length - 16, whole.length - 8]) {
          const other = Buffer.from(whole)
          other.writeUInt8(other.readUInt8(at) ^ 0x55, at)
          yield* refused(other)
        }
        const none = yield* Effect.flip(readStateFile(`${directory}/nowhere`))
        assert.strictEqual(none.reason, "the snapshot's state cannot be read")
      })
    )
  )
})
