/**
 * A data directory with the Images service on it, for tests; and what a guest would see of an image: its layers mounted
 * in a private mount namespace and read back, entry by entry.
 */
import { createHash } from "node:crypto"
import { assert } from "@effect/vitest"
import { execa } from "execa"
import * as fs from "node:fs/promises"
import * as path from "node:path"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import type { ImageId } from "../../src/domain/Ids.ts"
import type { Image } from "../../src/domain/Image.ts"
import { Files } from "../../src/host/Files.ts"
import { layout, Paths } from "../../src/host/Paths.ts"
import { Images } from "../../src/image/Images.ts"
import { defaultImageBounds, type ImageBounds, makeImagesLayer } from "../../src/image/ImagesLayer.ts"
import type { SourceSettings } from "../../src/image/sources/Sources.ts"
import { TarReader } from "../../src/image/tar/TarReader.ts"
import type { TarEntry } from "../../src/image/tar/TarEntry.ts"
import { image, layer, type TestConfig, type TestImage } from "./layers.ts"
import { type Registry, startRegistry } from "./registry.ts"
import { temporaryDirectory } from "./temporary.ts"

/** What a host without containerd has. */
export const registryOnly: SourceSettings = { imageSource: "registry", containerdSocket: "/nowhere" }

/** The service on a data directory. Each call is a service of its own: a restart is two of them, one after the other. */
export const imagesOn = (
  dataDir: string,
  bounds: Partial<ImageBounds> = {},
  files: Layer.Layer<Files> = Files.layer,
  source: SourceSettings = registryOnly
) =>
  makeImagesLayer({ ...defaultImageBounds, ...bounds }, source).pipe(
    Layer.provide(Layer.succeed(Paths, layout(dataDir, path.join(dataDir, "run")))),
    Layer.provide(files)
  )

export class Remote extends Context.Service<Remote, Registry>()("test/Registry") {
  static readonly layer = Layer.effect(Remote, startRegistry())
}

const directory = (name: string) => ({ name, type: "directory" as const, mode: 0o755 })

/** Two layers: a bottom one that all such images share, and one of its own. */
export const smallImage = (name: string, config: TestConfig = {}): Effect.Effect<TestImage> =>
  Effect.promise(async () =>
    image(
      [
        await layer([directory("bin/"), { name: "bin/base", body: "base" }]),
        await layer([directory("app/"), { name: `app/${name}`, body: name.repeat(1000) }])
      ],
      {
        config: {
          Entrypoint: ["/bin/base"],
          Cmd: ["x"],
          Env: ["A=1", "B=x=y"],
          WorkingDir: "/app",
          User: "7:8",
          ...config
        }
      }
    )
  )

/** Runs with a service of its own, on a data directory of its own. */
export const onFreshHost = <A, E, R>(
  body: (dataDir: string) => Effect.Effect<A, E, R>,
  bounds: Partial<ImageBounds> = {}
) =>
  Effect.gen(function* () {
    const dataDir = yield* temporaryDirectory("images")
    return yield* body(dataDir).pipe(Effect.provide(imagesOn(dataDir, bounds)))
  }).pipe(Effect.scoped)

/** State changes of an image are not events yet, so a test looks again; it gives up in a minute. */
const lookIntervalMs = 20
const looks = 3000

export const until = (id: ImageId, isDone: (image: Image) => boolean) =>
  Effect.flatMap(Images, (images) =>
    images.get(id).pipe(
      Effect.filterOrFail(isDone, (image) => new Error(`${image.status}: ${image.error ?? ""}`)),
      Effect.retry({ schedule: Schedule.spaced(lookIntervalMs), times: looks }),
      Effect.orDie
    )
  )

export const settled = (id: ImageId) => until(id, (it) => it.status === "ready" || it.status === "failed")

