/**
 * A small image from the machine's own static busybox: its applets, and a web server that serves one page. What the
 * quickstart boots and what the live tests build theirs from; no registry is needed.
 *
 *   node scripts/demoImage.ts OUT.tar [oci|docker]
 */
import { execFileSync } from "node:child_process"
import { existsSync, readFileSync, writeFileSync } from "node:fs"
import * as path from "node:path"
import { type ArchiveSource, type LayerEntry, dockerArchive, ociArchive } from "./imageArchive.ts"

/** elf(5), 64 bit: no program header asks for a loader (PT_INTERP). An image of any other busybox would need libraries. */
const isStatic = (elf: Buffer): boolean => {
  const [tableAt, entryBytes, entries] = [
    Number(elf.readBigUInt64LE(32)),
    elf.readUInt16LE(54),
    elf.readUInt16LE(56)
  ]
  const interpreter = 3
  return Array.from({ length: entries }, (_, index) => elf.readUInt32LE(tableAt + index * entryBytes)).every(
    (type) => type !== interpreter
  )
}

const findBusybox = (searchPath: string): string => {
  const found = searchPath
    .split(":")
    .map((directory) => path.join(directory, "busybox"))
    .find((candidate) => existsSync(candidate))
  if (found === undefined) throw new Error("busybox is not installed: apt-get install busybox-static")
  return found
}

/**
 * The layer with busybox and its applets as symbolic links, /tmp, /etc/passwd with root (0) and app (1000).
 * Throws where busybox is missing or needs a loader.
 */
export const busyboxLayer = (
  searchPath = `${process.env["PATH"] ?? ""}:/bin:/usr/bin`
): Array<LayerEntry> => {
  const binary = findBusybox(searchPath)
  const content = readFileSync(binary)
  if (!isStatic(content)) throw new Error(`${binary} is not static: apt-get install busybox-static`)
  const applets = execFileSync(binary, ["--list"], { encoding: "utf8" }).trim().split("\n")
  return [
    { kind: "directory", path: "bin" },
    { kind: "file", path: "bin/busybox", content, mode: 0o755 },
    ...applets
      .filter((name) => name !== "busybox")
      .map((name): LayerEntry => ({ kind: "symlink", path: `bin/${name}`, target: "busybox" })),
    { kind: "directory", path: "etc" },
    {
      kind: "file",
      path: "etc/passwd",
      content: "root:x:0:0:root:/:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\n"
    },
    { kind: "file", path: "etc/group", content: "root:x:0:\napp:x:1000:\n" },
    { kind: "directory", path: "home" },
    { kind: "directory", path: "home/app" },
    { kind: "directory", path: "tmp", mode: 0o1777 }
  ]
}

/** Writes the page at start, so that it shows what only this guest knows, and then serves it. */
const serveScript = `#!/bin/sh
set -e
mkdir -p /www
cat > /www/index.html <<PAGE
<!doctype html>
<title>$(hostname)</title>
<h1>$GREETING</h1>
<p>Served by $(hostname), kernel $(uname -r), up $(cut -d ' ' -f 1 /proc/uptime) s.</p>
PAGE
echo "demo: serving on port \${PORT:-80}"
exec httpd -f -v -p "\${PORT:-80}" -h /www
`

/** Two layers, busybox below and the page's server above it, so that layers are really stacked. */
export const demoImage = (changes: Partial<ArchiveSource> = {}): ArchiveSource => ({
  layers: [busyboxLayer(), [{ kind: "file", path: "serve", content: serveScript, mode: 0o755 }]],
  entrypoint: ["/serve"],
  env: { PATH: "/bin", GREETING: "Hello from a virtual machine" },
  workingDir: "/",
  name: "demo:latest",
  ...changes
})

if (import.meta.main) {
  const [target, form = "oci"] = process.argv.slice(2)
  if (target === undefined || (form !== "oci" && form !== "docker")) {
    process.stderr.write("usage: demoImage.ts OUT.tar [oci|docker]\n")
    process.exitCode = 2
  } else {
    writeFileSync(target, await (form === "oci" ? ociArchive : dockerArchive)(demoImage()))
  }
}
