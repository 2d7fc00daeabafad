/**
 * Reads a tar archive that may be hostile, as a push parser: chunks of any size go in, entries and their bytes come out
 * through the handler, nothing is kept but the header at hand. It accepts what Go's archive/tar accepts, since that is
 * what builds and unpacks images elsewhere: v7, ustar, pax and GNU archives, with or without the closing zero blocks;
 * global pax headers are passed over. Sparse files of all four kinds come out with one kind of map.
 *
 *   header ──► long (name or pax body) ──► header
 *      ├─────► extents (old GNU sparse) ──┐
 *      ├─────► map (GNU.sparse 1.0) ──────┼──► data ──► header
 *      └─────► ended (zero block)
 */
import { blockBytes, paddingOf, TarError, type SparseMap, type TarEntry } from "./TarEntry.ts"
import { decodeHeader, extentsOf, type Header, isExtended, type PaxRecords, readPax } from "./tarHeader.ts"
import { mapLines, paxEntry, parseDataMap } from "./pax.ts"

/** archive/tar: maxSpecialFileSize. */
const longHeaderMaxBytes = 1024 * 1024
const sparseExtentsMax = 65_536
const newline = 0x0a

export interface TarHandler {
  readonly entry: (entry: TarEntry) => void
  /** A part of the last entry's bytes, a view of the chunk that was pushed. */
  readonly data: (bytes: Buffer) => void
  /** The last entry's bytes are complete. Called for files only. */
  readonly dataEnd: () => void
}

type State =
  | { readonly _tag: "Header" }
  | { readonly _tag: "Long"; readonly flag: string; readonly size: number }
  | { readonly _tag: "Extents"; readonly header: Header; readonly extents: ReadonlyArray<number> }
  | { readonly _tag: "Map"; readonly entry: TarEntry; readonly blocks: Array<Buffer>; lines: number }
  | { readonly _tag: "Data" }
  | { readonly _tag: "Ended" }

const atHeader: State = { _tag: "Header" }

export class TarReader {
  readonly #handler: TarHandler
  #state: State = atHeader
  /** Bytes that wait for a whole block or body. */
  #rest: Buffer = Buffer.alloc(0)
  #pax: PaxRecords | null = null
  #longName: string | null = null
  #longLink: string | null = null
  /** Bytes of the archive in front of the step at hand. */
  #position = 0
  #remaining = 0
  #padding = 0
  #skip = 0
  #zeroBlocks = 0

  constructor(handler: TarHandler) {
    this.#handler = handler
  }

  /** Where in the archive the bytes of an entry begin; for use inside of `entry` only. */
  get dataOffset(): number {
    return this.#position + blockBytes
  }

