/**
 * Values in queries and headers arrive as text. These schemas decode them, and carry in `x-json-schema` what the OpenAPI
 * document should say of them: a client sees an integer with its bounds, not the text that it travels as.
 */
import * as Schema from "effect/Schema"
import * as SchemaTransformation from "effect/SchemaTransformation"

/** The annotation that replaces a parameter's derived schema in the document. */
export const jsonSchemaAnnotation = "x-json-schema"

/** A decimal integer within bounds, both included. */
export const IntParameter = (options: {
  readonly minimum: number
  readonly maximum: number
  readonly description: string
  readonly default?: number
}) =>
  Schema.String.annotate({ [jsonSchemaAnnotation]: { type: "integer", ...options } })
    .check(Schema.isPattern(/^\d{1,16}$/u, { expected: "a decimal integer" }))
    .pipe(
      Schema.decodeTo(
        Schema.Int.check(Schema.isBetween({ minimum: options.minimum, maximum: options.maximum })),
        SchemaTransformation.numberFromString
      )
    )

/** `true` or `false`; `1` and `0` are taken too. */
export const FlagParameter = (options: { readonly description: string; readonly default: boolean }) =>
  Schema.Literals(["true", "false", "1", "0"])
    .annotate({ [jsonSchemaAnnotation]: { type: "boolean", ...options } })
    .pipe(
      Schema.decodeTo(
        Schema.Boolean,
        SchemaTransformation.transform({
          decode: (text) => text === "true" || text === "1",
          encode: (flag) => (flag ? "true" : "false")
        })
      )
    )
