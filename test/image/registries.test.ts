/** Registries as they are: rate limits, failures, credentials, mirrors. */
import * as fs from "node:fs/promises"
import * as path from "node:path"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { Images } from "../../src/image/Images.ts"
import { onFreshHost, settled, smallImage } from "../support/image.ts"
import { misbehaving, type Misbehavior } from "../support/misbehavior.ts"
import { startRegistry } from "../support/registry.ts"
import { temporaryDirectory } from "../support/temporary.ts"

const pulled = (name: string) =>
  Effect.gen(function* () {
    const accepted = yield* (yield* Images).create({ name })
    return yield* settled(accepted.id)
  })

/** Pulls an image through a registry that misbehaves. */
const pulledThrough = (faults: ReadonlyArray<Misbehavior>) =>
  onFreshHost(
    () =>
      Effect.gen(function* () {
        const registry = yield* startRegistry()
        yield* registry.push("team/app", "latest", yield* smallImage("app"))
        const proxy = yield* misbehaving(registry.port, faults)
        const ready = yield* pulled(`${proxy.domain}/team/app:latest`)
        return { ...ready, seen: proxy.seen, domain: proxy.domain }
      }),
    { pullRetryTimes: 3 }
  )

const blobs = /^GET .*\/blobs\//u
const manifests = /^GET .*\/manifests\//u

describe("a registry that misbehaves for a while", () => {
  it.live.each([
    [
      "limits the rate of manifests",
      { matches: manifests, times: 2, status: 429, headers: { "retry-after": "1" } }
    ],
    ["limits the rate of blobs", { matches: blobs, times: 2, status: 429, headers: { "retry-after": "1" } }],
    ["fails with 503 for manifests", { matches: manifests, times: 2, status: 503 }],
    ["fails with 500 for blobs", { matches: blobs, times: 2, status: 500 }],
    ["fails with 502 at all", { matches: /./u, times: 2, status: 502 }],
    ["breaks off in the middle of blobs", { matches: blobs, times: 2, cutAfter: 20 }]
  ] satisfies ReadonlyArray<readonly [string, Misbehavior]>)(
    "%s: the image is ready all the same",
    ([, fault]) =>
      Effect.map(pulledThrough([fault]), (ready) => {
        assert.deepStrictEqual([ready.status, ready.error], ["ready", null])
      })
  )

  it.live("is not asked without end", () =>
    Effect.map(
      pulledThrough([{ matches: manifests, times: Number.POSITIVE_INFINITY, status: 503 }]),
      (failed) => {
        assert.strictEqual(failed.error, `The registry ${failed.domain} fails at the moment.`)
        assert.isAtMost(failed.seen.length, 20)
      }
    )
  )

  it.live("and does not let anybody in is not asked again", () =>
    Effect.map(
      pulledThrough([{ matches: manifests, times: Number.POSITIVE_INFINITY, status: 403 }]),
      (failed) => {
        assert.match(failed.error ?? "", /does not give .* to this host/u)
        assert.isAtMost(failed.seen.length, 4)
      }
    )
  )
})

/** A home directory of its own, so that auth files and registries.conf are this test's. */
const withHome = <A, E, R>(
  files: Readonly<Record<string, string>>,
  body: Effect.Effect<A, E, R>
): Effect.Effect<A, E, R> =>
  Effect.gen(function* () {
    const home = yield* temporaryDirectory("home")
    for (const [name, content] of Object.entries(files)) {
      yield* Effect.promise(async () => {
        const file = path.join(home, name)
        await fs.mkdir(path.dirname(file), { recursive: true })
        await fs.writeFile(file, content, { mode: 0o700 })
      })
    }
    const changes = {
      HOME: home,
      XDG_RUNTIME_DIR: path.join(home, "run"),
      PATH: `${home}/bin:${process.env["PATH"]}`
    }
    const before = Object.keys(changes).map((name) => [name, process.env[name]] as const)
    yield* Effect.acquireRelease(
      Effect.sync(() => Object.assign(process.env, changes)),
      () =>
        Effect.sync(() => {
          for (const [name, value] of before) {
            if (value === undefined) delete process.env[name]
            else process.env[name] = value
          }
        })
    )
    return yield* body
  }).pipe(Effect.scoped)

/** bcrypt of `secret`. */
const htpasswd = "robot:$2y$05$Du8cuagv2KPiefTsmf9O6OAXR4/HkX3.Xjs64a1rjmQGS.uWQmhai\n"

const credentialProgram = (domain: string) => `#!/bin/sh
read -r server
[ "$1" = get ] && [ "$server" = ${domain} ] || exit 1
echo '{"ServerURL":"${domain}","Username":"robot","Secret":"secret"}'
`
const basic = Buffer.from("robot:secret").toString("base64")

describe("credentials", () => {
  const pulledWith = (files: (domain: string) => Readonly<Record<string, string>>) =>
    onFreshHost(() =>
      Effect.gen(function* () {
        const directory = yield* temporaryDirectory("auth")
        const users = path.join(directory, "users")
        yield* Effect.promise(() => fs.writeFile(users, htpasswd))
        const registry = yield* startRegistry(
          `auth: {htpasswd: {realm: test, path: ${users}}}`,
          `Basic ${basic}`
        )
        const name = yield* registry.push("private/app", "latest", yield* smallImage("private"))
        return yield* withHome(files(registry.domain), pulled(name))
      })
    )

  it.live.each([
    [
      "docker's config.json",
      (domain: string) => ({
        ".docker/config.json": JSON.stringify({ auths: { [domain]: { auth: basic } } })
      })
    ],
    [
      "podman's auth.json",
      (domain: string) => ({
        "run/containers/auth.json": JSON.stringify({ auths: { [domain]: { auth: basic } } })
      })
    ],
    [
      "a credential helper that docker's config.json names",
      (domain: string) => ({
        ".docker/config.json": JSON.stringify({ credHelpers: { [domain]: "test" } }),
        "bin/docker-credential-test": credentialProgram(domain)
      })
    ]
  ] as const)("of %s are used", ([, files]) =>
    Effect.map(pulledWith(files), (ready) =>
      assert.deepStrictEqual([ready.status, ready.error], ["ready", null])
    )
  )

  it.live("that are missing or wrong fail the pull with a sentence that does not tell them", () =>
    Effect.gen(function* () {
      const wrong = Buffer.from("robot:wrong-password").toString("base64")
      for (const auths of [{}, { auth: wrong }]) {
        const failed = yield* pulledWith((domain) => ({
          ".docker/config.json": JSON.stringify({ auths: { [domain]: auths } })
        }))
        assert.match(failed.error ?? "", /needs credentials/u)
        assert.notMatch(failed.error ?? "", /wrong-password/u)
      }
    })
  )
})

describe("a mirror of registries.conf", () => {
  const conf = (mirror: string) => `[[registry]]
prefix = "registry.example"
location = "registry.example"
[[registry.mirror]]
location = "${mirror}"
insecure = true
`
  it.live("is asked instead of the registry, and the image keeps the registry's name", () =>
    onFreshHost(() =>
      Effect.gen(function* () {
        const registry = yield* startRegistry()
        const built = yield* smallImage("mirrored")
        yield* registry.push("team/app", "v1", built)
        const ready = yield* withHome(
          { ".config/containers/registries.conf": conf(registry.domain) },
          pulled("registry.example/team/app:v1")
        )
        assert.deepStrictEqual(
          [ready.status, ready.error, ready.name, ready.digest],
          ["ready", null, "registry.example/team/app:v1", built.digest]
        )
      })
    )
  )
})
