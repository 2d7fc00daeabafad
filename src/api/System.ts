/** The service itself: health, metrics, resources and its own description. Open to everybody but for the figures. */
import * as Schema from "effect/Schema"
import * as HttpApiEndpoint from "effect/http-api/HttpApiEndpoint"
import * as HttpApiGroup from "effect/http-api/HttpApiGroup"
import * as HttpApiSchema from "effect/http-api/HttpApiSchema"
import * as OpenApi from "effect/http-api/OpenApi"
import { Health } from "../domain/Health.ts"
import { Unhealthy } from "../domain/problems.ts"
import { Resources } from "../domain/Resources.ts"
import { Authorization } from "./Authorization.ts"
import { jsonSchemaAnnotation } from "./parameters.ts"

const text = (contentType: string, description: string) =>
  Schema.String.annotate({ description }).pipe(HttpApiSchema.asText({ contentType }))

export class SystemGroup extends HttpApiGroup.make("system")
  .add(
    HttpApiEndpoint.get("health", "/health", { success: Health, error: Unhealthy }).annotateMerge(
      OpenApi.annotations({
        summary: "Whether this host can run VMs",
        description: "503 with `checks` where it cannot; each failed check says how to mend it."
      })
    ),
    HttpApiEndpoint.get("metrics", "/metrics", {
      success: text("text/plain; version=0.0.4; charset=utf-8", "Prometheus text exposition format.")
    })
      .middleware(Authorization)
      .annotateMerge(OpenApi.annotations({ summary: "Metrics for Prometheus" })),
    HttpApiEndpoint.get("resources", "/resources", { success: Resources })
      .middleware(Authorization)
      .annotateMerge(
        OpenApi.annotations({
          summary: "What the host has, what is given out and what is free",
          description: "CPUs, memory, disk and addresses, in all and for each instance."
        })
      ),
    HttpApiEndpoint.get("specYaml", "/spec.yaml", {
      // The schema of a YAML answer is that of the value that the text stands for.
      success: Schema.String.annotate({
        description: "This document.",
        [jsonSchemaAnnotation]: { type: "object", description: "This document." }
      }).pipe(HttpApiSchema.asText({ contentType: "application/yaml" }))
    }).annotateMerge(OpenApi.annotations({ summary: "This document as YAML" })),
    HttpApiEndpoint.get("specJson", "/spec.json", {
      success: Schema.Record(Schema.String, Schema.Unknown).annotate({ description: "This document." })
    }).annotateMerge(OpenApi.annotations({ summary: "This document as JSON" })),
    HttpApiEndpoint.get("docs", "/docs", {
      success: text("text/html; charset=utf-8", "A page.")
    }).annotateMerge(OpenApi.annotations({ summary: "A page to read and try this document" }))
  )
  .annotateMerge(OpenApi.annotations({ title: "system", description: "The service itself." })) {}
