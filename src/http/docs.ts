/**
 * The page of GET /docs: Swagger UI as Effect ships it, script and style inlined, over our own document. It works
 * offline, and its policy lets a browser talk to this service only.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpApiSwagger from "effect/http-api/HttpApiSwagger"
import * as OpenApi from "effect/http-api/OpenApi"
import { Api } from "../api/Api.ts"
import { openApiDocument } from "../api/document.ts"

/** Swagger UI is one inline script; everything that is not inline comes from here or not at all. */
export const docsPolicy = [
  "default-src 'none'",
  "script-src 'unsafe-inline'",
  "style-src 'unsafe-inline'",
  "img-src 'self' data:",
  "font-src data:",
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'"
].join("; ")

/** Where the page hands its options to Swagger UI; the badge of its online validator would ask another host. */
const optionsAnchor = `dom_id: "#swagger-ui",`
const options = `${optionsAnchor}
        validatorUrl: null,
        tryItOutEnabled: true,
        displayRequestDuration: true,
        defaultModelsExpandDepth: 0,`

const path = "/docs"

const render = Effect.fnUntraced(function* () {
  const documented = Api.annotate(OpenApi.Transform, () => ({ ...openApiDocument }))
  const { handler, dispose } = HttpRouter.toWebHandler(HttpApiSwagger.layer(documented, { path }), {
    disableLogger: true
  })
  const page = yield* Effect.promise(async () => {
    const response = await handler(new Request(`http://localhost${path}`), Context.empty())
    return response.text()
  }).pipe(Effect.ensuring(Effect.promise(dispose)))
  return page.replace(optionsAnchor, options)
})

/** Two megabytes of HTML, made on the first request and kept. */
export const docsPage: Effect.Effect<string> = Effect.runSync(Effect.cached(render()))
