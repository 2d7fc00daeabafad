/**
 * Where the simulated world keeps what must survive the service: its processes and TAPs, one JSON text per key. The
 * directory form survives SIGKILL of the service (rename is atomic, the page cache is the kernel's); it need not survive
 * the machine, since its processes do not either, so nothing is synced.
 */
import * as fs from "node:fs"
import * as path from "node:path"

export interface Storage {
  readonly load: () => ReadonlyMap<string, string>
  /** `text` is asked for only where it is kept. */
  readonly put: (key: string, text: () => string) => void
  readonly remove: (key: string) => void
}

const suffix = ".json"

/** One file per key under `directory`, which is made. Keys are file names. */
export const directoryStorage = (directory: string): Storage => {
  const fileOf = (key: string) => path.join(directory, `${key}${suffix}`)
  return {
    load: () => {
      fs.mkdirSync(directory, { recursive: true, mode: 0o700 })
      const found = new Map<string, string>()
      for (const name of fs.readdirSync(directory).toSorted()) {
        const file = path.join(directory, name)
        if (name.endsWith(suffix)) found.set(name.slice(0, -suffix.length), fs.readFileSync(file, "utf8"))
        else fs.rmSync(file, { force: true })
      }
      return found
    },
    put: (key, text) => {
      const target = fileOf(key)
      fs.writeFileSync(`${target}.tmp`, text(), { mode: 0o600 })
      fs.renameSync(`${target}.tmp`, target)
    },
    remove: (key) => fs.rmSync(fileOf(key), { force: true })
  }
}

/** Keeps nothing: for worlds that outlive the service as values. */
export const noStorage: Storage = { load: () => new Map(), put: () => undefined, remove: () => undefined }

/** Keeps texts in a map, so that a test can load a second world from what a killed one left. */
export const mapStorage = (texts: Map<string, string> = new Map()): Storage => ({
  load: () => new Map(texts),
  put: (key, text) => void texts.set(key, text()),
  remove: (key) => void texts.delete(key)
})
