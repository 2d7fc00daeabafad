/**
 * What cannot work, asked of the real service: each is refused with a problem that says what to do, and leaves nothing
 * behind.
 */
import { spawn } from "node:child_process"
import { once } from "node:events"
import * as fs from "node:fs/promises"
import * as path from "node:path"
import { text } from "node:stream/consumers"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type { ArchiveSource } from "../../scripts/imageArchive.ts"
import { ImageId, InstanceId } from "../../src/domain/Ids.ts"
import { cpuVirtualizes } from "../support/cpu.ts"
import { createInstance, importImage } from "../support/guests.ts"
import { expectNoLeaks, ledger } from "../support/leaks.ts"
import { shared } from "../support/live.ts"
import { ask, guestImage, refused, untilSettled } from "../support/liveGuest.ts"
import { makeNamespace } from "../support/Namespace.ts"
import { registryTools, startNamespaceRegistry } from "../support/netnsRegistry.ts"
import { type Service, startService } from "../support/Service.ts"

const repository = path.resolve(import.meta.dirname, "../..")
const image = ImageId.make("img-guest")
/** No guest of these tests boots, so that a namespace can be shared by several services, one after the other. */
const ground = Effect.gen(function* () {
  const namespace = yield* makeNamespace
  const registry = yield* startNamespaceRegistry(namespace)
  // Two addresses: the gateway's and one for a guest.
  const service = yield* startService({ namespace, env: { SUBNET_CIDR: "10.77.0.0/30" } })
  yield* importImage(service, image, guestImage)
  return { service, registry, before: yield* ledger(service) }
})

const isEvents = (line: string) => line.startsWith("files: events/")

/** Another service process, to its end: its exit code and all that it said. */
const runService = (service: Service, env: Readonly<Record<string, string>>) =>
  Effect.promise(async () => {
    const child = spawn(
      "ip",
      ["netns", "exec", service.namespace.name, process.execPath, "src/main.ts", "serve"],
      { cwd: repository, env: { PATH: process.env["PATH"] ?? "", ...env }, stdio: ["ignore", "pipe", "pipe"] }
    )
    const [out, err] = await Promise.all([text(child.stdout), text(child.stderr)])
    if (child.exitCode === null) await once(child, "exit")
    return { code: child.exitCode, said: `${out}${err}` }
  })

