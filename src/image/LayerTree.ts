/**
 * What is left of a layer's entries when they are applied in order, kept without their bytes: names, kinds, and which
 * entry's bytes each name shows. Pure; the same entries always give the same tree. The rules are containerd's
 * (archive/tar.go): a later entry replaces an earlier one, and whatever was below it, unless both are directories; a
 * symbolic link of this layer that stands in the middle of a later name is followed, inside the layer's root;
 * directories that no entry names exist all the same (`implicit`), and take their attributes from the layers below.
 *
 * A name shows the bytes of one numbered entry (an inode). Bytes are streamed on as soon as they are read, under the
 * name that they came with. Where a later entry takes that name away, the entry is `displaced`: its bytes belong to
 * another name, or to none, and the layer has to be streamed again by the corrected plan (`renames`).
 */
import { shown, TarError, type TarEntry } from "./tar/TarEntry.ts"

/** archive/fs: containerd's RootPath and Linux both give up behind this many links. */
const linksMax = 255
/** Components looked at while links are followed, for all names of a layer together. */
const followedMax = 20_000_000
/** Each costs a look into a lower layer. */
const lowerLinksMax = 4096
/** linux/limits.h. */
const componentMaxBytes = 255
const pathMaxBytes = 4096

interface Node {
  readonly kind: "directory" | "symlink" | "other"
  /** The entry whose bytes or target the name shows; -1 for directories. */
  readonly inode: number
  /** A hard link: the bytes came under another name. */
  readonly isLink: boolean
  readonly target: string
  readonly children: Map<string, Node>
  /** A directory's own entry; null while it is implicit. */
  attributes: TarEntry | null
}

const noChildren: Map<string, Node> = new Map()

const directory = (attributes: TarEntry | null): Node => ({
  kind: "directory",
  inode: -1,
  isLink: false,
  target: "",
  children: new Map(),
  attributes
})

/** A hard link whose target is in no entry of this layer before it. */
export interface LowerLink {
  readonly inode: number
  readonly path: string
  readonly target: string
}

/** Components of a name as Go's filepath.Clean and containerd see them. Throws where `..` leads out of the layer. */
export const components = (name: string): ReadonlyArray<string> => {
  if (name.length > pathMaxBytes) throw new TarError(`the name ${shown(name)} in it is too long`)
  const kept: Array<string> = []
  for (const part of name.split("/")) {
    if (part === "" || part === ".") continue
    if (part === "..") {
      if (kept.length === 0 && !name.startsWith("/")) {
        throw new TarError(`the name ${shown(name)} in it leads out of the image`)
      }
      kept.pop()
      continue
    }
    if (part.length > componentMaxBytes) throw new TarError(`the name ${shown(name)} in it is too long`)
    kept.push(part)
  }
  return kept
}

export class LayerTree {
  readonly #root = directory(null)
  readonly #nodesMax: number
  #nodes = 0
  #entries = 0
  #followed = 0
  readonly #links: Array<{ readonly path: string; readonly inode: number }> = []
  readonly #lowerLinks: Array<LowerLink> = []
  /** Of entries that hard links point to: the name that their bytes came under. */
  readonly #cameAs = new Map<number, string>()
  readonly #displaced = new Set<number>()

  /** Refuses more than `nodesMax` names and entries. */
  constructor(nodesMax: number) {
    this.#nodesMax = nodesMax
  }

  get entries(): number {
    return this.#entries
  }

