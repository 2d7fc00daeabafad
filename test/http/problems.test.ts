/** Every error is an RFC 9457 problem with its own type, status and members, and nothing leaks. */
import { describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { ImageId, InstanceId } from "../../src/domain/Ids.ts"
import * as Problems from "../../src/domain/problems.ts"
import { fakeInstance } from "../support/fakeServices.ts"
import { type Answer, send, serveFakes, type TestServer } from "../support/httpServer.ts"

const id = InstanceId.make("a1")
const image = ImageId.make("img-nginx")
const detail = "What happened and what to do."

const expectProblem = (answer: Answer, status: number, name: string, members: object = {}) => {
  expect(answer.headers.get("content-type")).toBe("application/problem+json")
  expect(answer.json).toMatchObject({
    type: `${Problems.problemBase}${name}`,
    status,
    title: expect.any(String),
    detail: expect.any(String),
    ...members
  })
  expect(answer.status).toBe(status)
}

type Scenario = readonly [
  name: string,
  status: number,
  arrange: (server: TestServer) => void,
  method: string,
  path: string,
  members: object
]

const create = { name: "n", image: "img-nginx" }
const failing =
  <const Key extends keyof TestServer["world"]["failures"]>(
    key: Key,
    effect: NonNullable<TestServer["world"]["failures"][Key]>
  ) =>
  ({ world }: TestServer): void => {
    world.failures[key] = effect
  }

const scenarios: ReadonlyArray<Scenario> = [
  [
    "instance-not-found",
    404,
    failing("get", Effect.fail(new Problems.InstanceNotFound({ detail, instance_id: id }))),
    "GET",
    "/instances/a1",
    { instance_id: id }
  ],
  [
    "instance-exists",
    409,
    failing("create", Effect.fail(new Problems.InstanceExists({ detail, instance_id: id }))),
    "POST",
    "/instances",
    { instance_id: id }
  ],
  [
    "image-not-found",
    404,
    failing("create", Effect.fail(new Problems.ImageNotFound({ detail, image: "x" }))),
    "POST",
    "/instances",
    { image: "x" }
  ],
  [
    "image-not-ready",
    409,
    failing(
      "create",
      Effect.fail(new Problems.ImageNotReady({ detail, image_id: image, image_status: "pulling" }))
    ),
    "POST",
    "/instances",
    { image_status: "pulling" }
  ],
  [
    "insufficient-memory",
    422,
    failing(
      "create",
      Effect.fail(new Problems.InsufficientMemory({ detail, requested_mb: 9, available_mb: 1 }))
    ),
    "POST",
    "/instances",
    { requested_mb: 9, available_mb: 1 }
  ],
  [
    "no-address-left",
    422,
    failing("create", Effect.fail(new Problems.NoAddressLeft({ detail, cidr: "10.0.0.0/30", leased: 1 }))),
    "POST",
    "/instances",
    { leased: 1 }
  ],
  [
    "unprocessable",
    422,
    failing("create", Effect.fail(new Problems.Unprocessable({ detail }))),
    "POST",
    "/instances",
    {}
  ],
  [
    "volume-not-found",
    404,
    failing("create", Effect.fail(new Problems.VolumeNotFound({ detail, volume_id: "v" }))),
    "POST",
    "/instances",
    { volume_id: "v" }
  ],
  [
    "host-unfit",
    503,
    failing("create", Effect.fail(new Problems.HostUnfit({ detail }))),
    "POST",
    "/instances",
    {}
  ],
  [
    "busy",
    503,
    failing("command", Effect.fail(new Problems.Busy({ detail }))),
    "POST",
    "/instances/a1/start",
    {}
  ],
  [
    "invalid-state",
    409,
    failing(
      "command",
      Effect.fail(
        new Problems.InvalidState({
          detail,
          instance_id: id,
          state: "Stopped",
          transition: null,
          verb: "pause",
          allowed: ["start", "delete"]
        })
      )
    ),
    "POST",
    "/instances/a1/pause",
    { state: "Stopped", transition: null, verb: "pause", allowed: ["start", "delete"] }
  ],
  [
    "verb-cancelled",
    409,
    failing(
      "command",
      Effect.fail(new Problems.VerbCancelled({ detail, instance_id: id, verb: "start", by: "stop" }))
    ),
    "POST",
    "/instances/a1/start",
    { verb: "start", by: "stop" }
  ],
  [
    "verb-failed",
    500,
    failing(
      "command",
      Effect.fail(new Problems.VerbFailed({ detail, instance_id: id, verb: "standby", step: "snapshot" }))
    ),
    "POST",
    "/instances/a1/standby",
    { step: "snapshot" }
  ],
  [
    "insufficient-memory",
    422,
    failing(
      "command",
      Effect.fail(new Problems.InsufficientMemory({ detail, requested_mb: 9, available_mb: 1 }))
    ),
    "POST",
    "/instances/a1/restore",
    {}
  ],
  [
    "wait-timeout",
    408,
    failing("wait", Effect.fail(new Problems.WaitTimeout({ detail, state: "Stopped", transition: "start" }))),
    "GET",
    "/instances/a1/wait?state=Running",
    { state: "Stopped", transition: "start" }
  ],
  [
    "image-exists",
    409,
    failing("createImage", Effect.fail(new Problems.ImageExists({ detail, image_id: image }))),
    "POST",
    "/images",
    { image_id: image }
  ],
  [
    "image-in-use",
    409,
    failing(
      "removeImage",
      Effect.fail(new Problems.ImageInUse({ detail, image_id: image, instances: [id] }))
    ),
    "DELETE",
    "/images/img-nginx",
    { instances: [id] }
  ],
  [
    "image-not-found",
    404,
    failing("getImage", Effect.fail(new Problems.ImageNotFound({ detail, image: "img-nginx" }))),
    "GET",
    "/images/img-nginx",
    {}
  ],
  ["route-not-found", 404, () => undefined, "GET", "/nowhere", {}],
  ["route-not-found", 404, () => undefined, "POST", "/instances/a1/fly", {}],
  [
    "method-not-allowed",
    405,
    () => undefined,
    "PUT",
    "/instances",
    { allowed: ["GET", "HEAD", "OPTIONS", "POST"] }
  ]
]

describe("problems", () => {
  for (const [name, status, arrange, method, path, members] of scenarios)
    it.live(`${method} ${path} gives ${status} ${name}`, () =>
      Effect.gen(function* () {
        const server = yield* serveFakes()
        server.world.instances.set("a1", fakeInstance("a1"))
        arrange(server)
        const json = path === "/instances" ? create : path === "/images" ? { name: "nginx" } : undefined
        const answer = yield* send(server, method, path, json === undefined ? {} : { json })
        expectProblem(answer, status, name, members)
        expect(server.events.filter(({ event }) => event === "defect")).toEqual([])
      }).pipe(Effect.scoped)
    )

  it.live("every member is what the problem's own schema says", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      const answer = yield* send(server, "GET", "/instances/nope")
      const decoded = yield* Schema.decodeUnknownEffect(Problems.InstanceNotFound)(answer.json)
      expect(decoded.instance_id).toBe("nope")
    }).pipe(Effect.scoped)
  )

  it.live("401 says how to authenticate, 503 when to come back, 405 what is allowed", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes({ env: { JWT_SECRET: "s".repeat(32) } })
      expect((yield* send(server, "GET", "/instances")).headers.get("www-authenticate")).toBe("Bearer")
      expect((yield* send(server, "PATCH", "/health")).headers.get("allow")).toBe("GET, HEAD, OPTIONS")
      const unfit = yield* serveFakes({
        health: Effect.succeed({
          ok: false,
          vmm: null,
          checks: [{ name: "kvm", ok: false, detail: "no /dev/kvm" }]
        })
      })
      const health = yield* send(unfit, "GET", "/health")
      expectProblem(health, 503, "unhealthy", {
        checks: [{ name: "kvm", ok: false, detail: "no /dev/kvm" }],
        detail: expect.stringContaining("kvm")
      })
      expect(health.headers.get("retry-after")).toBe("1")
    }).pipe(Effect.scoped)
  )

  it.live("a defect is a 500 that says nothing, and a log line that says everything", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      const secret = "EADDRINUSE /var/lib/secret TOKEN=hunter2"
      server.world.failures.listJson = Effect.die(new Error(secret))
      const answer = yield* send(server, "GET", "/instances")
      expectProblem(answer, 500, "internal-error")
      expect(answer.text).not.toMatch(/hunter2|secret|Error|at /u)
      const defects = server.events.filter(({ event }) => event === "defect")
      expect(defects).toHaveLength(1)
      expect(defects[0]).toMatchObject({ level: "error", reason: expect.stringContaining("EADDRINUSE") })
      const next = yield* send(server, "GET", "/health")
      expect(next.status).toBe(200)
    }).pipe(Effect.scoped)
  )

  it.live("an answer that does not fit its own schema is our defect, without its values", () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      const entry = server.world.images.get("img-nginx")
      if (entry !== undefined)
        server.world.images.set("img-nginx", { ...entry, size_bytes: -1, env: { P: "hunter2" } })
      const answer = yield* send(server, "GET", "/images/img-nginx")
      expectProblem(answer, 500, "internal-error")
      expect(JSON.stringify(server.events)).not.toContain("hunter2")
      expect(server.events.some(({ event }) => event === "defect")).toBe(true)
    }).pipe(Effect.scoped)
  )
})
