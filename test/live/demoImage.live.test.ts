/**
 * The demo image on a real guest: what the quickstart shows, and what the support for other live tests promises: a
 * changed entrypoint and environment arrive, the page comes over the TAP, and nothing stays behind.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { consoleText, createInstance, fetchPage, importImage } from "../support/guests.ts"
import { expectNoLeaks, ledger, surplus } from "../support/leaks.ts"
import { needsLiveHost } from "../support/liveHost.ts"
import { startService } from "../support/Service.ts"

const entrypoint = ["/bin/sh", "-c", 'echo "$GREETING" > /tmp/index.html; exec httpd -f -p 8000 -h /tmp']

describe("the demo image", { timeout: 180_000 }, () => {
  needsLiveHost()

  it.live("boots, serves a page of its own environment, and goes without a trace", () =>
    Effect.gen(function* () {
      const service = yield* startService()
      const before = yield* ledger(service)
      const image = yield* importImage(service, "img-page", { entrypoint })
      const instance = yield* createInstance(service, {
        name: "A page",
        image: "img-page",
        env: { GREETING: "hello from the test" }
      })
      assert.strictEqual(yield* fetchPage(service, instance, "/", 8000), "hello from the test\n")
      assert.notInclude(yield* consoleText(service, instance), "panic")
      const held = surplus(before, yield* ledger(service))
      for (const kind of ["processes: ", "links: ", "files: instances/", "sockets: "]) {
        assert.isTrue(
          held.some((line) => line.startsWith(kind)),
          `${kind} is seen while the guest runs`
        )
      }
      yield* service.client.instances.remove({ params: { id: instance.id } })
      yield* service.client.images.remove({ params: { id: image.id } })
      yield* expectNoLeaks(service, before, (line) => line.startsWith("files: events/"))
    })
  )
})
