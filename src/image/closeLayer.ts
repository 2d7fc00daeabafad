/**
 * The end of a layer's stream: what had to wait for all its entries (LayerStream), and what depends on the layers below:
 * - a whiteout is written only where there is something to hide. In a directory that only this layer has, overlayfs
 *   would show it to readdir as a name that cannot be looked up;
 * - a directory that no entry names takes its attributes from the topmost layer that has it, as containerd does, since
 *   in an overlay the topmost directory's attributes win;
 * - a hard link to a file of a lower layer becomes a copy of that file;
 * - an opaque root becomes whiteouts of all names at the root: overlayfs does not heed the attribute there.
 */
import * as Effect from "effect/Effect"
import { corrupt, type ImageFault } from "./ImageFault.ts"
import type { LayerStream } from "./LayerStream.ts"
import type { LowerLink } from "./LayerTree.ts"
import * as LowerLayers from "./LowerLayers.ts"
import { shown, type TarEntry } from "./tar/TarEntry.ts"
import * as TarWriter from "./tar/TarWriter.ts"

/** Each costs two short runs of rdsquashfs. */
const attributesMax = 4096
const opaqueAttribute = ["trusted.overlay.opaque", "y"] as const

const blank: TarEntry = {
  name: "",
  type: "directory",
  mode: 0o755,
  uid: 0,
  gid: 0,
  mtime: 0,
  size: 0,
  linkname: "",
  major: 0,
  minor: 0,
  xattrs: [],
  sparse: null
}

/** The directories above a path, nearest last, without the root. */
const ancestors = (path: string): ReadonlyArray<string> => {
  const parts = path.split("/")
  return parts.slice(1).map((_, index) => parts.slice(0, index + 1).join("/"))
}

interface Open {
  /** Whiteouts that lower layers decide about. */
  readonly whiteouts: ReadonlyArray<string>
  readonly opaque: ReadonlySet<string>
  readonly ask: ReadonlySet<string>
  readonly root: boolean
}

/** What the layer says of the layers below, and what has to be asked about them. */
const openQuestions = ({ tree, whiteouts, opaque }: LayerStream): Open => {
  const opaqueAll = new Set(opaque)
  for (const path of whiteouts) if (tree.kindOf(path) === "directory") opaqueAll.add(path)
  const isHidden = (path: string) =>
    ancestors(path).some((it) => (it !== path && opaqueAll.has(it)) || tree.kindOf(it) === "other")
  const pending = [...whiteouts].filter((path) => tree.kindOf(path) === undefined && !isHidden(path))
  const ask = new Set<string>()
  const askWithParents = (path: string) => {
    ask.add(path)
    for (const it of ancestors(path)) if (tree.kindOf(it) === undefined) ask.add(it)
  }
  for (const path of pending) askWithParents(path)
  for (const path of opaqueAll)
    if (path !== "" && tree.kindOf(path) === undefined && !isHidden(path)) askWithParents(path)
  for (const { path, attributes } of tree.directories()) if (attributes === null && path !== "") ask.add(path)
  for (const link of tree.lowerLinks()) ask.add(link.target)
  return { whiteouts: pending, opaque: opaqueAll, ask, root: opaqueAll.has("") }
}

/** A file of a lower layer that goes into this one. */
export interface Copy {
  readonly squashfs: string
  readonly path: string
  readonly entry: TarEntry
}

export interface Closing {
  /** The layer says something about the layers below: its squashfs is right on these layers and on no others. */
  readonly contextual: boolean
  readonly copies: ReadonlyArray<Copy>
  /** What is left to write behind the copies, trailer included. */
  readonly rest: () => Generator<Buffer>
}

const copyOf = (link: LowerLink, answer: LowerLayers.LowerAnswer): Effect.Effect<Copy, ImageFault> =>
  Effect.gen(function* () {
    const found = answer.names.get(link.target)
    const attributes =
      found?.kind === "file" ? yield* LowerLayers.attributes(found.squashfs, link.target) : null
    if (found === undefined || attributes === null) {
      return yield* corrupt(
        `A layer is not sound: its hard link ${shown(link.path)} points to ${shown(link.target)}, which is a file of no layer.`
      )
    }
    const entry: TarEntry = { ...blank, ...attributes, type: "file", name: link.path }
    return { squashfs: found.squashfs, path: link.target, entry }
  })

/** Entries of all directories that have something of their own to say. */
const directoryEntries = Effect.fnUntraced(function* (
  stream: LayerStream,
  opaque: ReadonlySet<string>,
  answer: LowerLayers.LowerAnswer
): Effect.fn.Return<ReadonlyArray<TarEntry>, ImageFault> {
  const entries: Array<TarEntry> = []
  let looked = 0
  for (const { path, attributes } of stream.tree.directories()) {
    const marks = path !== "" && opaque.has(path) ? [opaqueAttribute] : []
    const name = path === "" ? "./" : `${path}/`
    if (attributes !== null) {
      entries.push({ ...attributes, name, xattrs: [...attributes.xattrs, ...marks] })
      continue
    }
    const below = answer.names.get(path)
    const inherited =
      below?.kind === "directory" && ++looked <= attributesMax
        ? yield* LowerLayers.attributes(below.squashfs, path)
        : null
    if (inherited === null && marks.length === 0) continue
    const xattrs = [...(inherited?.xattrs ?? []), ...marks]
    entries.push({ ...blank, ...inherited, name, size: 0, xattrs })
  }
  if (looked > attributesMax) {
    return yield* corrupt(`The layer leaves out the entries of more than ${attributesMax} directories.`)
  }
  return entries
})

/** Settles what is open by the layers below, given topmost first. */
export const closeLayer = Effect.fnUntraced(function* (
  stream: LayerStream,
  renames: ReadonlyMap<number, string | null>,
  lower: Effect.Effect<ReadonlyArray<string>, ImageFault>
): Effect.fn.Return<Closing, ImageFault> {
  const { tree } = stream
  const open = openQuestions(stream)
  const contextual = open.ask.size > 0 || open.root
  const answer = contextual
    ? yield* LowerLayers.lookUp(yield* lower, { paths: open.ask, root: open.root })
    : { names: new Map<string, LowerLayers.LowerName>(), root: new Set<string>() }
  const opaque = new Set(open.opaque)
  const whiteouts = new Set(open.whiteouts.filter((path) => answer.names.has(path)))
  for (const name of open.root ? answer.root : []) {
    const kind = tree.kindOf(name)
    if (kind === undefined) whiteouts.add(name)
    else if (kind === "directory") opaque.add(name)
  }
  for (const path of whiteouts) tree.makeParents(path)
  for (const path of open.opaque) {
    if (tree.kindOf(path) === undefined && answer.names.get(path)?.kind === "directory")
      tree.makeDirectory(path)
  }
  const copies = yield* Effect.forEach(tree.lowerLinks(), (link) => copyOf(link, answer))
  const directories = yield* directoryEntries(stream, opaque, answer)
  return {
    contextual,
    copies,
    rest: function* () {
      for (const entry of directories) yield TarWriter.header(entry)
      for (const name of whiteouts) yield TarWriter.header({ ...blank, name, type: "character", mode: 0 })
      for (const { path, target } of tree.links(renames)) {
        yield TarWriter.header({ ...blank, name: path, type: "link", linkname: target })
      }
      yield TarWriter.trailer
    }
  }
})
