/** openapi.yaml is what the schemas derive, is valid OpenAPI 3.1, and says what a client needs. */
import { readFileSync } from "node:fs"
import { Validator } from "@seriousme/openapi-schema-validator"
import * as Predicate from "effect/Predicate"
import * as Schema from "effect/Schema"
import * as HttpApi from "effect/http-api/HttpApi"
import { describe, expect, it } from "vitest"
import { parse } from "yaml"
import { Api } from "../../src/api/Api.ts"
import { openApiDocument } from "../../src/api/document.ts"
import { createInstanceExample } from "../../src/api/Instances.ts"
import { CreateInstance } from "../../src/domain/Instance.ts"
import { version } from "../../src/domain/Version.ts"
import { specJson, specYaml } from "../../src/http/specification.ts"

const read = (name: string) => readFileSync(new URL(`../../${name}`, import.meta.url), "utf8")
const decodeCreate = Schema.decodeUnknownSync(CreateInstance, { onExcessProperty: "error" })

/** Every node of the document with its path. */
const nodes = function* (
  node: unknown,
  path: ReadonlyArray<string> = []
): Generator<readonly [ReadonlyArray<string>, Readonly<Record<string, unknown>>]> {
  if (Array.isArray(node))
    for (const [index, item] of node.entries()) yield* nodes(item, [...path, `${index}`])
  else if (Predicate.isObject(node)) {
    yield [path, { ...node }]
    for (const [key, value] of Object.entries(node)) yield* nodes(value, [...path, key])
  }
}

interface Operation {
  readonly operationId: string
  readonly summary?: string
  readonly parameters: ReadonlyArray<Readonly<Record<string, unknown>>>
  readonly responses: Readonly<Record<string, { readonly description: string; readonly content?: object }>>
}

const document: {
  readonly paths: Readonly<Record<string, Readonly<Record<string, Operation>>>>
  readonly components: { readonly schemas: Readonly<Record<string, Readonly<Record<string, unknown>>>> }
} = JSON.parse(specJson)
const operations = Object.entries(document.paths).flatMap(([path, item]) =>
  Object.entries(item).map(([method, operation]) => ({ path, method, operation }))
)

describe("openapi.yaml", () => {
  it("is the document that the schemas derive", () => {
    expect(parse(read("openapi.yaml"))).toEqual(openApiDocument)
    expect(read("openapi.yaml")).toBe(specYaml)
  })

  it("is valid OpenAPI 3.1", async () => {
    const validator = new Validator()
    const result = await validator.validate(parse(specYaml))
    expect(result.errors ?? []).toEqual([])
    expect(result.valid).toBe(true)
    expect(validator.version).toBe("3.1")
  })

  it("has the version of the package", () => {
    expect(version).toBe(JSON.parse(read("package.json")).version)
  })
})

