/** With JWT_SECRET, only a good token gets in, and only as far as its scope goes. */
import { describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { generateKeyPair, type JWTPayload, SignJWT, UnsecuredJWT } from "jose"
import * as Redacted from "effect/Redacted"
import { signToken } from "../../src/api/Token.ts"
import { specJson } from "../../src/http/specification.ts"
import { fakeInstance } from "../support/fakeServices.ts"
import { send, serveFakes } from "../support/httpServer.ts"

const secret = "a secret that is long enough to be one"
const bytes = new TextEncoder().encode(secret)
const inAnHour = () => Math.floor(Date.now() / 1000) + 3600

const token = (payload: JWTPayload, key: Uint8Array = bytes, alg = "HS256") =>
  Effect.promise(() => new SignJWT(payload).setProtectedHeader({ alg }).sign(key))
const scoped = (scope: string) => token({ scope, exp: inAnHour() })
const bearer = (value: string) => ({ headers: { authorization: `Bearer ${value}` } })

const server = (env: Record<string, string> = {}) =>
  Effect.tap(serveFakes({ env: { JWT_SECRET: secret, HOST: "127.0.0.1", ...env } }), ({ world }) =>
    Effect.sync(() => world.instances.set("a1", fakeInstance("a1")))
  )

const reads = ["/instances", "/instances/a1", "/instances/a1/logs", "/images", "/metrics"]
const writes: ReadonlyArray<readonly [string, string]> = [
  ["POST", "/instances/a1/pause"],
  ["DELETE", "/instances/a1"],
  ["DELETE", "/images/nope"]
]

describe("authorization", () => {
  it.live("health, specification and page are open; everything else asks for a token", () =>
    Effect.gen(function* () {
      const it = yield* server()
      for (const path of ["/health", "/spec.yaml", "/spec.json", "/docs"])
        expect([path, (yield* send(it, "GET", path)).status]).toEqual([path, 200])
      for (const path of reads) {
        const answer = yield* send(it, "GET", path)
        expect([path, answer.status]).toEqual([path, 401])
        expect(answer.json).toMatchObject({ type: expect.stringContaining("/unauthorized") })
      }
      for (const [method, path] of writes)
        expect([path, (yield* send(it, method, path)).status]).toEqual([path, 401])
      expect(it.world.calls).toEqual([])
    }).pipe(Effect.scoped)
  )

  it.live("read reads, write and admin do everything, no scope does nothing", () =>
    Effect.gen(function* () {
      const table: ReadonlyArray<readonly [string, boolean, boolean]> = [
        ["read", true, false],
        ["write", true, true],
        ["admin", true, true],
        ["profile read", true, false],
        ["read write", true, true],
        ["", false, false],
        ["reader", false, false],
        ["READ", false, false],
        ["read,write", false, false]
      ]
      for (const [scope, mayRead, mayWrite] of table) {
        const it = yield* server()
        const auth = bearer(yield* scoped(scope))
        for (const path of reads)
          expect([scope, path, (yield* send(it, "GET", path, auth)).status]).toEqual([
            scope,
            path,
            mayRead ? 200 : 403
          ])
        for (const [method, path] of writes) {
          const { status } = yield* send(it, method, path, auth)
          expect([scope, path, status !== 403 && status !== 401]).toEqual([scope, path, mayWrite])
        }
      }
    }).pipe(Effect.scoped)
  )
})

describe("tokens", () => {
  it.live("refuses tokens that are not signed here, not any more, or not by the pinned algorithm", () =>
    Effect.gen(function* () {
      const it = yield* server()
      const exp = inAnHour()
      const { privateKey } = yield* Effect.promise(() => generateKeyPair("RS256"))
      const rs256 = yield* Effect.promise(() =>
        new SignJWT({ scope: "admin", exp }).setProtectedHeader({ alg: "RS256" }).sign(privateKey)
      )
      const good = yield* scoped("admin")
      const [head = "", , signature = ""] = good.split(".")
      const forged = Buffer.from(JSON.stringify({ scope: "admin", exp: exp + 9 })).toString("base64url")
      const bad: ReadonlyArray<readonly [string, string]> = [
        ["no exp", yield* token({ scope: "admin" })],
        ["no scope", yield* token({ exp })],
        ["expired", yield* token({ scope: "admin", exp: exp - 7200 })],
        ["not yet", yield* token({ scope: "admin", exp, nbf: exp })],
        ["another secret", yield* token({ scope: "admin", exp }, new TextEncoder().encode("x".repeat(32)))],
        ["HS512", yield* token({ scope: "admin", exp }, bytes, "HS512")],
        ["RS256", rs256],
        ["none", new UnsecuredJWT({ scope: "admin", exp }).encode()],
        ["another payload", `${head}.${forged}.${signature}`],
        ["no signature", `${good.slice(0, good.lastIndexOf("."))}.`],
        ["nonsense", "nonsense"]
      ]
      for (const [name, value] of bad) {
        const answer = yield* send(it, "GET", "/instances", bearer(value))
        expect([name, answer.status]).toEqual([name, 401])
        expect(answer.text).not.toContain(value)
      }
      for (const authorization of ["", "Bearer", "Bearer ", `Basic ${good}`, good, `Bearer${good}`])
        expect((yield* send(it, "GET", "/instances", { headers: { authorization } })).status).toBe(401)
      // The public key of RS256, or the secret itself under another name, is no key of HS256.
      const confused = yield* token({ scope: "admin", exp }, new TextEncoder().encode(`${secret}\n`))
      expect((yield* send(it, "GET", "/instances", bearer(confused))).status).toBe(401)
      expect(it.world.calls).toEqual([])
      expect((yield* send(it, "GET", "/instances", bearer(good))).status).toBe(200)
      expect(JSON.stringify(it.events)).not.toContain(good)
    }).pipe(Effect.scoped)
  )
})

describe("what a refusal and the document say", () => {
  it.live("the challenge says what is wrong with a token, and what it takes", () =>
    Effect.gen(function* () {
      const it = yield* server()
      const challenge = (headers: Record<string, string>) =>
        Effect.map(send(it, "POST", "/instances/a1/pause", { headers }), (answer) => [
          answer.status,
          answer.headers.get("www-authenticate")
        ])
      expect(yield* challenge({})).toEqual([401, "Bearer"])
      expect(yield* challenge({ authorization: "Bearer nonsense" })).toEqual([
        401,
        `Bearer error="invalid_token"`
      ])
      expect(yield* challenge(bearer(yield* scoped("read")).headers)).toEqual([
        403,
        `Bearer error="insufficient_scope", scope="write"`
      ])
    }).pipe(Effect.scoped)
  )

  it.live("a token made here is good here until it expires, as far as its scope goes", () =>
    Effect.gen(function* () {
      const it = yield* server()
      const make = (scope: "read" | "write", expiresInS: number) =>
        signToken({ secret: Redacted.make(secret), scope, expiresInS })
      const status = (method: string, path: string, value: string) =>
        Effect.map(send(it, method, path, bearer(value)), (answer) => answer.status)
      expect(yield* status("GET", "/instances", yield* make("read", 60))).toBe(200)
      expect(yield* status("POST", "/instances/a1/pause", yield* make("read", 60))).toBe(403)
      expect(yield* status("POST", "/instances/a1/pause", yield* make("write", 60))).toBe(200)
      expect(yield* status("GET", "/instances", yield* make("read", -1))).toBe(401)
    }).pipe(Effect.scoped)
  )

  it("every operation that asks for a token says for which, and a read never asks for more", () => {
    const document = JSON.parse(specJson)
    const open = new Set(["/health", "/spec.yaml", "/spec.json", "/docs"])
    for (const [path, item] of Object.entries<Record<string, { security: unknown }>>(document.paths))
      for (const [method, operation] of Object.entries(item)) {
        // The WebSocket of exec is a GET by its handshake only.
        const writes = method !== "get" || path.endsWith("/exec")
        const scope = writes ? "write" : "read"
        expect([path, method, operation.security]).toEqual([
          path,
          method,
          open.has(path) ? [] : [{ bearer: [scope] }]
        ])
      }
  })
})

describe("order and origin", () => {
  it.live("comes before everything else that a request could be told", () =>
    Effect.gen(function* () {
      const it = yield* server()
      const json = { nonsense: "x".repeat(2_000_000) }
      expect((yield* send(it, "POST", "/instances", { json })).status).toBe(401)
      expect((yield* send(it, "GET", "/instances/Bad_Id")).status).toBe(401)
      const auth = bearer(yield* scoped("read"))
      expect((yield* send(it, "POST", "/images/import", auth)).status).toBe(403)
    }).pipe(Effect.scoped)
  )

  it.live("without JWT_SECRET nobody is asked, but pages of other sites are sent away", () =>
    Effect.gen(function* () {
      const it = yield* serveFakes()
      it.world.instances.set("a1", fakeInstance("a1"))
      const own = `127.0.0.1:${it.port}`
      const pause = (headers: Record<string, string>) => send(it, "POST", "/instances/a1/pause", { headers })
      expect((yield* pause({ origin: "https://evil.example" })).status).toBe(403)
      expect((yield* pause({ origin: "null" })).status).toBe(403)
      expect((yield* pause({ origin: `http://evil.${own}` })).status).toBe(403)
      expect(it.world.calls).toEqual([])
      expect((yield* pause({ origin: `http://${own}` })).status).toBe(200)
      expect((yield* pause({})).status).toBe(200)
    }).pipe(Effect.scoped)
  )
})
