/**
 * A service that pulls one image and is killed while it does. Arguments: data directory, reference, and the moment to
 * announce on standard output: `fetching` (a blob is growing), `converting` (a squashfs is growing) or `made` (a layer is
 * finished, the image is not).
 */
import { readdirSync } from "node:fs"
import * as Effect from "effect/Effect"
import { Images } from "../../src/image/Images.ts"
import { imagesOn } from "./image.ts"

const [dataDir = "", name = "", moment = ""] = process.argv.slice(2)
const lookIntervalMs = 2

const names = (directory: string): ReadonlyArray<string> => {
  try {
    return readdirSync(directory, { recursive: true, encoding: "utf8" })
  } catch {
    return []
  }
}

const isNow = () =>
  moment === "fetching"
    ? names(`${dataDir}/pulls`).some((it) => it.includes("oci-put-blob"))
    : names(`${dataDir}/layers`).some((it) => it.endsWith(moment === "converting" ? ".tmp" : ".squashfs"))

const announce = setInterval(() => {
  if (!isNow()) return
  clearInterval(announce)
  process.stdout.write("now\n")
}, lookIntervalMs)

await Effect.runPromise(
  Effect.gen(function* () {
    const images = yield* Images
    yield* images.create({ name })
    return yield* Effect.never
  }).pipe(Effect.provide(imagesOn(dataDir)))
)
