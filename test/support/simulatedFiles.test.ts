/** The files in memory behave as the host's do, call by call, on the same sequence. */
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import { Files } from "../../src/host/Files.ts"
import { memoryFiles } from "./simulatedFiles.ts"

/** What one sequence of calls shows, with the errno where one fails. */
const story = (root: string) =>
  Effect.gen(function* () {
    const files = yield* Files
    const at = (name: string) => path.join(root, name)
    const seen: Array<unknown> = []
    const see = <A, E extends { readonly code: string }>(effect: Effect.Effect<A, E>) =>
      Effect.match(effect, {
        onFailure: (fault) => void seen.push(fault.code),
        onSuccess: (value) => void seen.push(value)
      })
    yield* see(files.write(at("none/file"), "text"))
    yield* files.makeDirectory(at("a/b"))
    yield* see(files.write(at("a/file"), "one"))
    yield* see(files.append(at("a/file"), "\ntwo"))
    yield* see(files.note(at("a/log"), "line\n"))
    yield* see(files.readText(at("a/file")))
    yield* see(files.sha256(at("a/file")))
    yield* see(files.overwrite(at("a/file"), 1, new TextEncoder().encode("X")))
    yield* see(files.createSparse(at("a/b/disk"), 1_000_000))
    yield* see(files.overwrite(at("a/b/disk"), 4_090, new Uint8Array(20).fill(7)))
    yield* see(
      Effect.map(
        files.read(at("a/b/disk")),
        Option.map((it) => [it.length, it.indexOf(7), it.lastIndexOf(7)])
      )
    )
    yield* see(files.list(at("a")))
    yield* see(files.rename(at("a/b"), at("c")))
    yield* see(files.rename(at("a/log"), at("a/file")))
    yield* see(files.readText(at("a/file")))
    yield* see(
      Effect.map(
        files.stat(at("c/disk")),
        Option.map((it) => [it.size, it.isDirectory])
      )
    )
    yield* see(
      Effect.map(
        files.stat(at("c")),
        Option.map((it) => it.isDirectory)
      )
    )
    yield* see(files.exists(at("a/b")))
    yield* see(files.read(at("a/b/disk")))
    yield* see(files.remove(at("c")))
    yield* see(files.remove(at("c")))
    yield* see(files.list(at("c")))
    yield* see(files.list(root))
    return seen
  })

const temporary = Effect.acquireRelease(
  Effect.sync(() => fs.mkdtempSync(path.join(os.tmpdir(), "files-"))),
  (directory) => Effect.sync(() => fs.rmSync(directory, { recursive: true, force: true }))
)

it.effect("files in memory tell the same story as the host's", () =>
  Effect.gen(function* () {
    const real = yield* Effect.provide(story(yield* temporary), Files.layer)
    const memory = memoryFiles()
    const simulated = yield* Effect.gen(function* () {
      yield* Effect.flatMap(Files, (files) => files.makeDirectory("/root"))
      return yield* story("/root")
    }).pipe(Effect.provide(memory.layer))
    assert.deepStrictEqual(simulated, real)
  })
)

it.effect("files in memory refuse every write on a full disk, and take none from a dead service", () =>
  Effect.gen(function* () {
    const memory = memoryFiles()
    let alive = true
    const files = yield* Effect.provide(
      Files,
      memory.layerWhile(() => alive)
    )
    yield* files.write("/a", "kept")
    memory.failing = "ENOSPC"
    assert.strictEqual((yield* Effect.flip(files.write("/a", "lost"))).code, "ENOSPC")
    memory.failing = null
    alive = false
    assert.isTrue(Exit.isFailure(yield* Effect.exit(files.write("/a", "late"))))
    assert.isTrue(Exit.isFailure(yield* Effect.exit(files.remove("/a"))))
    assert.strictEqual(memory.text("/a"), "kept")
  })
)
