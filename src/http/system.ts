/** Handlers of the service itself: health, metrics, resources, the specification and its page. */
import * as Effect from "effect/Effect"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as HttpApiBuilder from "effect/http-api/HttpApiBuilder"
import * as PrometheusMetrics from "effect/observability/PrometheusMetrics"
import { Api } from "../api/Api.ts"
import { Unhealthy } from "../domain/problems.ts"
import { version } from "../domain/Version.ts"
import { setGauges } from "../telemetry/gauges.ts"
import { docsPage, docsPolicy } from "./docs.ts"
import { Health } from "./Health.ts"
import { HostResources } from "./HostResources.ts"
import { specJson, specYaml } from "./specification.ts"

const text = (body: string, contentType: string, headers: Record<string, string> = {}) =>
  HttpServerResponse.text(body, { contentType, headers })

export const health = Effect.fnUntraced(function* (service: Health["Service"]) {
  const { ok, vmm, checks } = yield* service.report
  if (ok && vmm !== null)
    return { status: "ok" as const, version, vmm, uptime_s: Math.round(process.uptime() * 1000) / 1000 }
  const failed = checks.filter((check) => !check.ok).map((check) => check.name)
  return yield* new Unhealthy({
    detail: `This host cannot run VMs: ${failed.join(", ") || "no VMM can be used"}. \`dataplane doctor\` says how to mend it.`,
    checks
  })
})

/** The gauges are as of now, whenever they are scraped. */
const metrics = Effect.fnUntraced(function* (resources: HostResources["Service"]) {
  yield* setGauges(yield* resources.totals)
  return yield* PrometheusMetrics.format()
})

export const layerSystem = HttpApiBuilder.group(
  Api,
  "system",
  Effect.fnUntraced(function* (handlers) {
    const service = yield* Health
    const resources = yield* HostResources
    return handlers.handleAll({
      health: () => health(service),
      metrics: () =>
        Effect.map(metrics(resources), (body) =>
          text(body, "text/plain; version=0.0.4; charset=utf-8", { "cache-control": "no-store" })
        ),
      resources: () => resources.report,
      specYaml: () => Effect.succeed(text(specYaml, "application/yaml")),
      specJson: () => Effect.succeed(text(specJson, "application/json")),
      docs: () =>
        Effect.map(docsPage, (page) =>
          text(page, "text/html; charset=utf-8", { "content-security-policy": docsPolicy })
        )
    })
  })
)
