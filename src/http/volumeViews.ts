/** Volumes as clients see them, by whichever door they come in: the records, with who holds them. */
import * as Effect from "effect/Effect"
import type { Instances } from "../instance/Instances.ts"
import { toVolume, type Volumes } from "../volume/Volumes.ts"

export const volumeViews = (volumes: Volumes["Service"], instances: Instances["Service"]) => ({
  shown: (record: Parameters<typeof toVolume>[0]) =>
    Effect.map(instances.attachments, (held) => toVolume(record, held.get(record.id) ?? [])),
  all: Effect.map(Effect.all([volumes.list, instances.attachments]), ([records, held]) =>
    records.map((record) => toVolume(record, held.get(record.id) ?? []))
  )
})
