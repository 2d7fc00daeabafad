/**
 * From POST /images to ready, by the real service against a real docker-registry, beside `skopeo copy`, `umoci unpack` and
 * `mkfs.erofs`, in turns: one large layer, two layers on ten that are here already, and many small files. Also what the
 * pull takes meanwhile: disk, beside what is left in the end; and the service's memory, beside that of a tiny image.
 */
import { execFileSync } from "node:child_process"
import * as fs from "node:fs/promises"
import * as path from "node:path"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import { execa } from "execa"
import { ImageId } from "../../src/domain/Ids.ts"
import { makeNamespace, type Namespace } from "../../test/support/Namespace.ts"
import { startNamespaceRegistry } from "../../test/support/netnsRegistry.ts"
import { type Service, startService } from "../../test/support/Service.ts"
import { temporaryDirectory } from "../../test/support/temporary.ts"
import { type Blob, noiseOf, programs, smallFiles, writeLayout } from "./image.ts"
import { type Row, spread } from "./table.ts"

export interface PullBenchOptions {
  readonly rounds?: number
  /** Bytes of the large layer, compressed. */
  readonly blobBytes?: number
  readonly smallFiles?: number
}

const wholeAim = 0.4
const sharedAim = 0.15
const diskAim = 1.3
/** Flat: what a large image takes beyond a tiny one is buffers of a fixed size. */
const memoryAimKib = 128 * 1024
const pollMs = 5
const pollsMax = 120_000
const sharedLayers = 10

/** An image in the registry, and one that has to be on the host before it is pulled. */
interface Subject {
  readonly what: string
  readonly name: string
  readonly base: string | null
  readonly aim: number
}

interface Ground {
  readonly namespace: Namespace
  readonly directory: string
  readonly domain: string
}

const push = (ground: Ground, name: string, layers: ReadonlyArray<Blob>) =>
  Effect.gen(function* () {
    const layout = path.join(ground.directory, `layout-${name}`)
    yield* Effect.promise(() => writeLayout(layers, layout))
    const target = `docker://${ground.domain}/bench/${name}:latest`
    yield* ground.namespace
      .run("skopeo", ["copy", "--insecure-policy", "--dest-tls-verify=false", `oci:${layout}:bench`, target])
      .pipe(Effect.orDie)
    yield* Effect.promise(() => fs.rm(layout, { recursive: true }))
  })

/** Bytes that a directory really takes. */
const allocated = (directory: string): number =>
  Number(
    execFileSync("du", ["--summarize", "--block-size=1", directory], { encoding: "utf8" }).split("\t")[0]
  )

interface Pulled {
  readonly ms: number
  /** Bytes above what was there before: the most at any moment, and in the end. */
  readonly peakBytes: number
  readonly finalBytes: number
}

/** POST until ready. */
const ours = Effect.fnUntraced(function* (service: Service, ground: Ground, name: string) {
  const id = ImageId.make(`bench-${name}`)
  const before = allocated(service.dataDir)
  let peak = before
  const startedAt = performance.now()
  const payload = { name: `${ground.domain}/bench/${name}:latest`, id }
  yield* service.client.images.create({ payload })
  let looks = 0
  const image = yield* service.client.images.get({ params: { id } }).pipe(
    Effect.tap(() =>
      Effect.sync(() => looks++ % 20 === 0 && (peak = Math.max(peak, allocated(service.dataDir))))
    ),
    Effect.repeat({
      schedule: Schedule.spaced(pollMs),
      until: (it) => it.status === "ready" || it.status === "failed",
      times: pollsMax
    })
  )
  const ms = performance.now() - startedAt
  if (image.status !== "ready") return yield* Effect.die(new Error(image.error ?? "not ready in time"))
  return { ms, peakBytes: peak - before, finalBytes: allocated(service.dataDir) - before } satisfies Pulled
})

const forget = (service: Service, name: string) =>
  service.client.images.remove({ params: { id: ImageId.make(`bench-${name}`) } })

/** Copied into a layout, unpacked on the host, and packed again. */
const theirs = (ground: Ground, { name, base }: Subject) =>
  Effect.promise(async () => {
    const work = await fs.mkdtemp(path.join(ground.directory, "theirs-"))
    const copy = (it: string) =>
      execa("ip", [
        "netns",
        "exec",
        ground.namespace.name,
        "skopeo",
        "copy",
        "--insecure-policy",
        "--src-tls-verify=false",
        `docker://${ground.domain}/bench/${it}:latest`,
        `oci:${work}/layout:${it}`
      ])
    if (base !== null) await copy(base)
    const startedAt = performance.now()
    await copy(name)
    await execa("umoci", ["unpack", "--image", `${work}/layout:${name}`, `${work}/bundle`])
    await execa("mkfs.erofs", ["-zlz4", `${work}/image.erofs`, `${work}/bundle/rootfs`])
    const ms = performance.now() - startedAt
    await fs.rm(work, { recursive: true })
    return ms
  })

