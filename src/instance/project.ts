/**
 * From the states that the rules know to the six that users see: the one place where they are mapped. An instance in
 * transition shows where it comes from, except that a guest on its way down shows Shutdown: its VMM is there, it is off.
 */
import type { Instance, InstanceState } from "../domain/Instance.ts"
import type { Subnet } from "../domain/Network.ts"
import type { AttachmentStatus, HeldVolume } from "../domain/Volume.ts"
import type { State } from "./Lifecycle.ts"
import { vmmOf } from "./Lifecycle.ts"
import type { Record } from "./Record.ts"
import { transitionOf } from "./decide/step.ts"

export const outwardState = (state: State): InstanceState => {
  switch (state._tag) {
    case "Created":
    case "Running":
    case "Paused":
    case "Shutdown":
    case "Stopped":
    case "Standby":
      return state._tag
    case "Gone":
    case "Waiting":
    case "Launching":
      return "Stopped"
    case "Booting":
      return "Created"
    case "Pausing":
    case "PoweringOff":
    case "Quieting":
      return "Running"
    case "Resuming":
    case "Reviving":
      return "Paused"
    case "Attaching":
    case "Detaching":
      return state.rest
    case "Snapshotting":
    case "Unfreezing":
      return state.snapshot.paused ? "Paused" : "Running"
    case "Loading":
      return "Standby"
    case "Ending":
      switch (state.destination._tag) {
        case "Standby":
          return "Paused"
        case "BackToStandby":
          return "Standby"
        default:
          return "Shutdown"
      }
  }
}

/** A complete, restorable snapshot is there. */
const hasSnapshot = (state: State): boolean =>
  state._tag === "Standby" ||
  state._tag === "Loading" ||
  (state._tag === "Ending" &&
    (state.destination._tag === "Standby" || state.destination._tag === "BackToStandby"))

const statusOf = (volume: HeldVolume, state: InstanceState): AttachmentStatus => {
  switch (volume.phase) {
    case "attaching":
    case "queued":
      return "attaching"
    case "detaching":
    case "leaving":
    case "stuck":
      return "detaching"
    case "held":
      if (state === "Standby") return "frozen"
      return state === "Running" || state === "Paused" ? "mounted" : "next-boot"
  }
}

/** What is known of a live VM beyond its record; gone with the service. */
export interface Vitals {
  readonly ready: boolean
  readonly memoryMb: number | null
}

export const project = (record: Record, vitals: Vitals, subnet: Subnet): Instance => {
  const { spec, lease, lifecycle } = record
  const { state } = lifecycle
  const vmm = vmmOf(state)
  return {
    id: spec.id,
    name: spec.name,
    image: spec.image,
    image_digest: spec.image_digest,
    state: outwardState(state),
    transition: transitionOf(state),
    generation: record.generation,
    ready: vmm !== null && outwardState(state) !== "Shutdown" && vitals.ready,
    memory_mb: record.memory_mb,
    memory_max_mb: spec.memory_max_mb,
    memory_actual_mb: vmm === null ? null : (vitals.memoryMb ?? record.memory_mb),
    vcpus: spec.vcpus,
    env: spec.env,
    overlay_mb: spec.overlay_mb,
    volumes: lifecycle.volumes.map((volume) => ({
      volume_id: volume.volume_id,
      mount_path: volume.mount_path,
      readonly: volume.readonly,
      status: statusOf(volume, outwardState(state))
    })),
    network: {
      enabled: spec.network.enabled,
      ip: lease?.ip ?? null,
      mac: lease?.mac ?? null,
      gateway: lease === null ? null : subnet.gateway,
      dns: lease === null ? null : subnet.dns,
      tap: lease?.tap ?? null
    },
    command: spec.command,
    entrypoint: spec.entrypoint,
    working_dir: spec.working_dir,
    user: spec.user,
    hostname: spec.hostname,
    labels: spec.labels,
    restart_policy: spec.restart_policy,
    vmm: { kind: spec.vmm, version: record.vmm_version, pid: vmm?.pid ?? null },
    has_snapshot: hasSnapshot(state),
    exit: record.exit,
    restarts: record.restarts,
    created_at: record.created_at,
    started_at: record.started_at,
    stopped_at: record.stopped_at,
    standby_at: record.standby_at
  }
}
