/**
 * A client that a public generator (openapi-typescript) makes of /spec.json typechecks under strict rules, and drives a whole
 * life of an instance: what the document says is what the service does.
 */
import * as fs from "node:fs/promises"
import * as path from "node:path"
import { expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { execa } from "execa"
import { SignJWT } from "jose"
import { serveSimulated } from "../support/simulatedServer.ts"

const repository = path.resolve(import.meta.dirname, "../..")
const here = path.join(import.meta.dirname, "generated")
const generator = path.join(here, "node_modules/openapi-typescript/bin/cli.js")
const compiler = path.join(repository, "node_modules/.bin/tsc")
const secret = "s".repeat(40)

/** Under the repository, so that modules are found; removed with the scope. */
const workshop = Effect.acquireRelease(
  Effect.promise(async () => {
    const artifacts = path.join(repository, ".artifacts")
    await fs.mkdir(artifacts, { recursive: true })
    return fs.mkdtemp(path.join(artifacts, "generated-"))
  }),
  (directory) => Effect.promise(() => fs.rm(directory, { recursive: true, force: true }))
)

const tool = (directory: string, file: string, args: ReadonlyArray<string>) =>
  Effect.promise(async (signal) => {
    const ran = await execa(file, args, { cwd: directory, all: true, reject: false, cancelSignal: signal })
    expect([file, ran.exitCode, ran.exitCode === 0 ? "" : ran.all]).toEqual([file, 0, ""])
    return ran.stdout
  })

const tsconfig = {
  extends: path.join(repository, "tsconfig.json"),
  compilerOptions: { skipLibCheck: false },
  include: ["*.ts"],
  exclude: []
}

it.live("a generated client typechecks and drives a whole life", () =>
  Effect.gen(function* () {
    const server = yield* serveSimulated({ env: { JWT_SECRET: secret } })
    const directory = yield* workshop
    const token = yield* Effect.promise(() =>
      new SignJWT({ scope: "write" })
        .setProtectedHeader({ alg: "HS256" })
        .setExpirationTime("1h")
        .sign(Buffer.from(secret))
    )
    // A field with a default may be left out of a request: the generator takes it for one that is always there unless told.
    const options = ["-o", "schema.ts", "--default-non-nullable=false"]
    yield* tool(directory, process.execPath, [generator, `${server.url}/spec.json`, ...options])
    yield* Effect.promise(async () => {
      await fs.copyFile(path.join(here, "lifeCycle.ts"), path.join(directory, "lifeCycle.ts"))
      await fs.writeFile(path.join(directory, "tsconfig.json"), JSON.stringify(tsconfig))
    })
    yield* tool(directory, compiler, ["-p", "."])
    const said = yield* tool(directory, process.execPath, ["lifeCycle.ts", server.url, token])
    expect(said.split("\n")).toEqual([
      "health ok simulated",
      "Running true",
      "Paused true",
      "Running true",
      "Standby true",
      "Running true",
      "Shutdown true",
      "Running true",
      "Running true",
      "Running true",
      "listed generated",
      "resources generated 256",
      "refused 404 Instance not found",
      "Stopped true",
      "illegal 409",
      "deleted 204"
    ])
  }).pipe(Effect.scoped)
)