  /** Throws TarError, and whatever the handler throws. */
  push(chunk: Buffer): void {
    let bytes = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk])
    this.#rest = bytes.subarray(0, 0)
    while (bytes.length > 0) {
      const used = this.#step(bytes)
      if (used === 0) {
        this.#rest = bytes
        return
      }
      this.#position += used
      bytes = bytes.subarray(used)
    }
  }

  /** The archive has no more bytes. Throws where it ends in the middle of something. */
  end(): void {
    const clean = this.#state._tag === "Header" && this.#rest.length === 0 && this.#skip === 0
    const pending = this.#pax !== null || this.#longName !== null || this.#longLink !== null
    if (this.#state._tag !== "Ended" && (!clean || pending))
      throw new TarError("it ends in the middle of an entry")
  }

  /** Takes what it can from the front of `bytes` and says how much; 0 asks for more. */
  #step(bytes: Buffer): number {
    if (this.#skip > 0) {
      const skipped = Math.min(this.#skip, bytes.length)
      this.#skip -= skipped
      return skipped
    }
    const state = this.#state
    switch (state._tag) {
      case "Ended":
        return bytes.length
      case "Data":
        return this.#data(bytes)
      case "Long":
        return this.#long(state.flag, state.size, bytes)
      case "Header":
        return bytes.length < blockBytes ? 0 : this.#header(bytes.subarray(0, blockBytes))
      case "Extents":
        return bytes.length < blockBytes ? 0 : this.#extents(state, bytes.subarray(0, blockBytes))
      default:
        return bytes.length < blockBytes ? 0 : this.#map(state, bytes.subarray(0, blockBytes))
    }
  }

  #data(bytes: Buffer): number {
    const taken = Math.min(this.#remaining, bytes.length)
    this.#remaining -= taken
    if (taken > 0) this.#handler.data(taken === bytes.length ? bytes : bytes.subarray(0, taken))
    if (this.#remaining === 0) {
      this.#state = atHeader
      this.#skip = this.#padding
      this.#handler.dataEnd()
    }
    return taken
  }

  #long(flag: string, size: number, bytes: Buffer): number {
    if (bytes.length < size) return 0
    const body = bytes.subarray(0, size)
    if (flag === "x") this.#pax = readPax(body)
    else {
      const end = body.indexOf(0)
      const text = body.toString("latin1", 0, end === -1 ? size : end)
      if (flag === "L") this.#longName = text
      else this.#longLink = text
    }
    this.#state = atHeader
    this.#skip = paddingOf(size)
    return size
  }

  #header(block: Buffer): number {
    const header = decodeHeader(block)
    if (header === null) {
      this.#zeroBlocks += 1
      if (this.#zeroBlocks === 2) this.#state = { _tag: "Ended" }
      return blockBytes
    }
    if (this.#zeroBlocks > 0) throw new TarError("a single zero block is in the middle of it")
    switch (header.flag) {
      case "x":
      case "L":
      case "K":
        if (header.size > longHeaderMaxBytes) throw new TarError("a header in it has more than 1 MiB")
        this.#state = { _tag: "Long", flag: header.flag, size: header.size }
        if (header.size === 0) this.#state = atHeader
        return blockBytes
      case "g":
        this.#skip = header.size + paddingOf(header.size)
        return blockBytes
      case "S":
        this.#oldSparse(header, extentsOf(block, 386, 4), isExtended(block, 482))
        return blockBytes
      default:
        this.#entry(header, null)
        return blockBytes
    }
  }

  #oldSparse(header: Header, extents: ReadonlyArray<number>, more: boolean): void {
    if (extents.length > 2 * sparseExtentsMax) throw new TarError("a sparse file in it has too many parts")
    if (more) this.#state = { _tag: "Extents", header, extents }
    else this.#entry(header, { realSize: header.realSize, extents })
  }

  #extents(state: Extract<State, { _tag: "Extents" }>, block: Buffer): number {
    this.#oldSparse(state.header, [...state.extents, ...extentsOf(block, 0, 21)], isExtended(block, 504))
    return blockBytes
  }

  #entry(header: Header, oldSparse: SparseMap | null): void {
    const { entry, mapInData } = paxEntry(header, this.#pax, this.#longName, this.#longLink, oldSparse)
    this.#pax = null
    this.#longName = null
    this.#longLink = null
    if (mapInData) this.#state = { _tag: "Map", entry, blocks: [], lines: 0 }
    else this.#begin(entry, entry.size)
  }

  /** GNU.sparse 1.0 keeps its map in front of the data, padded to whole blocks. */
  #map(state: Extract<State, { _tag: "Map" }>, block: Buffer): number {
    state.blocks.push(Buffer.from(block))
    for (const byte of block) if (byte === newline) state.lines += 1
    const taken = state.blocks.length * blockBytes
    if (taken > state.entry.size || taken > longHeaderMaxBytes) {
      throw new TarError("a sparse file in it has a map without end")
    }
    const first = state.blocks[0]?.toString("latin1") ?? ""
    if (state.lines === 0 || state.lines < mapLines(first)) return blockBytes
    const extents = parseDataMap(Buffer.concat(state.blocks).toString("latin1"))
    const size = state.entry.size - taken
    this.#begin(
      { ...state.entry, size, sparse: { realSize: state.entry.sparse?.realSize ?? 0, extents } },
      size
    )
    return blockBytes
  }

  #begin(entry: TarEntry, size: number): void {
    const { sparse } = entry
    if (sparse !== null) checkSparse(sparse, size)
    this.#handler.entry(entry)
    this.#remaining = size
    this.#padding = paddingOf(size)
    if (size > 0) {
      this.#state = { _tag: "Data" }
      return
    }
    this.#state = atHeader
    if (entry.type === "file") this.#handler.dataEnd()
  }
}

/** Parts in order, inside the file, and as long together as the bytes that follow. */
const checkSparse = (sparse: SparseMap, size: number): void => {
  let end = 0
  let stored = 0
  for (let at = 0; at + 1 < sparse.extents.length; at += 2) {
    const offset = sparse.extents[at] ?? 0
    const length = sparse.extents[at + 1] ?? 0
    if (offset < end || offset + length > sparse.realSize)
      throw new TarError("a sparse file in it has a wrong map")
    end = offset + length
    stored += length
  }
  if (stored !== size || sparse.extents.length > 2 * sparseExtentsMax) {
    throw new TarError("a sparse file in it has a wrong map")
  }
}