/** Every file below a directory, for "nothing is left". */
export const filesBelow = (directory: string): Effect.Effect<ReadonlyArray<string>> =>
  Effect.promise(async () => {
    const entries = await fs.readdir(directory, { recursive: true, withFileTypes: true })
    return entries
      .filter((it) => it.isFile())
      .map((it) => path.relative(directory, path.join(it.parentPath, it.name)))
      .toSorted()
  })

/** Nothing but the service's empty directories. */
export const assertNothingLeft = (dataDir: string) =>
  Effect.map(filesBelow(dataDir), (files) => assert.deepStrictEqual(files, []))

export interface Seen {
  readonly [name: string]: string
}

const describe = (entry: TarEntry, hash: string): string =>
  [
    entry.type,
    entry.mode.toString(8),
    `${entry.uid}:${entry.gid}`,
    entry.type === "directory" ? "" : `${entry.mtime}`,
    entry.linkname,
    entry.type === "character" || entry.type === "block" ? `${entry.major},${entry.minor}` : "",
    hash,
    entry.xattrs
      .map(([name, value]) => `${name}=${Buffer.from(value, "latin1").toString("hex")}`)
      .toSorted()
      .join(" ")
  ].join(" ")

/** What GNU tar sees in a directory tree: type, mode, owner, time, link, device, content, extended attributes. */
const collector = () => {
  const files = new Map<string, { readonly entry: TarEntry; readonly hash: string }>()
  let current: TarEntry | undefined
  let hash = createHash("sha256")
  const reader = new TarReader({
    entry: (entry) => {
      current = entry
      hash = createHash("sha256")
      files.set(entry.name, { entry, hash: "" })
    },
    data: (bytes) => hash.update(bytes),
    dataEnd: () => {
      if (current !== undefined)
        files.set(current.name, { entry: current, hash: hash.digest("hex").slice(0, 16) })
    }
  })
  return { reader, files }
}

/** Runs `sh -c script`, whose standard output is a tar, and reads that. */
const readTree = (script: string, args: ReadonlyArray<string>): Effect.Effect<Seen> =>
  Effect.promise(async () => {
    const { stdout } = await execa("unshare", ["-m", "sh", "-ec", script, "sh", ...args], {
      encoding: "buffer",
      maxBuffer: 2 ** 28
    })
    const { reader, files } = collector()
    reader.push(Buffer.from(stdout))
    reader.end()
    const seen: Record<string, string> = {}
    for (const [name, { entry, hash }] of files) {
      // Which of two hard links is the first is tar's choice; both show the same file.
      const target = entry.type === "link" ? files.get(entry.linkname) : undefined
      seen[name] = target === undefined ? describe(entry, hash) : describe(target.entry, target.hash)
    }
    return seen
  })

const tarOut = `tar --create --format=pax --numeric-owner --xattrs --xattrs-include='*' --sort=name --file=- .`

export const readDirectory = (directory: string) => readTree(`cd "$1"; ${tarOut}`, [directory])

/** Layers bottom first, mounted as a guest mounts them, read-only. */
export const readLayers = (layers: ReadonlyArray<string>) =>
  readTree(
    `mount -t tmpfs none /mnt; lower=; n=0
     for layer in "$@"; do
       mkdir /mnt/$n; mount -o loop,ro "$layer" /mnt/$n; lower="/mnt/$n\${lower:+:$lower}"; n=$((n+1))
     done
     mkdir /mnt/merged /mnt/empty
     mount -t overlay overlay -o "lowerdir=$lower:/mnt/empty" /mnt/merged; cd /mnt/merged; ${tarOut}`,
    layers
  )

/** Why layers cannot be mounted here, if they cannot. */
export const mountsUnavailable: Effect.Effect<string | null> = Effect.promise(async () => {
  const filesystems = await fs.readFile("/proc/filesystems", "utf8")
  if (!/\bsquashfs\b/u.test(filesystems) || !/\boverlay\b/u.test(filesystems)) {
    return "this kernel has no squashfs or no overlay"
  }
  const { failed } = await execa("unshare", ["-m", "losetup", "-f"], { reject: false })
  return failed ? "this machine has no mount namespaces or no loop devices" : null
})
