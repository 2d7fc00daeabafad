/**
 * The OpenAPI 3.1 document, derived from the schemas. What the derivation leaves behind as the wire's view of a value
 * is put right here by rule, never by hand: parameters are shown as the type that their text holds, and components
 * have the names of their nouns.
 */
import { isDeepStrictEqual } from "node:util"
import * as Predicate from "effect/Predicate"
import * as Schema from "effect/Schema"
import * as OpenApi from "effect/http-api/OpenApi"
import { CreateInstance } from "../domain/Instance.ts"
import { problemBase } from "../domain/problems.ts"
import { Api } from "./Api.ts"
import { withConditions } from "./conditions.ts"
import { createInstanceExample } from "./Instances.ts"
import { jsonSchemaAnnotation } from "./parameters.ts"

const isRecord = (value: unknown): value is Readonly<Record<string, unknown>> =>
  Predicate.isObject(value) && !Array.isArray(value)

/** Left out: how Effect's own client tells a failed stream, which this service never sends. */
const droppedKeys = new Set(["x-effect-stream"])

/** `allOf` only where its members really contradict one another or the schema that they refine. */
const flattened = (node: Record<string, unknown>): Record<string, unknown> => {
  const members = node["allOf"]
  if (!Array.isArray(members) || !members.every(isRecord)) return node
  const { allOf: _, ...rest } = node
  const keys = [rest, ...members].flatMap((member) => Object.keys(member))
  return new Set(keys).size === keys.length ? Object.assign({}, rest, ...members) : node
}

/** A parameter's own description, which readers look for beside its name. */
const described = (node: Record<string, unknown>): Record<string, unknown> => {
  const schema = node["schema"]
  if (!Predicate.isString(node["in"]) || !isRecord(schema) || !("description" in schema)) return node
  const { description, ...rest } = schema
  return { ...node, description, schema: rest }
}

/** A problem always says its type, title and status: they are fixed by its class. */
const complete = (node: Record<string, unknown>): Record<string, unknown> => {
  const { properties, required } = node
  if (!isRecord(properties) || !Array.isArray(required)) return node
  const { type, title, status } = properties
  if (![type, title, status].every(isRecord) || !JSON.stringify(type).includes(problemBase)) return node
  return { ...node, required: [...required, "title", "status"] }
}

/** `\0` is NUL in JavaScript's expressions only; other languages read the longer form as well. */
const portable = (pattern: string): string =>
  pattern.replace(/\\(0(?!\d)|.)/gsu, (whole, char: string) => (char === "0" ? String.raw`\u0000` : whole))

/** Patterns that readers in any language take. */
const portablePatterns = (node: Record<string, unknown>): Record<string, unknown> => {
  const { pattern, patternProperties } = node
  return {
    ...node,
    ...(Predicate.isString(pattern) ? { pattern: portable(pattern) } : {}),
    ...(isRecord(patternProperties)
      ? {
          patternProperties: Object.fromEntries(
            Object.entries(patternProperties).map(([key, schema]) => [portable(key), schema])
          )
        }
      : {})
  }
}

const rewrite = (node: unknown): unknown => {
  if (Array.isArray(node)) return node.map(rewrite)
  if (!isRecord(node)) return node
  const parameter = node[jsonSchemaAnnotation]
  if (isRecord(parameter)) return parameter
  const entries = Object.entries(node)
    .filter(([key]) => !droppedKeys.has(key))
    .map(([key, value]) => [key, rewrite(value)])
  return portablePatterns(complete(described(flattened(Object.fromEntries(entries)))))
}

type Components = Readonly<Record<string, unknown>>

const refTo = (name: string): string => `#/components/schemas/${name}`

/**
 * The derivation numbers a component that it meets from two sides. Where both say the same, one is enough; where the
 * second is the first as JSON text, it stands at its place without a name.
 */
const replacements = (components: Components): ReadonlyMap<string, unknown> =>
  new Map(
    Object.entries(components).flatMap(([name, schema]): Array<[string, unknown]> => {
      const base = name.replace(/_\d+$/u, "")
      if (base === name) return []
      if (isDeepStrictEqual(components[base], schema)) return [[refTo(name), { $ref: refTo(base) }]]
      return isRecord(schema) && "contentSchema" in schema ? [[refTo(name), schema]] : []
    })
  )

const replaced = (node: unknown, targets: ReadonlyMap<string, unknown>): unknown => {
  if (Array.isArray(node)) return node.map((item) => replaced(item, targets))
  if (!isRecord(node)) return node
  const target = Predicate.isString(node["$ref"]) ? targets.get(node["$ref"]) : undefined
  if (target !== undefined) return target
  return Object.fromEntries(Object.entries(node).map(([key, value]) => [key, replaced(value, targets)]))
}

/** Names of components that something refers to, directly or through another component. */
const reachable = (paths: unknown, components: Components): ReadonlySet<string> => {
  const found = new Set<string>()
  const visit = (node: unknown): void => {
    if (Array.isArray(node)) return node.forEach(visit)
    if (!isRecord(node)) return
    const reference = node["$ref"]
    if (Predicate.isString(reference)) {
      const name = reference.slice(refTo("").length)
      if (!found.has(name)) {
        found.add(name)
        visit(components[name])
      }
    }
    Object.values(node).forEach(visit)
  }
  visit(paths)
  return found
}

/** What a request gets for the fields that it leaves out, by decoding one that leaves out all that it may. */
const defaults: Components = Schema.decodeSync(CreateInstance)({ name: "any", image: "any" })

/** A request as readers want to see it: with its defaults, and one example that works. */
const exemplified = (schema: Readonly<Record<string, unknown>>): Readonly<Record<string, unknown>> => {
  const { properties, required } = schema
  if (!isRecord(properties) || !Array.isArray(required)) return schema
  const shown = Object.entries(properties).map(([name, property]) => [
    name,
    isRecord(property) && name in defaults && !required.includes(name)
      ? { ...property, default: defaults[name] }
      : property
  ])
  return { ...schema, properties: Object.fromEntries(shown), examples: [createInstanceExample] }
}

/** Only what is used, in the order of its names. */
const tidied = (paths: unknown, components: Components): Components => {
  const used = reachable(paths, components)
  return Object.fromEntries(
    Object.entries(components)
      .filter(([name]) => used.has(name))
      .toSorted(([left], [right]) => (left < right ? -1 : 1))
      .map(([name, schema]) => [
        name,
        isRecord(schema) && name === "CreateInstance" ? exemplified(schema) : schema
      ])
  )
}

const derive = (): Readonly<Record<string, unknown>> => {
  const derived = OpenApi.fromApi(Api, {
    includeAnnotationKey: (key) => key === jsonSchemaAnnotation,
    referencePolicy: ({ identifier }) => identifier?.replace(/Encoded$/u, "")
  })
  const schemas = rewrite(derived.components.schemas)
  const components = isRecord(schemas) ? schemas : {}
  const targets = replacements(components)
  const paths = withConditions(replaced(rewrite(derived.paths), targets))
  const merged = replaced(components, targets)
  return {
    ...derived,
    paths,
    components: { ...derived.components, schemas: tidied(paths, isRecord(merged) ? merged : {}) }
  }
}

/** The document as plain JSON, the same for openapi.yaml, GET /spec.yaml, GET /spec.json and /docs. */
export const openApiDocument: Readonly<Record<string, unknown>> = derive()
