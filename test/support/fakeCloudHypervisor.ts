/**
 * A program that passes for Cloud Hypervisor: the few calls that a spawn, a boot and a quit need, with what a test wants to
 * go wrong. Run by the wrapper that `fakeProgram` writes: `fakeCloudHypervisor.ts PLAN arguments...`.
 */
import { appendFileSync, rmSync, writeFileSync } from "node:fs"
import * as http from "node:http"

export interface FakePlan {
  /** As `--version` says it. */
  readonly version?: string
  /** The kernel has no Landlock. */
  readonly noLandlock?: boolean
  /** The last sentence of a refusal of vm.create. */
  readonly refuseCreate?: string
  /** Whose pid it says it has. */
  readonly pid?: number
  /** Ends at once, with these words. */
  readonly lastWords?: string
}

const [, , planText = "{}", ...args] = process.argv
const plan: FakePlan = JSON.parse(planText)
const version = plan.version ?? "v53.0"
const option = (name: string): string => (args[args.indexOf(name) + 1] ?? "").replace(/^path=/u, "")

const info = (state: string) => ({
  config: {
    cpus: { boot_vcpus: 1, max_vcpus: 1 },
    memory: { size: 128 * 1024 * 1024 },
    serial: { mode: "Tty" }
  },
  state,
  memory_actual_size: 128 * 1024 * 1024
})

const serve = () => {
  const [socket, events] = [option("--api-socket"), option("--event-monitor")]
  const tell = (source: string, event: string) =>
    appendFileSync(events, `${JSON.stringify({ source, event, properties: null }, null, 2)}\n\n`)
  writeFileSync(events, "")
  tell("vmm", "starting")
  let state: "none" | "Created" | "Running" = "none"
  const refuse = (...said: ReadonlyArray<string>) =>
    [500, JSON.stringify(["Error from API", ...said])] as const
  const answer = (call: string, body: string): readonly [number, string] => {
    process.stderr.write(`${call}\n`)
    switch (call) {
      case "vmm.ping":
        return [200, JSON.stringify({ build_version: version, pid: plan.pid ?? process.pid })]
      case "vm.info":
        return state === "none" ? refuse("VM is not created") : [200, JSON.stringify(info(state))]
      case "vm.create":
        if (plan.refuseCreate !== undefined) return refuse("The VM could not be created", plan.refuseCreate)
        state = "Created"
        return plan.noLandlock === true && body.includes('"landlock_enable":true')
          ? refuse("The VM could not be created", "Error applying Landlock")
          : [204, ""]
      case "vm.delete":
        state = "none"
        return [204, ""]
      case "vm.boot":
        state = "Running"
        tell("vm", "booted")
        return [204, ""]
      default:
        return [404, '["Not Found"]']
    }
  }
  const server = http.createServer((request, response) => {
    let body = ""
    request.on("data", (piece: Buffer) => (body += piece.toString("utf8")))
    request.on("end", () => {
      const call = (request.url ?? "").replace("/api/v1/", "")
      if (call === "vmm.shutdown") {
        response.writeHead(200, { "content-length": 0 }).end(() => {
          rmSync(socket)
          process.exit(0)
        })
        return
      }
      const [status, said] = answer(call, body)
      response
        .writeHead(status, status === 204 ? {} : { "content-length": Buffer.byteLength(said) })
        .end(said)
    })
  })
  process.on("SIGTERM", () => process.exit(0))
  server.listen(socket)
}

if (import.meta.main) {
  if (args.includes("--version"))
    process.stdout.write(`cloud-hypervisor ${version}\nMigration Protocol Versions: 0\n`)
  else if (plan.lastWords !== undefined) {
    process.stderr.write(`${plan.lastWords}\n`)
    process.exitCode = 1
  } else serve()
}
