/**
 * What the layers below say about some names, read from their squashfs files with rdsquashfs: topmost layer first, one
 * listing (metadata only) per layer, kept no longer than it takes to compare it with the names asked for.
 */
import * as Effect from "effect/Effect"
import { createInterface } from "node:readline"
import type { Readable } from "node:stream"
import { run, spawnPiped } from "../host/Command.ts"
import { fromHost, type ImageFault } from "./ImageFault.ts"
import type { TarEntry } from "./tar/TarEntry.ts"

export interface LowerName {
  /** The squashfs of the topmost layer that has the name. */
  readonly squashfs: string
  readonly kind: "directory" | "file" | "other"
}

export interface LowerAnswer {
  /** Names that are there, as the topmost layer with them has them; whited-out names are not there. */
  readonly names: ReadonlyMap<string, LowerName>
  /** Names at the top of the merged layers. */
  readonly root: ReadonlySet<string>
}

const attributesTimeoutMs = 60_000
/** A path for rdsquashfs: an argument is text for node, so only names that are UTF-8 can be asked for. */
const argument = (path: string): string | null => {
  const text = Buffer.from(path, "latin1").toString("utf8")
  return Buffer.from(text, "utf8").toString("latin1") === path ? `/${text}` : null
}

/** `TYPE NAME MODE UID GID ...`; a name with a space or a quote is quoted. */
const listingLine = /^(\w+) (?:"((?:[^"\\]|\\[^])*)"|(\S+)) [0-7]+ \d+ \d+(.*)$/u

export const parseListingLine = (
  line: string
): { readonly path: string; readonly kind: LowerName["kind"] | "whiteout" } | null => {
  const match = listingLine.exec(line)
  if (match === null) return null
  const [, type, quoted, bare, rest] = match
  const path = quoted === undefined ? (bare ?? "") : quoted.replaceAll(/\\([^])/gu, "$1")
  if (type === "nod" && rest === " c 0 0") return { path, kind: "whiteout" }
  return { path, kind: type === "dir" ? "directory" : type === "file" ? "file" : "other" }
}

/** Goes through one layer's listing. */
const readListing = (squashfs: string, line: (text: string) => void): Effect.Effect<void, ImageFault> =>
  Effect.gen(function* () {
    const child = yield* spawnPiped("rdsquashfs", ["--describe", squashfs])
    const input: Readable = child.stdout.setEncoding("latin1")
    const lines = createInterface({ input, crlfDelay: Infinity })
    yield* Effect.tryPromise({
      try: async () => {
        for await (const text of lines) line(text)
        await child
      },
      catch: (cause) => fromHost("Reading a layer", cause)
    })
  }).pipe(Effect.scoped)

/** Looks names up in layers that are given topmost first. `root` also asks for the names at the top. */
export const lookUp = Effect.fnUntraced(function* (
  layers: ReadonlyArray<string>,
  ask: { readonly paths: ReadonlySet<string>; readonly root: boolean }
): Effect.fn.Return<LowerAnswer, ImageFault> {
  const names = new Map<string, LowerName>()
  const gone = new Set<string>()
  const root = new Set<string>()
  for (const squashfs of layers) {
    const here = new Map<string, LowerName["kind"] | "whiteout">()
    yield* readListing(squashfs, (text) => {
      const found = parseListingLine(text)
      if (found === null) return
      const isTop = ask.root && !found.path.includes("/")
      if (isTop || ask.paths.has(found.path)) here.set(found.path, found.kind)
    })
    for (const [path, kind] of here) {
      if (names.has(path) || gone.has(path)) continue
      if (kind === "whiteout") gone.add(path)
      else {
        names.set(path, { squashfs, kind })
        if (!path.includes("/")) root.add(path)
      }
    }
  }
  return { names, root }
})

type Attributes = Pick<TarEntry, "mode" | "uid" | "gid" | "mtime" | "size" | "xattrs">

const field = (stat: string, pattern: RegExp): number => Number(pattern.exec(stat)?.[1] ?? 0)

/** Values with unprintable bytes are shown in hexadecimal. */
const xattrValue = (value: string): string =>
  /^0x(?:[0-9A-F]{2})+$/u.test(value)
    ? Buffer.from(value.slice(2), "hex").toString("latin1")
    : Buffer.from(value).toString("latin1")

/** Mode, owner, time and extended attributes of a name; null where its bytes cannot be asked for. */
export const attributes = Effect.fnUntraced(function* (
  squashfs: string,
  path: string
): Effect.fn.Return<Attributes | null, ImageFault> {
  const name = argument(path)
  if (name === null) return null
  const ask = (flag: string) =>
    run("rdsquashfs", [flag, name, squashfs], { timeoutMs: attributesTimeoutMs }).pipe(
      Effect.mapError((cause) => fromHost("Reading a layer", cause))
    )
  const stat = yield* ask("--stat")
  const xattrs = yield* ask("--xattr")
  return {
    mode: Number.parseInt(/^Access: ([0-7]+)$/mu.exec(stat)?.[1] ?? "755", 8),
    uid: field(stat, /^UID: (\d+)/mu),
    gid: field(stat, /^GID: (\d+)/mu),
    mtime: field(stat, /^Last modified: .*\((\d+)\)$/mu),
    size: field(stat, /^File size: (\d+)$/mu),
    xattrs: xattrs.split("\n").flatMap((line): ReadonlyArray<readonly [string, string]> => {
      const equals = line.indexOf("=")
      const key = line.slice(0, Math.max(equals, 0))
      return key === "" || key.startsWith("trusted.overlay.")
        ? []
        : [[key, xattrValue(line.slice(equals + 1))]]
    })
  }
})

/** The bytes of a file. The name has passed `attributes`. */
export const content = (squashfs: string, path: string) =>
  Effect.map(
    spawnPiped("rdsquashfs", ["--cat", argument(path) ?? "/", squashfs]),
    (child): AsyncIterable<Buffer> => ({
      async *[Symbol.asyncIterator]() {
        for await (const chunk of child.stdout) {
          const bytes: Buffer = chunk
          yield bytes
        }
        await child
      }
    })
  )
