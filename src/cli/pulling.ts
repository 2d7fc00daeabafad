/** Waiting for an image to be ready, and showing how far it is. */
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type { Image } from "../domain/Image.ts"
import { failure } from "./Failure.ts"
import { type Stage, withProgress } from "./Progress.ts"
import type { Remote } from "./Remote.ts"
import { printable } from "./text.ts"

/** The API has no event for an image's progress. */
const lookEveryMs = 200
/** A day: whoever waits longer has gone home. */
const looksAtMost = (24 * 3600 * 1000) / lookEveryMs

const stageOf = ({ status, progress }: Image): Stage => ({
  phase:
    progress.layers_total > 0 && status !== "ready"
      ? `${status}, layer ${Math.min(progress.layers_done + 1, progress.layers_total)} of ${progress.layers_total}`
      : status,
  done: progress.bytes_done,
  total: progress.bytes_total
})

const isSettled = ({ status }: Image): boolean => status === "ready" || status === "failed"

/** The image once it is ready; fails with the image's own words where it does not come to that. */
export const untilReady = ({ api }: Pick<Remote, "api">, image: Image) =>
  Effect.gen(function* () {
    const settled = isSettled(image)
      ? image
      : yield* withProgress(image.id, stageOf(image), (show) =>
          api.images.get({ params: { id: image.id } }).pipe(
            Effect.tap((now) => show(stageOf(now))),
            Effect.repeat({
              schedule: Schedule.spaced(lookEveryMs),
              times: looksAtMost,
              until: isSettled
            })
          )
        )
    if (settled.status === "ready") return settled
    return yield* failure(
      printable(`Image ${settled.id} is ${settled.status}: ${settled.error ?? "no reason was given"}`)
    )
  })

/** POST /images, then until it is ready. */
export const pull = (
  service: Pick<Remote, "api">,
  request: Parameters<Remote["api"]["images"]["create"]>[0]["payload"]
) => Effect.flatMap(service.api.images.create({ payload: request }), (image) => untilReady(service, image))