describe("input that cannot work", { timeout: 180_000 }, () => {
  const common = shared(ground, registryTools)

  it.live("requests that are not well-formed", () =>
    Effect.gen(function* () {
      const { service, before } = yield* common
      const good = { name: "Good", image }
      const tries: ReadonlyArray<readonly [number, string, unknown, RegExp]> = [
        [400, "invalid-request", '{"name": ', /JSON/u],
        [400, "invalid-request", { ...good, flavour: "large" }, /flavour/u],
        [400, "invalid-request", { ...good, memory_mb: 64 }, /memory_mb/u],
        [400, "invalid-request", { ...good, memory_mb: "much" }, /memory_mb/u],
        [400, "invalid-request", { ...good, id: "../../etc" }, /id/u],
        [400, "invalid-request", { image }, /name/u],
        [400, "invalid-request", { ...good, entrypoint: ["/bin/sh\0"] }, /entrypoint/u],
        [404, "image-not-found", { ...good, image: "img-unknown" }, /img-unknown/u],
        [
          404,
          "volume-not-found",
          { ...good, volumes: [{ volume_id: "none", mount_path: "/data" }] },
          /none/u
        ],
        [422, "insufficient-memory", { ...good, memory_mb: 16_000_000 }, /16000000 MiB/u],
        [422, "unprocessable", { ...good, memory_mb: 512, memory_max_mb: 256 }, /memory_max_mb/u],
        [422, "unprocessable", { ...good, entrypoint: [], command: [] }, /entrypoint/u]
      ]
      for (const [status, name, body, says] of tries) {
        const problem = yield* refused(service, "POST", "/instances", body)
        assert.deepStrictEqual([problem.status, problem.name], [status, name], JSON.stringify(body))
        assert.match(JSON.stringify(problem.members), says)
      }
      const large = yield* refused(service, "POST", "/instances", { ...good, name: "x".repeat(1024 * 1024) })
      assert.deepStrictEqual([large.status, large.name], [413, "payload-too-large"])
      assert.strictEqual((yield* refused(service, "GET", "/instances/none")).name, "instance-not-found")
      assert.strictEqual((yield* refused(service, "DELETE", "/instances/none")).name, "instance-not-found")
      assert.strictEqual(
        (yield* refused(service, "POST", "/instances/none/start")).name,
        "instance-not-found"
      )
      assert.strictEqual((yield* refused(service, "GET", "/nothing")).name, "route-not-found")
      assert.strictEqual((yield* refused(service, "PATCH", "/health")).name, "method-not-allowed")
      assert.strictEqual((yield* ask(service, "GET", "/instances")).text, "[]")
      yield* expectNoLeaks(service, before, isEvents)
    })
  )

  it.live("images that cannot be had", () =>
    Effect.gen(function* () {
      const { service, registry, before } = yield* common
      for (const name of ["UPPER/Case", "a b", "nginx@sha256:12", "http://example.com/x"]) {
        const problem = yield* refused(service, "POST", "/images", { name })
        assert.deepStrictEqual([problem.status, problem.name], [422, "unprocessable"], name)
      }
      const own = (content: string): ArchiveSource => ({
        ...guestImage,
        layers: [...guestImage.layers, [{ kind: "file", path: "own", content: content.repeat(10_000) }]]
      })
      const corrupt = yield* registry.push("corrupt", own("corrupt"))
      // As long as it was, so that only its digest tells.
      yield* registry.damage("corrupt", (bytes) => Buffer.from(bytes.map((it) => it ^ 0x55)))
      const short = yield* registry.push("short", own("short"))
      yield* registry.damage("short", (bytes) => bytes.subarray(0, bytes.length / 2))
      const digest = `sha256:${"0123456789abcdef".repeat(4)}`
      const failures: ReadonlyArray<readonly [string, RegExp]> = [
        [`${registry.domain}/none:latest`, /none/u],
        [`${registry.domain}/corrupt@${digest}`, /corrupt/u],
        [corrupt, /digest|corrupt|damaged/iu],
        [short, /digest|corrupt|damaged|short|size/iu],
        // Nothing listens there.
        ["127.0.0.1:1/unreachable:latest", /127\.0\.0\.1:1/u]
      ]
      yield* Effect.forEach(
        failures,
        ([name, says]) =>
          Effect.gen(function* () {
            const { id } = yield* service.client.images.create({ payload: { name } })
            const failed = yield* untilSettled(service, id)
            assert.strictEqual(failed.status, "failed", name)
            assert.match(failed.error ?? "", says)
            assert.notInclude(failed.error ?? "", service.dataDir)
            const use = yield* refused(service, "POST", "/instances", { name: "Early", image: id })
            assert.deepStrictEqual([use.status, use.name], [409, "image-not-ready"])
            yield* service.client.images.remove({ params: { id } })
          }),
        { concurrency: 5, discard: true }
      )
      yield* expectNoLeaks(service, before, isEvents)
    })
  )

  it.live("more instances than addresses", () =>
    Effect.gen(function* () {
      const { service, before } = yield* common
      const only = yield* createInstance(service, { id: "only", name: "Only", image, start: false })
      assert.strictEqual(only.network.ip, "10.77.0.2")
      const full = yield* refused(service, "POST", "/instances", {
        id: "two",
        name: "Two",
        image,
        start: false
      })
      assert.deepInclude(full.members, { status: 422, cidr: "10.77.0.0/30", leased: 1 })
      assert.strictEqual(full.name, "no-address-left")
      const taken = yield* refused(service, "POST", "/instances", { id: "only", name: "Again", image })
      assert.deepStrictEqual([taken.status, taken.name], [409, "instance-exists"])
      const used = yield* refused(service, "DELETE", `/images/${image}`)
      assert.deepInclude(used.members, { status: 409, instances: [only.id] })
      yield* service.client.instances.remove({ params: { id: only.id } })
      const free = yield* createInstance(service, { id: "two", name: "Two", image, start: false })
      assert.strictEqual(free.network.ip, "10.77.0.2")
      yield* service.client.instances.remove({ params: { id: InstanceId.make("two") } })
      yield* expectNoLeaks(service, before, isEvents)
    })
  )

  it.live("a second service on the same data, and a configuration that is wrong", () =>
    Effect.gen(function* () {
      const { service } = yield* common
      const second = yield* runService(service, { DATA_DIR: service.dataDir, PORT: "8081", VMM: "simulated" })
      assert.strictEqual(second.code, 1)
      assert.match(
        second.said,
        new RegExp(`^DATA_DIR=\\S+: another dataplane \\(pid ${service.pid()}\\)[^\\n]*\\n$`, "u")
      )
      const port = yield* runService(service, {
        DATA_DIR: `${service.dataDir}-other`,
        PORT: "8080",
        VMM: "simulated"
      })
      assert.strictEqual(port.code, 1)
      assert.match(port.said, /8080/u)
      yield* Effect.promise(() => fs.rm(`${service.dataDir}-other`, { recursive: true, force: true }))
      const wrong: ReadonlyArray<readonly [string, string]> = [
        ["PORT", "eighty"],
        ["SUBNET_CIDR", "10.0.0.1/24"],
        ["QEMU_ACCEL", "fast"],
        ["VMM", "none"],
        ["LOG_LEVEL", "loud"]
      ]
      const refusals = yield* Effect.forEach(
        wrong,
        ([name, value]) => runService(service, { [name]: value }),
        {
          concurrency: 2
        }
      )
      for (const [at, { code, said }] of refusals.entries()) {
        const [name, value] = wrong[at] ?? ["", ""]
        assert.strictEqual(code, 2, said)
        assert.match(said, new RegExp(`^${name}=${value.replaceAll(".", "\\.")}: [^\\n]{10,}\\n$`, "u"))
      }
      const secret = yield* runService(service, { JWT_SECRET: "short-secret" })
      assert.strictEqual(secret.code, 2)
      assert.notInclude(secret.said, "short-secret")
      assert.strictEqual((yield* service.api.get("/health")).status, 200)
    })
  )

  /** Reads, stops and deletes go on; what would need a VMM says what is missing. */
  const expectUnfit = (service: Service, says: RegExp) =>
    Effect.gen(function* () {
      const health = yield* refused(service, "GET", "/health")
      assert.deepStrictEqual([health.status, health.name], [503, "unhealthy"])
      assert.match(JSON.stringify(health.members), says)
      assert.match(JSON.stringify(health.members), /"checks":\[\{/u)
      const before = yield* ledger(service)
      const create = yield* refused(service, "POST", "/instances", { name: "Unfit", image })
      assert.deepStrictEqual([create.status, create.name], [503, "host-unfit"])
      assert.match(create.detail, says)
      assert.strictEqual((yield* ask(service, "GET", "/instances")).status, 200)
      yield* expectNoLeaks(service, before)
    })

  it.live("a host without QEMU", () =>
    Effect.gen(function* () {
      const { service } = yield* common
      const kept = yield* createInstance(service, { id: "kept", name: "Kept", image, start: false })
      yield* service.client.instances.stop({ params: { id: kept.id }, query: {} })
      yield* service.stop("SIGTERM")
      yield* service.start({ QEMU_BIN: "/nonexistent/qemu-system-x86_64" })
      yield* expectUnfit(service, /QEMU_BIN|qemu/iu)
      const start = yield* refused(service, "POST", `/instances/${kept.id}/start`)
      assert.deepStrictEqual([start.status, start.name], [503, "host-unfit"])
      const { state, exit } = yield* service.client.instances.get({ params: { id: kept.id } })
      assert.deepStrictEqual([state, exit?.reason], ["Stopped", "stopped"])
      yield* service.client.instances.remove({ params: { id: kept.id } })
      yield* service.stop("SIGTERM")
      yield* service.start({ QEMU_BIN: "" })
      assert.strictEqual((yield* service.api.get("/health")).status, 200)
    })
  )

  it.live("KVM asked for on a host that has none", (context) =>
    Effect.gen(function* () {
      if (cpuVirtualizes()) return context.skip("this host's CPU has vmx or svm")
      const { service } = yield* common
      yield* service.stop("SIGTERM")
      yield* service.start({ QEMU_ACCEL: "kvm" })
      yield* expectUnfit(service, /KVM|vmx|svm/iu)
      yield* service.stop("SIGTERM")
      yield* service.start({ QEMU_ACCEL: "tcg" })
      assert.strictEqual((yield* service.api.get("/health")).status, 200)
    })
  )
})