describe("the document", () => {
  it("names components by their nouns, refers to every one of them, and to none that is missing", () => {
    const names = Object.keys(document.components.schemas)
    expect(names.filter((name) => /Encoded|_\d+$/u.test(name))).toEqual([])
    const references = new Set(
      [...nodes(document)].flatMap(([, node]) => (Predicate.isString(node["$ref"]) ? [node["$ref"]] : []))
    )
    expect([...references].toSorted()).toEqual(names.map((name) => `#/components/schemas/${name}`).toSorted())
  })

  it("shows no trace of how values travel or of its own derivation", () => {
    const extensions = [...nodes(document)].flatMap(([, node]) =>
      Object.keys(node).filter((key) => key.startsWith("x-"))
    )
    expect(extensions).toEqual([])
    for (const { operation } of operations)
      for (const parameter of operation.parameters) {
        expect(JSON.stringify(parameter)).not.toContain("^\\\\d")
        expect(JSON.stringify(parameter)).not.toContain("allOf")
      }
  })

  it("shows numbers in queries as integers with bounds, and flags as booleans", () => {
    const logs = document.paths["/instances/{id}/logs"]?.["get"]?.parameters ?? []
    const schemaOf = (name: string) => logs.find((parameter) => parameter["name"] === name)
    expect(schemaOf("tail")).toMatchObject({ schema: { type: "integer", minimum: 0, maximum: 100_000 } })
    expect(schemaOf("follow")).toMatchObject({ schema: { type: "boolean", default: false } })
    expect(schemaOf("last-event-id")).toMatchObject({ in: "header", schema: { type: "integer", minimum: 0 } })
    expect(schemaOf("tail")).toHaveProperty("description")
  })

  it("gives every operation a summary, an id of its own and problems with their content type", () => {
    expect(new Set(operations.map(({ operation }) => operation.operationId)).size).toBe(operations.length)
    for (const { operation } of operations) {
      expect(operation.summary).toBeTruthy()
      for (const [status, { content, description }] of Object.entries(operation.responses)) {
        expect(description).toBeTruthy()
        expect(description).not.toContain("<")
        if (Number(status) >= 400) expect(Object.keys(content ?? {})).toEqual(["application/problem+json"])
      }
    }
  })

  it("a problem always has its type, title and status, and its status is where the document says", () => {
    for (const [name, schema] of Object.entries(document.components.schemas)) {
      if (!JSON.stringify(schema).includes("/problems/")) continue
      expect(schema["required"], name).toEqual(expect.arrayContaining(["type", "title", "status", "detail"]))
    }
    for (const { operation } of operations)
      for (const [status, response] of Object.entries(operation.responses)) {
        if (Number(status) < 400) continue
        const names = JSON.stringify(response).matchAll(/schemas\/(\w+)/gu)
        for (const [, name = ""] of names)
          expect(document.components.schemas[name]?.["properties"]).toMatchObject({
            status: { enum: [Number(status)] }
          })
      }
  })

  it("has every endpoint that is served, and requests refuse unknown fields", () => {
    const served: Array<string> = []
    HttpApi.reflect(Api, {
      onGroup: () => undefined,
      onEndpoint: ({ endpoint }) => void served.push(`${endpoint.method} ${endpoint.path}`)
    })
    expect(operations).toHaveLength(served.length)
    expect(document.components.schemas["CreateInstance"]).toMatchObject({ additionalProperties: false })
    expect(document.components.schemas["CreateImage"]).toMatchObject({ additionalProperties: false })
  })
})

describe("the example that must work to the letter", () => {
  const letter =
    '{"id":"my-instance","name":"My Workload","image":"img-nginx","memory_mb":2048,"memory_max_mb":4096,"vcpus":2,"env":{"NODE_ENV":"production"}}'

  it("decodes, and the rest has the contract's defaults", () => {
    expect(decodeCreate(JSON.parse(letter))).toEqual({
      id: "my-instance",
      name: "My Workload",
      image: "img-nginx",
      memory_mb: 2048,
      memory_max_mb: 4096,
      vcpus: 2,
      env: { NODE_ENV: "production" },
      overlay_mb: 10_240,
      volumes: [],
      network: { enabled: true },
      labels: {},
      restart_policy: "never",
      start: true
    })
  })

  it("has in the document the defaults that decoding gives, and none for what is required", () => {
    const properties: Readonly<Record<string, { readonly default?: unknown }>> = JSON.parse(
      JSON.stringify(document.components.schemas["CreateInstance"]?.["properties"])
    )
    const shown = Object.entries(properties).flatMap(([name, { default: value }]) =>
      value === undefined ? [] : [[name, value] as const]
    )
    const decoded = decodeCreate({ name: "n", image: "i" })
    expect(Object.fromEntries(shown)).toEqual({ ...decoded, name: undefined, image: undefined })
  })

  it("is the example of the document", () => {
    expect(createInstanceExample).toEqual(JSON.parse(letter))
    expect(document.components.schemas["CreateInstance"]).toMatchObject({ examples: [JSON.parse(letter)] })
  })
})
