/** What only a real image and a guest's agent have durations of. */
import { expect, it, layer as withLayer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import { connectAgent } from "../../src/guest/Agent.ts"
import { Images } from "../../src/image/Images.ts"
import { obliging, peerServer } from "../support/guestPeer.ts"
import { onFreshHost, Remote, settled, smallImage } from "../support/image.ts"

/** How often each value of a label was measured. */
const counts = (name: string, label: string) =>
  Effect.map(
    Metric.snapshot,
    (snapshots) =>
      new Map(
        snapshots.flatMap((it): ReadonlyArray<readonly [string | undefined, number]> =>
          it.id === name && it.type === "Histogram" ? [[it.attributes?.[label], it.state.count]] : []
        )
      )
  )

it.live("each request to a guest's agent is a round trip, by its name", () =>
  Effect.gen(function* () {
    const server = yield* peerServer(obliging())
    const session = yield* connectAgent({ _tag: "UnixSocket", path: server.path })
    yield* session.ready
    yield* session.ping
    yield* session.ping
    yield* session.sync
    expect(yield* counts("dataplane_agent_round_trip_seconds", "request")).toEqual(
      new Map([
        ["ping", 2],
        ["sync", 1]
      ])
    )
  }).pipe(Effect.scoped, Effect.provideService(Metric.MetricRegistry, new Map()))
)

withLayer(Remote.layer, { excludeTestServices: true })("an image", (it) => {
  it.effect("has a duration for each of its phases", () =>
    onFreshHost(() =>
      Effect.gen(function* () {
        const registry = yield* Remote
        const images = yield* Images
        const name = yield* registry.push("team/timed", "v1", yield* smallImage("timed"))
        const { status } = yield* settled((yield* images.create({ name })).id)
        expect(status).toBe("ready")
        const measured = yield* counts("dataplane_image_phase_seconds", "phase")
        expect(new Set(measured.keys())).toEqual(
          new Set(["resolve", "fetch", "convert", "finish", "prepare"])
        )
      })
    )
  )
})
