/** GET /docs in a real browser: it shows every operation, tries one, and asks nobody but this service. */
import * as fs from "node:fs/promises"
import * as path from "node:path"
import { expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { openApiDocument } from "../../src/api/document.ts"
import { findBrowser, openPage } from "../support/browser.ts"
import { fakeInstance } from "../support/fakeServices.ts"
import { serveFakes } from "../support/httpServer.ts"

const artifact = path.resolve(import.meta.dirname, "../../.artifacts/docs.png")
const browser = findBrowser()
const missing = browser === undefined ? ": skipped, there is no chromium (apt-get install chromium)" : ""

const Paths = Schema.Record(Schema.String, Schema.Record(Schema.String, Schema.Unknown))
const methods = new Set(["get", "post", "put", "patch", "delete"])
const documented = Object.entries(Schema.decodeUnknownSync(Paths)(openApiDocument["paths"])).flatMap(
  ([route, item]) =>
    Object.keys(item)
      .filter((method) => methods.has(method))
      .map((method) => `${method.toUpperCase()} ${route}`)
)

/** Resolves when the selector finds something; the page's own changes tell, no clock does. */
const appears = (selector: string) =>
  `new Promise((resolve) => {
    const look = () => document.querySelector(${JSON.stringify(selector)}) !== null && resolve(true);
    new MutationObserver(look).observe(document, { childList: true, subtree: true });
    look();
  })`
const click = (selector: string) => `document.querySelector(${JSON.stringify(selector)}).click()`

const shownOperations = `[...document.querySelectorAll(".opblock")].map((block) =>
  block.querySelector(".opblock-summary-method").textContent + " " +
  block.querySelector(".opblock-summary-path").getAttribute("data-path"))`

const blockOf = (method: string, route: string) =>
  `[...document.querySelectorAll(".opblock")].find((block) =>
    block.querySelector(".opblock-summary-method").textContent === "${method}" &&
    block.querySelector(".opblock-summary-path").getAttribute("data-path") === "${route}")`

/** Browsers ask every site for one. */
const icon = "/favicon.ico"

it.live.skipIf(browser === undefined)(
  `a browser shows every operation, and tries one${missing}`,
  () =>
    Effect.gen(function* () {
      const server = yield* serveFakes()
      server.world.instances.set("seen", fakeInstance("seen"))
      const page = yield* openPage(browser ?? "", `${server.url}/docs`)
      yield* page.evaluate(appears(".opblock"))
      const shown = Schema.decodeUnknownSync(Schema.Array(Schema.String))(
        yield* page.evaluate(shownOperations)
      )
      expect(shown.toSorted()).toEqual(documented.toSorted())
      const picture = yield* page.screenshot
      yield* Effect.promise(async () => {
        await fs.mkdir(path.dirname(artifact), { recursive: true })
        await fs.writeFile(artifact, picture)
      })
      yield* page.evaluate(
        `${blockOf("GET", "/instances")}.querySelector(".opblock-summary-control").click()`
      )
      yield* page.evaluate(appears(".opblock.is-open .execute"))
      yield* page.evaluate(click(".opblock.is-open .execute"))
      yield* page.evaluate(appears(".live-responses-table .response-col_status"))
      const answer = yield* page.evaluate("document.querySelector('.live-responses-table').textContent")
      expect(String(answer)).toContain("200")
      expect(String(answer)).toContain('"seen"')
      const origins = new Set(
        page
          .requested()
          .filter((url) => !url.startsWith("data:") && !url.startsWith("blob:"))
          .map((url) => new URL(url).origin)
      )
      expect([...origins]).toEqual([new URL(server.url).origin])
      expect(page.errors().filter((error) => !error.includes(icon))).toEqual([])
    }).pipe(Effect.scoped),
  120_000
)
