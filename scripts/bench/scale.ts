/**
 * What many instances cost: real processes of the service, `VMM=simulated` without latency, 1,000 running instances.
 *
 *   adoption   a restarted service beside one that starts with no instance, in turns
 *   memory     what is left after a collection of garbage, beside the same service with no instance
 *   list       GET /instances at a bounded rate, beside a bare node:http server that answers the same bytes
 */
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import { CreateInstance } from "../../src/domain/Instance.ts"
import { importImage } from "../../test/support/guests.ts"
import { makeNamespace } from "../../test/support/Namespace.ts"
import { type LogLine, type Service, startService } from "../../test/support/Service.ts"
import type { ListLatencies } from "./listClient.ts"
import { percentile, type Row, spread } from "./table.ts"

export interface ScaleOptions {
  readonly instances?: number
  readonly restarts?: number
  readonly listRequests?: number
  readonly listRounds?: number
  readonly listEveryMs?: number
}

const adoptionAimMs = 2_000
const instanceAimKib = 40
const listAimMs = 20
const idlePollMs = 500
const idlePolls = 120
/** Enough to keep the disk busy. */
const createConcurrency = 16
const program = new URL("./listClient.ts", import.meta.url).pathname

const env = {
  VMM: "simulated",
  SIMULATED_LATENCY: "none",
  // An idle guest prints nothing.
  SIMULATED_TICK_MS: "0",
  SUBNET_CIDR: "10.20.0.0/16",
  SUBNET_GATEWAY: "10.20.0.1",
  NODE_OPTIONS: `--import ${new URL("./probe.ts", import.meta.url).href}`
}

const createMany = (service: Service, count: number) =>
  Effect.forEach(
    Array.from({ length: count }, (_, at) => `vm-${at}`),
    (id) =>
      Effect.flatMap(
        Schema.decodeEffect(CreateInstance)({
          id,
          name: id,
          image: "bench",
          memory_mb: 128,
          vcpus: 1,
          overlay_mb: 64
        }),
        (payload) => service.client.instances.create({ payload })
      ),
    { concurrency: createConcurrency, discard: true }
  )

const numberOf = (line: LogLine | undefined, name: string): number => {
  const value = line?.[name]
  return typeof value === "number" ? value : Number.NaN
}

const timeOf = (line: LogLine | undefined): number => Date.parse(String(line?.["time"]))

interface Start {
  readonly wholeMs: number
  /** From the first record that was read to the last line that says that an instance was adopted. */
  readonly adoptionMs: number
  readonly adopted: number
}

/** Killed, so that nothing is prepared for the next start. */
const startAgain = (service: Service) =>
  Effect.gen(function* () {
    yield* service.stop("SIGKILL")
    const from = service.log.length
    const startedAt = performance.now()
    yield* service.start()
    const wholeMs = performance.now() - startedAt
    const lines = service.log.slice(from)
    const adopted = lines.filter((line) => line["event"] === "instance.adopted")
    const read = lines.find((line) => line["event"] === "bench.records")
    return {
      wholeMs,
      adoptionMs: timeOf(adopted.at(-1)) - numberOf(read, "at"),
      adopted: adopted.length
    } satisfies Start
  })

interface Memory {
  readonly rss: number
  readonly heapUsed: number
}

/** Idle: every guest has answered, its clock is set, and nothing is left to be written. */
const untilIdle = (service: Service) =>
  service.client.instances.list({ query: {} }).pipe(
    Effect.repeat({
      schedule: Schedule.spaced(idlePollMs),
      times: idlePolls,
      until: (all) => all.every((it) => it.ready && it.transition === null)
    }),
    Effect.andThen(Effect.sleep(idlePollMs))
  )

const memoryOf = (service: Service) =>
  Effect.gen(function* () {
    yield* untilIdle(service)
    const from = service.log.length
    const later = service.logged(
      (line) => line["event"] === "bench.memory" && service.log.indexOf(line) >= from
    )
    process.kill(service.pid(), "SIGUSR2")
    const line = yield* later
    return { rss: numberOf(line, "rss"), heapUsed: numberOf(line, "heapUsed") } satisfies Memory
  })

const listLatencies = (service: Service, options: Required<ScaleOptions>) =>
  service.namespace
    .run(process.execPath, [
      program,
      "http://127.0.0.1:8080/instances",
      `${options.listRequests}`,
      `${options.listRounds}`,
      `${options.listEveryMs}`
    ])
    .pipe(
      Effect.map((text): ListLatencies => JSON.parse(text)),
      Effect.orDie
    )

