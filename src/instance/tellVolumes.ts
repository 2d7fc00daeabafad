/** Tells the log and the instance's own journal which volumes came and went with a change of the record. */
import * as Effect from "effect/Effect"
import { timestamp } from "../domain/Ids.ts"
import { logEvent } from "../telemetry/LogEvent.ts"
import { Journal } from "./Journal.ts"
import type { HeldVolume } from "../domain/Volume.ts"
import type { Record } from "./Record.ts"

/** It is the instance's, and its device is there, or will be with the VMM. */
const isAttached = ({ phase }: HeldVolume): boolean => phase === "held" || phase === "queued"

const describe = ({ volume_id, mount_path, readonly, phase }: HeldVolume): string =>
  `volume ${volume_id} attached at ${mount_path}${readonly ? ", read-only" : ""}${phase === "queued" ? ", mounted at the resume" : ""}`

export const tellVolumes = Effect.fnUntraced(function* (before: Record, after: Record, at: string) {
  const was = before.lifecycle.volumes
  const is = after.lifecycle.volumes
  if (was === is) return
  const journal = yield* Journal
  const { spec, generation } = after
  const tell = (event: string, message: string) =>
    journal.tell(spec.id, { time: timestamp(Date.parse(at)), event, message, generation })
  for (const volume of is.filter(isAttached)) {
    const old = was.find((it) => it.volume_id === volume.volume_id)
    if (old !== undefined && old.phase !== "attaching") continue
    yield* logEvent("volume.attached", `${spec.id}: ${describe(volume)}`, {
      instance_id: spec.id,
      generation,
      volume_id: volume.volume_id,
      mount_path: volume.mount_path,
      readonly: volume.readonly,
      mounted: volume.phase === "held" && after.lifecycle.state._tag === "Running"
    })
    yield* tell("volume.attached", describe(volume))
  }
  for (const { volume_id } of was.filter((it) => !is.some((now) => now.volume_id === it.volume_id)))
    yield* tell("volume.detached", `volume ${volume_id} is not the instance's any more`)
})
