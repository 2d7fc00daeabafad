/** From a record and its image to what init is told: the OCI rules of what overrides what. Pure. */
import type { BootImage } from "../../domain/Image.ts"
import type { Subnet } from "../../domain/Network.ts"
import { volumeSerial } from "../../host/volumeSerial.ts"
import type { GuestConfig } from "../../guest/GuestConfig.ts"
import type { Record } from "../Record.ts"

/**
 * What runs: an own entrypoint replaces the image's and drops its cmd, an own command replaces the image's cmd; the same
 * as `docker run --entrypoint E IMAGE COMMAND`.
 */
export const resolveArgv = (
  spec: { readonly entrypoint: ReadonlyArray<string> | null; readonly command: ReadonlyArray<string> | null },
  image: { readonly entrypoint: ReadonlyArray<string>; readonly cmd: ReadonlyArray<string> }
): ReadonlyArray<string> => [
  ...(spec.entrypoint ?? image.entrypoint),
  ...(spec.command ?? (spec.entrypoint === null ? image.cmd : []))
]

/** A path that lies in another one is mounted after it. A volume that is to go is not mounted at all. */
const volumesOf = ({ lifecycle }: Record): GuestConfig["volumes"] =>
  lifecycle.volumes
    .filter(({ phase }) => phase === "held" || phase === "attaching" || phase === "queued")
    .map(({ volume_id, mount_path, readonly }) => ({ serial: volumeSerial(volume_id), mount_path, readonly }))
    .toSorted((left, right) => left.mount_path.split("/").length - right.mount_path.split("/").length)

export const guestConfig = (record: Record, image: BootImage, subnet: Subnet): GuestConfig => {
  const { spec, lease } = record
  return {
    version: 1,
    hostname: spec.hostname,
    argv: resolveArgv(spec, image.config),
    env: { ...image.config.env, ...spec.env },
    working_dir: spec.working_dir ?? (image.config.working_dir === "" ? "/" : image.config.working_dir),
    user: spec.user ?? image.config.user,
    layers: image.layers.map((_, index) => `layer-${index}`),
    overlay: "overlay",
    network:
      lease === null
        ? null
        : {
            mac: lease.mac,
            ip: lease.ip,
            prefix: Number(subnet.cidr.slice(subnet.cidr.indexOf("/") + 1)),
            gateway: subnet.gateway,
            dns: [subnet.dns]
          },
    volumes: volumesOf(record)
  }
}
