/** References must mean what docker makes them mean, and every id must be one that the domain accepts. */
import { assert, describe, it } from "@effect/vitest"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { Digest, ImageId } from "../../src/domain/Ids.ts"
import { defaultIds, format, isLoopback, parse, type Reference } from "../../src/image/Reference.ts"

const digest = `sha256:${"ab".repeat(32)}`
const fallback = Digest.make(`sha256:${"cd".repeat(32)}`)

const ok = (text: string): Reference => {
  const parsed = parse(text)
  if (Result.isFailure(parsed)) throw new Error(parsed.failure)
  return parsed.success
}

describe("an image reference", () => {
  it.each([
    ["nginx", "docker.io/library/nginx:latest", "img-nginx"],
    ["nginx:1.27-alpine", "docker.io/library/nginx:1.27-alpine", "img-nginx-1-27-alpine"],
    ["library/nginx", "docker.io/library/nginx:latest", "img-nginx"],
    ["index.docker.io/nginx", "docker.io/library/nginx:latest", "img-nginx"],
    ["docker.io/bitnami/redis:7", "docker.io/bitnami/redis:7", "img-redis-7"],
    ["localhost/app", "localhost/app:latest", "img-app"],
    ["localhost:5000/app", "localhost:5000/app:latest", "img-app"],
    ["localhost:5000", "docker.io/library/localhost:5000", "img-localhost-5000"],
    ["127.0.0.1:5000/a/b/c__d:v1", "127.0.0.1:5000/a/b/c__d:v1", "img-c-d-v1"],
    ["[::1]:5000/app:x", "[::1]:5000/app:x", "img-app-x"],
    ["Registry/app", "Registry/app:latest", "img-app"],
    ["ghcr.io/o/app:Release_1.0", "ghcr.io/o/app:Release_1.0", "img-app-release-1-0"],
    [`nginx@${digest}`, `docker.io/library/nginx@${digest}`, "img-nginx"],
    [`nginx:1@${digest}`, `docker.io/library/nginx:1@${digest}`, "img-nginx-1"]
  ])("%s is %s with the id %s", (text, normal, id) => {
    const reference = ok(text)
    assert.strictEqual(format(reference), normal)
    assert.deepStrictEqual(ok(normal), reference)
    assert.strictEqual(defaultIds(reference, fallback)[0], id)
  })

  it.each([
    ["", /is needed/],
    ["Nginx", /lower-case/],
    ["a/Nginx:1", /lower-case/],
    ["nginx:", /a tag has/],
    ["nginx:-x", /a tag has/],
    [`nginx:${"x".repeat(129)}`, /a tag has/],
    ["nginx@sha256:abc", /behind @/],
    [`nginx@${digest.toUpperCase()}`, /behind @/],
    [`nginx@sha512:${"a".repeat(128)}`, /behind @/],
    ["a//b", /separators/],
    ["/a", /separators/],
    ["a/", /separators/],
    ["a___b", /separators/],
    ["a..b/c", /not a registry host/],
    ["host:port/a", /not a registry host/],
    ["a b", /separators/],
    ["nginx\n", /separators/],
    ["../../etc/passwd", /not a registry host/],
    ["docker://nginx", /not a registry host/],
    ["ab".repeat(32), /names no repository/],
    [`r.io/${"a".repeat(251)}`, /more than 255/],
    ["a".repeat(513), /more than 512/]
  ])("%j is refused with a sentence", (text, why) => {
    const parsed = parse(text)
    assert.isTrue(Result.isFailure(parsed))
    if (Result.isFailure(parsed)) assert.match(parsed.failure, why)
  })
})

describe("the parts of a reference", () => {
  it("keeps every default id inside the bounds of an id, and tells long names apart", () => {
    for (const path of ["a".repeat(200), `${"a".repeat(58)}.b`, `x-${"9_".repeat(40)}z`]) {
      for (const tag of ["latest", "T".repeat(128), "_", "a.-_b", "x".repeat(57)]) {
        const ids = defaultIds({ domain: "r.io", path, tag, digest: null }, fallback)
        assert.isTrue(ids.every(Schema.is(ImageId)), ids.join(" "))
        assert.notStrictEqual(ids[0], ids[1])
        assert.isTrue(ids[1].endsWith("-cdcdcdcd"))
      }
    }
    assert.strictEqual(defaultIds(ok(`nginx@${digest}`), fallback)[1], "img-nginx-abababab")
  })

  it.each([
    ["localhost/a", true],
    ["localhost:5000/a", true],
    ["127.8.9.1:5000/a", true],
    ["[::1]:5000/a", true],
    ["localhost.example/a", false],
    ["127.0.0.1.example/a", false],
    ["10.0.0.1:5000/a", false],
    ["nginx", false]
  ])("%s is on loopback: %s", (text, expected) => {
    assert.strictEqual(isLoopback(ok(text)), expected)
  })
})

describe("any parsed reference", () => {
  const pieces = [
    "a",
    "b-c",
    "library",
    "x.y",
    "localhost",
    "r.io",
    ":",
    "/",
    "@",
    "5000",
    "1.0",
    "A",
    "..",
    digest,
    "_"
  ]
  it.prop(
    "has one normal form, and its ids are ids",
    [Schema.Array(Schema.Literals(["a", "b-c", ...pieces])).check(Schema.isMaxLength(7))],
    ([parts]) => {
      const parsed = parse(parts.join(""))
      if (Result.isFailure(parsed)) return
      const normal = format(parsed.success)
      assert.strictEqual(format(ok(normal)), normal)
      assert.isTrue(defaultIds(parsed.success, fallback).every(Schema.is(ImageId)))
    }
  )
})
