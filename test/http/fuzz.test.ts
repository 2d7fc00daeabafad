/**
 * A public fuzzer (schemathesis) against the whole service on a simulated host, with all of its checks: no 5xx, no status,
 * header or body that the document does not say, nothing wrong accepted and nothing right refused, no route without its
 * token. A fixed seed and a bound on cases: the same run each time. Streams that never end are left out.
 */
import { existsSync } from "node:fs"
import * as path from "node:path"
import { expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { execa } from "execa"
import { SignJWT } from "jose"
import { send } from "../support/httpServer.ts"
import { serveSimulated } from "../support/simulatedServer.ts"
import { temporaryDirectory } from "../support/temporary.ts"

const repository = path.resolve(import.meta.dirname, "../..")
const program = path.join(repository, ".artifacts/python/bin/schemathesis")
const here = path.join(import.meta.dirname, "fuzz")

/** Cases for each operation and phase; the whole run is about 1,500. */
const maxExamples = 6
const seed = 20_261_124
const secret = "s".repeat(40)
/** Far above what it takes; a fuzzer that hangs is ended. */
const runTimeoutMs = 300_000

const token = Effect.promise(() =>
  new SignJWT({ scope: "admin" })
    .setProtectedHeader({ alg: "HS256" })
    .setExpirationTime("1h")
    .sign(Buffer.from(secret))
)

const missing = existsSync(program)
  ? ""
  : ": skipped, schemathesis is not installed (scripts/setup.sh --tests)"

it.live.skipIf(missing !== "")(
  `a fuzzer finds no 5xx, nothing undocumented and nothing that breaks its schema${missing}`,
  () =>
    Effect.gen(function* () {
      const server = yield* serveSimulated({ env: { JWT_SECRET: secret } })
      const headers = { authorization: `Bearer ${yield* token}` }
      for (const id of ["one", "two"]) {
        const json = { id, name: id, image: "img-demo", memory_mb: 128, vcpus: 1 }
        expect((yield* send(server, "POST", "/instances", { json, headers })).status).toBe(201)
      }
      const directory = yield* temporaryDirectory("fuzz")
      const args = [
        ["--config-file", path.join(here, "schemathesis.toml"), "--no-color"],
        ["run", `${server.url}/spec.json`, "--header", `Authorization: ${headers.authorization}`],
        ["--checks", "all", "--seed", `${seed}`, "--max-examples", `${maxExamples}`],
        // Never-ending: GET /events and exec have tests of their own.
        ["--exclude-path-regex", "^/events$|/exec$", "--continue-on-failure", "--request-timeout", "30"]
      ].flat()
      const ran = yield* Effect.promise((signal) =>
        execa(program, args, {
          cwd: directory,
          env: { SCHEMATHESIS_HOOKS: "hooks", PYTHONPATH: here, PYTHONDONTWRITEBYTECODE: "1" },
          reject: false,
          all: true,
          timeout: runTimeoutMs,
          cancelSignal: signal
        })
      )
      const generated = Number(/(\d+) generated/u.exec(ran.all)?.[1] ?? 0)
      expect([ran.exitCode, ran.exitCode === 0 ? "" : ran.all]).toEqual([0, ""])
      expect(generated).toBeGreaterThan(800)
      expect(server.events.filter((it) => it["event"] === "defect")).toEqual([])
      expect((yield* send(server, "GET", "/health")).status).toBe(200)
    }).pipe(Effect.scoped),
  runTimeoutMs + 60_000
)
