/** How the disks of volumes are told apart, in the VMM and in the guest: by serial. */
import { createHash } from "node:crypto"
import type { VolumeId } from "../domain/Ids.ts"

export const volumeSerialPrefix = "vol-"
const serialDigits = 16
const base32 = "abcdefghijklmnopqrstuvwxyz234567"

/**
 * The serial of a volume's disk: always the same for one id, 20 bytes, which is all of it that virtio-blk tells a guest.
 * Ids are longer, so it is 80 bits of their SHA-256; that two volumes of a host share one is refused when the second is
 * made.
 */
export const volumeSerial = (id: VolumeId): string => {
  const digest = createHash("sha256").update(id).digest()
  const digits = Array.from({ length: serialDigits }, (_, at) => {
    const bit = at * 5
    const pair = digest.readUInt16BE(bit >> 3)
    return base32.charAt((pair >> (11 - (bit & 7))) & 31)
  })
  return volumeSerialPrefix + digits.join("")
}
