/**
 * Where everything lives. `DATA_DIR` is the source of truth; sockets and FIFOs live in a short run directory, since a
 * socket's path holds at most 107 bytes (unix(7), sun_path).
 */
import { createHash } from "node:crypto"
import * as path from "node:path"
import * as Context from "effect/Context"
import { digestHex, type Digest, type ImageId, type InstanceId, type VolumeId } from "../domain/Ids.ts"

/** unix(7): sun_path has 108 bytes with the closing NUL. */
export const socketPathMaxBytes = 107

/** Put together when they are asked for: an idle instance keeps two of them. */
export class InstancePaths {
  readonly directory: string
  readonly run: string

  constructor(directory: string, run: string) {
    this.directory = directory
    this.run = run
  }

  get record(): string {
    return path.join(this.directory, "instance.json")
  }

  /** What the dataplane did with the instance, one JSON object a line. */
  get journal(): string {
    return path.join(this.directory, "dataplane")
  }

  get overlay(): string {
    return path.join(this.directory, "overlay.raw")
  }

  get config(): string {
    return path.join(this.directory, "config.raw")
  }

  get console(): string {
    return path.join(this.directory, "console")
  }

  get vmm(): string {
    return path.join(this.directory, "vmm")
  }

  get snapshots(): string {
    return path.join(this.directory, "snapshot")
  }
}

/** `runRoot` holds one directory per DATA_DIR, so that several services can share a host. */
export const layout = (dataDir: string, runRoot = "/run/chd") => {
  const root = path.resolve(dataDir)
  const run = path.join(runRoot, createHash("sha256").update(root).digest("hex").slice(0, 8))
  const instance = (id: InstanceId) => path.join(root, "instances", id)
  return {
    root,
    run,
    service: path.join(root, "service.json"),
    events: path.join(root, "events"),
    idempotency: path.join(root, "idempotency"),
    system: path.join(root, "system"),
    kernel: path.join(root, "system", "vmlinuz"),
    initrd: path.join(root, "system", "initrd"),
    instances: path.join(root, "instances"),
    images: path.join(root, "images"),
    blobs: path.join(root, "blobs", "sha256"),
    pulls: path.join(root, "pulls"),
    layers: path.join(root, "layers"),
    temporary: path.join(root, "tmp"),
    volumes: path.join(root, "volumes"),
    layer: (diffId: Digest) => path.join(root, "layers", `${digestHex(diffId)}.squashfs`),
    /** What an unfinished pull has fetched; gone once its layers are made. */
    pull: (id: ImageId) => path.join(root, "pulls", id),
    image: (id: ImageId) => path.join(root, "images", `${id}.json`),
    volume: (id: VolumeId) => path.join(root, "volumes", id),
    volumeRecord: (id: VolumeId) => path.join(root, "volumes", id, "volume.json"),
    volumeDisk: (id: VolumeId) => path.join(root, "volumes", id, "disk.raw"),
    instance: (id: InstanceId) => new InstancePaths(instance(id), path.join(run, id))
  }
}

export type Layout = ReturnType<typeof layout>

export class Paths extends Context.Service<Paths, Layout>()("dataplane/host/Paths") {}