const kibEach = (
  full: ReadonlyArray<Memory>,
  empty: ReadonlyArray<Memory>,
  key: keyof Memory,
  count: number
) => {
  const base = percentile(
    empty.map((it) => it[key]),
    50
  )
  return full.map((it) => (it[key] - base) / 1024 / count)
}

interface Sides<A> {
  readonly full: ReadonlyArray<A>
  readonly empty: ReadonlyArray<A>
}

interface Measured {
  readonly starts: Sides<Start>
  readonly memory: Sides<Memory>
  readonly list: ListLatencies
}

const startRows = ({ full, empty }: Sides<Start>, count: number): ReadonlyArray<Row> => {
  const row = (what: string, key: "wholeMs" | "adoptionMs"): Row => {
    const ours = spread(full.map((it) => it[key]))
    return {
      part: "adoption",
      what,
      unit: "ms",
      ours,
      baseline: { name: "a start with no instance", spread: spread(empty.map((it) => it.wholeMs)) },
      aim: `< ${adoptionAimMs} ms`,
      met: ours.median < adoptionAimMs
    }
  }
  return [
    row(`process start to server.started, ${count} instances`, "wholeMs"),
    row(`first record read to all ${count} adopted`, "adoptionMs")
  ]
}

const memoryRow = ({ full, empty }: Sides<Memory>, key: keyof Memory, count: number): Row => {
  const ours = spread(kibEach(full, empty, key, count))
  return {
    part: "memory",
    what: `${key} for each of ${count} idle instances`,
    unit: "KiB",
    ours,
    baseline: { name: "the service with no instance", spread: spread(empty.map((it) => it[key] / 1024)) },
    aim: `< ${instanceAimKib} KiB`,
    met: ours.median < instanceAimKib
  }
}

const listRows = (list: ListLatencies, count: number): ReadonlyArray<Row> => {
  const name = `node:http, the same ${Math.round(list.bytes / 1024)} KiB`
  const p99 = percentile(list.service, 99)
  const row = { part: "list", unit: "ms" as const }
  return [
    {
      ...row,
      what: `GET /instances with ${count} instances, p50`,
      ours: spread(list.service),
      baseline: { name, spread: spread(list.bare) },
      aim: "",
      met: null
    },
    {
      ...row,
      what: `GET /instances with ${count} instances, p99`,
      ours: spread([p99]),
      baseline: { name, spread: spread([percentile(list.bare, 99)]) },
      aim: `< ${listAimMs} ms`,
      met: p99 < listAimMs
    }
  ]
}

const rowsOf = ({ starts, memory, list }: Measured, count: number): ReadonlyArray<Row> => [
  ...startRows(starts, count),
  memoryRow(memory, "heapUsed", count),
  memoryRow(memory, "rss", count),
  ...listRows(list, count)
]

/** About 30 s to create the instances, 3 s for each restart, and the time of the list's requests. */
export const benchScale = (options: ScaleOptions = {}): Promise<ReadonlyArray<Row>> => {
  const all = { instances: 1_000, restarts: 5, listRequests: 200, listRounds: 3, listEveryMs: 20, ...options }
  const measured = Effect.gen(function* () {
    const empty = yield* startService({ env, namespace: yield* makeNamespace })
    const full = yield* startService({ env })
    yield* importImage(full, "bench")
    yield* createMany(full, all.instances)
    const starts: { readonly full: Array<Start>; readonly empty: Array<Start> } = { full: [], empty: [] }
    const memory: { readonly full: Array<Memory>; readonly empty: Array<Memory> } = { full: [], empty: [] }
    for (let round = 0; round < all.restarts; round++) {
      starts.empty.push(yield* startAgain(empty))
      const start = yield* startAgain(full)
      if (start.adopted !== all.instances)
        return yield* Effect.die(new Error(`${start.adopted} of ${all.instances} were adopted`))
      starts.full.push(start)
      memory.empty.push(yield* memoryOf(empty))
      memory.full.push(yield* memoryOf(full))
    }
    const list = yield* listLatencies(full, all)
    return rowsOf({ starts, memory, list }, all.instances)
  })
  return Effect.runPromise(Effect.scoped(measured))
}

if (import.meta.main) console.table(await benchScale())
