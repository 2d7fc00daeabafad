/**
 * Checks the images of a data directory against itself: records that can be read, layers that are what was made, blobs of
 * unfinished pulls that have their digest, and nothing that belongs to nobody. Repairs only what cannot be wrong to repair:
 * it removes what is damaged or nobody's. The service brings removed layers back from where they came at its next start.
 *
 * Repair while no service runs on the directory; looking is always safe, though what a running pull makes looks unowned.
 */
import { createHash } from "node:crypto"
import { createReadStream } from "node:fs"
import { pipeline } from "node:stream/promises"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { FileFault } from "../host/Fault.ts"
import { Files } from "../host/Files.ts"
import { Paths } from "../host/Paths.ts"
import { isTemporary } from "./convertLayer.ts"
import { fromHost, type ImageFault } from "./ImageFault.ts"
import { decode, type ImageRecord, isWorking, layersOf } from "./ImageRecord.ts"
import { checkSeal } from "./seal.ts"
import { isSpent } from "./sources/spentBlob.ts"

export interface Finding {
  readonly kind: "record" | "layer" | "blob" | "leftover"
  /** The name in its directory. */
  readonly name: string
  /** What is wrong, as the end of a sentence that begins with the name. */
  readonly problem: string
  /** `repairable`: by a run that may repair. */
  readonly state: "repaired" | "repairable" | "left"
}

export interface ImageCheck {
  readonly records: number
  readonly layers: number
  readonly blobs: number
  readonly findings: ReadonlyArray<Finding>
}

interface Run {
  readonly files: Files["Service"]
  readonly paths: Paths["Service"]
  readonly repair: boolean
  readonly findings: Array<Finding>
}

/** Names that a sentence holds at most. */
const namesShown = 5

/** Notes what can be repaired by removing it, and does that where it may. */
const removable = Effect.fnUntraced(function* (
  { files, repair, findings }: Run,
  file: string,
  finding: Omit<Finding, "state">
) {
  if (repair) yield* files.remove(file)
  findings.push({ ...finding, state: repair ? "repaired" : "repairable" })
})

const readRecords = Effect.fnUntraced(function* (run: Run) {
  const { files, paths, findings } = run
  const records: Array<ImageRecord> = []
  let isWhole = true
  for (const name of yield* files.list(paths.images)) {
    const file = `${paths.images}/${name}`
    if (!name.endsWith(".json")) {
      yield* removable(run, file, {
        kind: "leftover",
        name,
        problem: "is what a write that never ended left"
      })
      continue
    }
    const record = Option.flatMap(yield* files.readText(file), decode)
    if (Option.isSome(record) && name === `${record.value.id}.json`) records.push(record.value)
    else {
      isWhole = false
      const problem =
        "cannot be read; nothing is collected while it is there. Remove it, and POST its image again"
      findings.push({ kind: "record", name, problem, state: "left" })
    }
  }
  return { records, isWhole }
})

const ownersOf = (records: ReadonlyArray<ImageRecord>, isIt: (record: ImageRecord) => boolean): string => {
  const ids = records.filter(isIt).map((it) => it.id)
  return ids.slice(0, namesShown).join(", ") + (ids.length > namesShown ? ", ..." : "")
}

const sealOf = (file: string) =>
  Effect.tryPromise({ try: () => checkSeal(file), catch: (cause) => fromHost("Reading a layer", cause) })

