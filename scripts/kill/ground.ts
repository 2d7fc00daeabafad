/**
 * What is on the host, by the host's own word and not the service's: live VMMs and how far their guests have counted,
 * TAPs, run directories. A simulated host keeps it under DATA_DIR/simulated.
 */
import * as fs from "node:fs"
import * as path from "node:path"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { layout } from "../../src/host/Paths.ts"
import { ranMs } from "../../src/host/simulated/guest.ts"
import { ProcessRecord, TapRecord } from "../../src/host/simulated/World.ts"

export interface LiveVmm {
  readonly id: string
  readonly pid: number
  /** Two values that are the same belong to one run of one guest, never booted or restored in between. */
  readonly run: string
  /** How long its guest has run, in ms of the guest's own time; null where nobody can look into it. */
  readonly ranMs: number | null
  /** Serials of the volumes' disks that it has open; null where nobody can look into it. */
  readonly volumes: ReadonlyArray<string> | null
}

export interface Ground {
  readonly vmms: ReadonlyArray<LiveVmm>
  readonly taps: ReadonlyArray<string>
}

export type Survey = (dataDir: string) => Promise<Ground>

const decodeProcess = Schema.decodeUnknownOption(
  Schema.fromJsonString(Schema.Struct({ process: ProcessRecord }))
)
const decodeTap = Schema.decodeUnknownOption(Schema.fromJsonString(Schema.Struct({ tap: TapRecord })))

/** A guest that runs since the same moment with the same memory before it was neither paused nor booted since. */
const runOf = ({ guest, identity }: ProcessRecord): string =>
  guest._tag === "Running" || guest._tag === "Paused"
    ? `${identity.start_time} ${guest.sinceMs} ${guest.memory.ranMs}`
    : `${identity.start_time} ${guest._tag}`

export const surveySimulated: Survey = (dataDir) => {
  const directory = path.join(dataDir, "simulated")
  const texts = fs
    .readdirSync(directory)
    .filter((name) => name.endsWith(".json"))
    .map((name) => fs.readFileSync(path.join(directory, name), "utf8"))
  return Promise.resolve({
    vmms: texts
      .flatMap((text) => Option.toArray(decodeProcess(text)))
      .map(({ process: it }) => ({
        id: it.id,
        pid: it.identity.pid,
        run: runOf(it),
        ranMs: ranMs(it.guest, Date.now()),
        volumes: it.disks.filter((disk) => disk.removable === true).map((disk) => disk.serial)
      })),
    taps: texts.flatMap((text) => Option.toArray(decodeTap(text))).map(({ tap }) => tap.name)
  })
}

const listed = (directory: string): ReadonlyArray<string> => {
  try {
    return fs.readdirSync(directory)
  } catch {
    return []
  }
}

/** What of a service's files exists: only names, since content is what its own tests look at. */
export const surveyFiles = (dataDir: string) => {
  const paths = layout(dataDir)
  const instances = listed(paths.instances)
  const all = fs.readdirSync(paths.root, { recursive: true, encoding: "utf8" })
  return {
    instances,
    snapshots: instances.flatMap((id) =>
      listed(path.join(paths.instances, id, "snapshot")).map((name) => ({
        id,
        name,
        complete: fs.existsSync(path.join(paths.instances, id, "snapshot", name, "manifest.json"))
      }))
    ),
    volumes: listed(paths.volumes),
    // Names that begin with a dot are FIFOs that the service made ahead: its own, not an instance's.
    runDirectories: listed(paths.run).filter((name) => !name.startsWith(".")),
    // The simulated host is not the service: it writes while it is looked at.
    temporary: all.filter((name) => /\.tmp(-\d+)?(\/|$)/u.test(name) && !name.startsWith("simulated/"))
  }
}
