/** `dataplane fsck [--repair]`: the check of images, for a terminal. Repairs only where no service runs on the directory. */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Files } from "./host/Files.ts"
import { layout, Paths } from "./host/Paths.ts"
import { ServiceLock } from "./host/ServiceLock.ts"
import { Settings } from "./host/Settings.ts"
import { type Finding, fsck } from "./image/fsck.ts"

const layerPaths = Layer.effect(
  Paths,
  Effect.map(Settings, (settings) => layout(settings.dataDir))
)

const states: Readonly<Record<Finding["state"], string>> = {
  repaired: "repaired",
  repairable: "can be repaired with --repair",
  left: "cannot be repaired here"
}

const check = Effect.fnUntraced(function* (repair: boolean) {
  const { records, layers, blobs, findings } = yield* fsck({ repair })
  const lines = findings.map((it) => `${it.kind} ${it.name} ${it.problem} (${states[it.state]})\n`)
  const found = findings.length === 0 ? "all sound" : `${findings.length} found`
  return {
    text: `${lines.join("")}${records} images, ${layers} layers and ${blobs} blobs checked: ${found}\n`,
    exitCode: findings.every((it) => it.state === "repaired") ? 0 : 1
  }
})

/** What to print, and the exit code: 0 where all is sound or was repaired, 1 where something is left. */
export const checkImages = (repair: boolean) =>
  (repair ? Effect.provide(check(true), ServiceLock.layer) : check(false)).pipe(
    Effect.provide(Files.layer.pipe(Layer.provideMerge(layerPaths), Layer.provideMerge(Settings.layer)))
  )
