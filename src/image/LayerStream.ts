/**
 * A layer's tar stream on its way to tar2sqfs. Files, symbolic links and devices go through as they come; directories,
 * hard links and whiteouts wait until all entries are seen, since an opaque marker may come before, after or without
 * its directory, and a later entry may replace an earlier one. Only their metadata is kept.
 *
 * Whiteouts (image-spec, layer.md) leave as overlayfs knows them: a character device 0:0 for a name, the attribute
 * trusted.overlay.opaque=y for a directory. `.wh..wh.*` other than the opaque marker is aufs' own and is left out.
 */
import { components, LayerTree } from "./LayerTree.ts"
import * as TarWriter from "./tar/TarWriter.ts"
import { shown, TarError, type TarEntry } from "./tar/TarEntry.ts"
import type { TarHandler } from "./tar/TarReader.ts"

const whiteoutPrefix = ".wh."
const metaPrefix = ".wh..wh."
const opaqueMarker = ".wh..wh..opq"

export interface LayerBounds {
  /** Bytes of all files of one layer together, holes of sparse files included. */
  readonly layerMaxBytes: number
  /** Names of one layer; each costs some 200 bytes while the layer is converted. */
  readonly layerMaxEntries: number
}

/** A bound was met; the archive may be sound. */
export class LayerTooLarge extends Error {
  override readonly name = "LayerTooLarge"
}

export class LayerStream implements TarHandler {
  readonly tree: LayerTree
  /** Paths that this layer hides in the layers below. */
  readonly whiteouts = new Set<string>()
  /** Directories whose content in the layers below is hidden; the root's path is empty. */
  readonly opaque = new Set<string>()
  readonly #bounds: LayerBounds
  readonly #renames: ReadonlyMap<number, string | null>
  #out: Array<Buffer> = []
  #bytes = 0
  #size = 0
  #passing = false

  /** `renames`: where the entries go that the first pass found displaced (LayerTree). */
  constructor(bounds: LayerBounds, renames: ReadonlyMap<number, string | null>) {
    this.#bounds = bounds
    this.#renames = renames
    this.tree = new LayerTree(bounds.layerMaxEntries)
  }

  /** What the pushed chunks came to since the last call. */
  take(): Buffer | null {
    const [first] = this.#out
    if (first === undefined) return null
    const all = this.#out.length === 1 ? first : Buffer.concat(this.#out)
    this.#out = []
    return all
  }

  entry(entry: TarEntry): void {
    this.#bytes += Math.max(entry.size, entry.sparse?.realSize ?? 0)
    if (this.#bytes > this.#bounds.layerMaxBytes) throw new LayerTooLarge("bytes")
    this.#passing = false
    if (entry.name.includes(whiteoutPrefix) && this.#whiteout(entry)) return
    const { inode, path } = this.tree.place(entry)
    if (entry.type === "directory" || entry.type === "link") return
    const renamed = this.#renames.get(inode)
    const name = renamed === undefined ? path : renamed
    if (name === null || name === "") return
    this.#passing = true
    this.#size = entry.size
    this.#out.push(TarWriter.header({ ...entry, name }))
  }

  data(bytes: Buffer): void {
    if (this.#passing) this.#out.push(bytes)
  }

  dataEnd(): void {
    if (this.#passing && this.#size > 0) this.#out.push(TarWriter.padding(this.#size))
  }

  /** True where the entry is a marker and not a file. */
  #whiteout(entry: TarEntry): boolean {
    const parts = components(entry.name)
    const base = parts.at(-1) ?? ""
    const parent = parts.slice(0, -1)
    if (base === opaqueMarker)
      this.#mark(this.opaque, parent.length === 0 ? "" : this.tree.locate(`${parent.join("/")}/`))
    else if (parts.some((it) => it.startsWith(metaPrefix))) return true
    else if (!base.startsWith(whiteoutPrefix)) return false
    else {
      const hidden = base.slice(whiteoutPrefix.length)
      if (hidden === "" || hidden === "." || hidden === "..") {
        throw new TarError(`the whiteout ${shown(entry.name)} in it hides no name`)
      }
      this.#mark(this.whiteouts, this.tree.locate([...parent, hidden].join("/")))
    }
    return true
  }

  #mark(set: Set<string>, path: string): void {
    set.add(path)
    if (set.size > this.#bounds.layerMaxEntries) throw new LayerTooLarge("entries")
  }
}