const makeSubjects = Effect.fnUntraced(function* (ground: Ground, options: PullBenchOptions) {
  const { blobBytes = 230e6, smallFiles: count = 40_000 } = options
  const file = (name: string) => path.join(ground.directory, name)
  const large = yield* Effect.promise(() => programs(file("programs"), blobBytes))
  const small = yield* Effect.promise(() => smallFiles(file("small"), count))
  const layers = yield* Effect.forEach(Array.from({ length: sharedLayers + 2 }), (_, at) =>
    Effect.promise(() => smallFiles(file(`layer-${at}`), Math.ceil(count / 10), noiseOf(`${at}`)))
  )
  const tiny = yield* Effect.promise(() => smallFiles(file("tiny"), 10))
  yield* push(ground, "large", [large])
  yield* push(ground, "small", [small])
  yield* push(ground, "base", layers.slice(0, sharedLayers))
  yield* push(ground, "twelve", layers)
  yield* push(ground, "tiny", [tiny])
  const mb = (bytes: number) => `${Math.round(bytes / 1e6)} MB`
  return [
    { what: `one layer of ${mb(large.bytes)}`, name: "large", base: null, aim: wholeAim },
    { what: "12 layers, 10 of them here", name: "twelve", base: "base", aim: sharedAim },
    { what: `${count} small files, ${mb(small.bytes)}`, name: "small", base: null, aim: wholeAim }
  ] satisfies ReadonlyArray<Subject>
})

const baselineName = "skopeo copy + umoci unpack + mkfs.erofs -zlz4"
const kib = (bytes: number) => Math.round(bytes / 1024)

const compare = Effect.fnUntraced(function* (
  service: Service,
  ground: Ground,
  subject: Subject,
  rounds: number
) {
  const mine: Array<Pulled> = []
  const other: Array<number> = []
  if (subject.base !== null) yield* ours(service, ground, subject.base)
  for (let round = 0; round < rounds; round++) {
    mine.push(yield* ours(service, ground, subject.name))
    yield* forget(service, subject.name)
    other.push(yield* theirs(ground, subject))
  }
  if (subject.base !== null) yield* forget(service, subject.base)
  const [took, baseline] = [spread(mine.map((it) => it.ms)), spread(other)]
  const disk = spread(mine.map((it) => kib(it.peakBytes)))
  const left = spread(mine.map((it) => kib(it.finalBytes)))
  return [
    {
      part: "image",
      what: `POST to ready, ${subject.what}`,
      unit: "ms",
      ours: took,
      baseline: { name: baselineName, spread: baseline },
      aim: `<= ${subject.aim}x`,
      met: took.median <= subject.aim * baseline.median
    },
    {
      part: "image",
      what: `most disk meanwhile, ${subject.what}`,
      unit: "KiB",
      ours: disk,
      baseline: { name: "what the image takes once it is ready", spread: left },
      aim: `<= ${diskAim}x`,
      met: disk.median <= diskAim * left.median
    }
  ] satisfies ReadonlyArray<Row>
})

/** The most memory that a new service ever had, after one pull. */
const memoryPeak = (ground: Ground, name: string) =>
  Effect.gen(function* () {
    const service = yield* startService({ namespace: ground.namespace, env })
    yield* ours(service, ground, name)
    const status = yield* Effect.promise(() => fs.readFile(`/proc/${service.pid()}/status`, "utf8"))
    yield* forget(service, name)
    return Number(/^VmHWM:\s+(\d+) kB$/mu.exec(status)?.[1] ?? Number.NaN)
  }).pipe(Effect.scoped)

const env = { VMM: "simulated", SIMULATED_LATENCY: "none", IMAGE_SOURCE: "registry" }

/** Runs the comparison in a network namespace and a temporary directory of its own and gives its rows. */
export const benchPull = (options: PullBenchOptions = {}): Promise<ReadonlyArray<Row>> =>
  Effect.runPromise(
    Effect.gen(function* () {
      const directory = yield* temporaryDirectory("bench")
      const namespace = yield* makeNamespace
      const { domain } = yield* startNamespaceRegistry(namespace)
      const ground: Ground = { namespace, directory, domain }
      const subjects = yield* makeSubjects(ground, options)
      const rows: Array<Row> = []
      const [tiny, large] = [yield* memoryPeak(ground, "tiny"), yield* memoryPeak(ground, "large")]
      const service = yield* startService({ namespace, env })
      for (const subject of subjects)
        rows.push(...(yield* compare(service, ground, subject, options.rounds ?? 3)))
      rows.push({
        part: "image",
        what: "the service's most memory, one large layer",
        unit: "KiB",
        ours: spread([large]),
        baseline: { name: "the same for an image of 10 files", spread: spread([tiny]) },
        aim: `<= baseline + ${memoryAimKib} KiB`,
        met: large <= tiny + memoryAimKib
      })
      return rows
    }).pipe(Effect.scoped)
  )