  /** The path of a name with the layer's own links in its parents followed. Creates nothing. */
  locate(name: string): string {
    const parts = components(name)
    return [...this.#follow(parts.slice(0, -1)), ...parts.slice(-1)].join("/")
  }

  /** Applies an entry; gives its number and resolved path. The root's path is empty. */
  place(entry: TarEntry): { readonly inode: number; readonly path: string } {
    const inode = this.#entries++
    this.#count()
    const parts = components(entry.name)
    const base = parts.at(-1)
    if (base === undefined) {
      if (entry.type === "directory") this.#root.attributes = entry
      return { inode, path: "" }
    }
    const parents = this.#follow(parts.slice(0, -1))
    const path = parents.length === 0 ? base : `${parents.join("/")}/${base}`
    const parent = this.#enter(parents, path)
    if (entry.type === "directory") this.#placeDirectory(parent, base, entry)
    else if (entry.type === "link") this.#placeLink(parent, base, { inode, path }, entry)
    else {
      this.#replace(parent, base, {
        kind: entry.type === "symlink" ? "symlink" : "other",
        inode,
        isLink: false,
        target: entry.linkname,
        children: noChildren,
        attributes: null
      })
    }
    return { inode, path }
  }

  #placeDirectory(parent: Node, base: string, entry: TarEntry): void {
    const before = parent.children.get(base)
    if (before?.kind === "directory") before.attributes = entry
    else this.#replace(parent, base, directory(entry))
  }

  #placeLink(
    parent: Node,
    base: string,
    at: { readonly inode: number; readonly path: string },
    entry: TarEntry
  ) {
    const parts = components(entry.linkname)
    const target = [...this.#follow(parts.slice(0, -1)), ...parts.slice(-1)]
    const targetPath = target.join("/")
    const found = this.#find(target)
    if (found?.kind === "directory" || targetPath === "") {
      throw new TarError(`the hard link ${shown(entry.name)} in it points to a directory`)
    }
    if (found === undefined) {
      this.#lowerLinks.push({ ...at, target: targetPath })
      if (this.#lowerLinks.length > lowerLinksMax) {
        throw new TarError(`it has more than ${lowerLinksMax} hard links into other layers`)
      }
    } else {
      if (targetPath === at.path) return
      if (!found.isLink) this.#cameAs.set(found.inode, targetPath)
      this.#links.push({ path: at.path, inode: found.inode })
    }
    this.#replace(parent, base, {
      kind: found?.kind ?? "other",
      inode: found?.inode ?? at.inode,
      isLink: true,
      target: found?.target ?? "",
      children: noChildren,
      attributes: null
    })
  }

  #replace(parent: Node, base: string, node: Node): void {
    const before = parent.children.get(base)
    if (before !== undefined) this.#displace(before)
    parent.children.set(base, node)
  }

  #displace(node: Node): void {
    if (node.kind !== "directory") {
      if (!node.isLink) this.#displaced.add(node.inode)
      return
    }
    const pending = [node]
    for (let next = pending.pop(); next !== undefined; next = pending.pop()) {
      for (const child of next.children.values()) {
        if (child.kind === "directory") pending.push(child)
        else if (!child.isLink) this.#displaced.add(child.inode)
      }
    }
  }

  #count(): void {
    this.#nodes += 1
    if (this.#nodes > this.#nodesMax) throw new TarError(`it has more than ${this.#nodesMax} entries`)
  }

  /** Resolves directories by the links of this layer; `..` of a link stops at the root, as in a chroot. */
  #follow(parts: ReadonlyArray<string>): ReadonlyArray<string> {
    if (this.#find(parts)?.kind === "directory") return parts
    const tooFar = () => new TarError(`the name ${shown(parts.join("/"))} in it goes through too many links`)
    const pending = parts.toReversed()
    const resolved: Array<string> = []
    const nodes: Array<Node | undefined> = [this.#root]
    let links = 0
    for (let part = pending.pop(); part !== undefined; part = pending.pop()) {
      this.#followed += 1
      if (resolved.length > pathMaxBytes || this.#followed > followedMax) throw tooFar()
      if (part === "" || part === ".") continue
      if (part === "..") {
        if (resolved.pop() !== undefined) nodes.pop()
        continue
      }
      const node = nodes.at(-1)?.children.get(part)
      if (node?.kind !== "symlink") {
        resolved.push(part)
        nodes.push(node)
        continue
      }
      links += 1
      if (links > linksMax || pending.length > pathMaxBytes) throw tooFar()
      if (node.target.startsWith("/")) {
        resolved.length = 0
        nodes.length = 1
      }
      pending.push(...node.target.split("/").toReversed())
    }
    return resolved
  }

  #find(parts: ReadonlyArray<string>): Node | undefined {
    let node: Node | undefined = this.#root
    for (const part of parts) {
      node = node.children.get(part)
      if (node === undefined) return undefined
    }
    return node
  }

  /** The directory of that path, made implicitly where it is missing. */
  #enter(parts: ReadonlyArray<string>, forName: string): Node {
    let node = this.#root
    for (const part of parts) {
      let next = node.children.get(part)
      if (next === undefined) {
        this.#count()
        next = directory(null)
        node.children.set(part, next)
      } else if (next.kind !== "directory") {
        throw new TarError(`${shown(forName)} in it is below something that is not a directory`)
      }
      node = next
    }
    return node
  }

  // ── What is left at the end ──────────────────────────────────────────────────────────────────────────────────────

  /** What a path shows: its kind, or undefined where this layer says nothing about it. */
  kindOf(path: string): "directory" | "other" | undefined {
    const node = this.#find(path === "" ? [] : path.split("/"))
    return node === undefined ? undefined : node.kind === "directory" ? "directory" : "other"
  }

  /** Makes the directories of a path that a whiteout needs. */
  makeParents(path: string): void {
    this.#enter(path.split("/").slice(0, -1), path)
  }

  makeDirectory(path: string): void {
    this.#enter(path.split("/"), path)
  }

  /** Every directory, parents first, with the attributes of its entry, or null where it is implicit. */
  *directories(): Generator<{ readonly path: string; readonly attributes: TarEntry | null }> {
    const pending: Array<{ readonly path: string; readonly node: Node }> = [{ path: "", node: this.#root }]
    for (let next = pending.pop(); next !== undefined; next = pending.pop()) {
      yield { path: next.path, attributes: next.node.attributes }
      for (const [name, node] of next.node.children) {
        if (node.kind === "directory")
          pending.push({ path: next.path === "" ? name : `${next.path}/${name}`, node })
      }
    }
  }

  /** Names at the top of the layer. */
  rootNames(): ReadonlyArray<string> {
    return [...this.#root.children.keys()]
  }

  #stillShows(path: string, inode: number): boolean {
    const node = this.#find(path.split("/"))
    return node !== undefined && node.kind !== "directory" && node.inode === inode
  }

  /** Links into lower layers that later entries left in place, each under the first name that still shows it. */
  lowerLinks(): ReadonlyArray<LowerLink> {
    if (this.#lowerLinks.length === 0) return []
    const links = Map.groupBy(this.#links, (it) => it.inode)
    return this.#lowerLinks.flatMap((it) => {
      const name = [it, ...(links.get(it.inode) ?? [])].find((name) => this.#stillShows(name.path, it.inode))
      return name === undefined ? [] : [{ inode: it.inode, path: name.path, target: it.target }]
    })
  }

  /**
   * Where displaced entries have to go in the second pass: to the first hard link that still shows them, or nowhere.
   * Empty where the first pass was right.
   */
  renames(): ReadonlyMap<number, string | null> {
    const renames = new Map<number, string | null>()
    for (const inode of this.#displaced) renames.set(inode, null)
    if (renames.size > 0) {
      for (const { path, inode } of this.#links) {
        if (renames.get(inode) === null && this.#stillShows(path, inode)) renames.set(inode, path)
      }
    }
    return renames
  }

  /** Hard links to write, each with the name that its bytes went to. */
  *links(
    renames: ReadonlyMap<number, string | null>
  ): Generator<{ readonly path: string; readonly target: string }> {
    const lower = new Map(this.lowerLinks().map((it) => [it.inode, it.path]))
    const written = new Set<string>()
    for (const { path, inode } of this.#links) {
      if (written.has(path) || !this.#stillShows(path, inode)) continue
      const target = renames.get(inode) ?? this.#cameAs.get(inode) ?? lower.get(inode)
      written.add(path)
      if (target !== undefined && target !== path) yield { path, target }
    }
  }
}