/** Layers that are here: each what was made, and somebody's. Gives how many there are, and their names. */
const checkLayers = Effect.fnUntraced(function* (
  run: Run,
  records: ReadonlyArray<ImageRecord>,
  isWhole: boolean
) {
  const { files, paths, findings } = run
  const named = new Map(
    records.flatMap((record) => layersOf(record).map((key) => [paths.layer(key), key] as const))
  )
  const names = yield* files.list(paths.layers)
  for (const name of names) {
    const file = `${paths.layers}/${name}`
    const key = named.get(file)
    if (isTemporary(name)) {
      yield* removable(run, file, { kind: "leftover", name, problem: "is a layer that was never finished" })
    } else if (key === undefined && isWhole) {
      yield* removable(run, file, { kind: "leftover", name, problem: "is a layer that no image has" })
    } else {
      const soundness = yield* sealOf(file)
      if (soundness === "damaged") {
        const users = ownersOf(records, (it) => key !== undefined && layersOf(it).includes(key))
        const problem = `is damaged; it belongs to ${users}. Removed, it is made again when the service starts`
        yield* removable(run, file, { kind: "layer", name, problem })
      }
      if (soundness === "unsealed") {
        const problem = "has no checksum to be held against"
        findings.push({ kind: "layer", name, problem, state: "left" })
      }
    }
  }
  return { count: names.length, present: new Set(names) }
})

/** Layers that finished versions have and this host has not. */
const checkMissing = Effect.fnUntraced(function* (
  { paths, findings }: Run,
  records: ReadonlyArray<ImageRecord>,
  present: ReadonlySet<string>
) {
  const missing = new Map<string, string>()
  for (const record of records) {
    const versions = [...(record.current === null ? [] : [record.current]), ...record.previous]
    for (const { key } of versions.flatMap((it) => it.layers)) {
      const name = paths.layer(key).slice(paths.layers.length + 1)
      if (present.has(name) || missing.has(name)) continue
      missing.set(
        name,
        ownersOf(records, (it) => layersOf(it).includes(key))
      )
    }
  }
  for (const [name, users] of missing) {
    const problem = `is not here, though ${users} needs it; the service brings it back at its next start, an imported image has to be imported again`
    findings.push({ kind: "layer", name, problem, state: "left" })
  }
})

const digestHexOf = (file: string): Effect.Effect<string, ImageFault> =>
  Effect.tryPromise({
    try: async () => {
      const hash = createHash("sha256")
      await pipeline(createReadStream(file), hash)
      return hash.digest("hex")
    },
    catch: (cause) => fromHost("Reading a blob", cause)
  })

/** What unfinished pulls have fetched. An empty file stands for a layer that is here already. */
const checkPulls = Effect.fnUntraced(function* (run: Run, records: ReadonlyArray<ImageRecord>) {
  const { files, paths } = run
  const owned = new Set(
    records.filter((it) => isWorking(it) || it.work !== null).map((it) => paths.pull(it.id))
  )
  let blobs = 0
  for (const name of yield* files.list(paths.pulls)) {
    const pull = `${paths.pulls}/${name}`
    if (!owned.has(pull)) {
      yield* removable(run, pull, { kind: "leftover", name, problem: "is a pull that no image has" })
      continue
    }
    for (const hex of yield* files.list(`${pull}/blobs/sha256`)) {
      const file = `${pull}/blobs/sha256/${hex}`
      const stat = yield* files.stat(file)
      if (Option.isNone(stat) || stat.value.size === 0 || isSpent(hex)) continue
      blobs += 1
      if ((yield* digestHexOf(file)) === hex) continue
      yield* removable(run, file, {
        kind: "blob",
        name: `${name}/${hex}`,
        problem: "does not have its digest; it is fetched again"
      })
    }
  }
  return blobs
})

/** Checks everything; with `repair`, removes what is damaged or nobody's. Reads every layer: as fast as the disk. */
export const fsck = Effect.fnUntraced(function* (options: {
  readonly repair: boolean
}): Effect.fn.Return<ImageCheck, FileFault | ImageFault, Files | Paths> {
  const run: Run = { files: yield* Files, paths: yield* Paths, repair: options.repair, findings: [] }
  const { records, isWhole } = yield* readRecords(run)
  const { count, present } = yield* checkLayers(run, records, isWhole)
  yield* checkMissing(run, records, present)
  const blobs = isWhole ? yield* checkPulls(run, records) : 0
  return { records: records.length, layers: count, blobs, findings: run.findings }
})
