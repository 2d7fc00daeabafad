/**
 * What attach and detach do in each state, and what becomes of volumes when the guest, or its VMM, moves on. A volume
 * leaves the record only when its device is proven to be gone: by the guest's word and the VMM's, or by the VMM's death.
 */
import { type HeldVolume, volumesMax } from "../../domain/Volume.ts"
import type { ProcessIdentity } from "../../domain/Process.ts"
import type { VolumeId } from "../../domain/Ids.ts"
import type {
  Command,
  Decision,
  Event,
  Lifecycle,
  Settlement,
  State,
  StateOf,
  VmmRest
} from "../Lifecycle.ts"
import { denied, enter, failed, ignored, joined, reached, transitionOf } from "./step.ts"

type CommandOf<Tag extends Command["_tag"]> = Extract<Command, { readonly _tag: Tag }>
type FailedEvent = Omit<Extract<Event, { readonly _tag: "Failed" }>, "_tag">
type Volumes = ReadonlyArray<HeldVolume>
type Phase = HeldVolume["phase"]

const without = (volumes: Volumes, id: VolumeId): Volumes => volumes.filter((it) => it.volume_id !== id)

const withPhase = (volumes: Volumes, id: VolumeId, phase: Phase): Volumes =>
  volumes.map((it) => (it.volume_id === id ? { ...it, phase } : it))

const becoming = (volumes: Volumes, phases: Partial<Record<Phase, Phase>>): Volumes =>
  volumes.map((it) => ({ ...it, phase: phases[it.phase] ?? it.phase }))

/** After the death of the VMM: every device is gone, and what was to be mounted is at the next boot. */
export const withoutVmm = (volumes: Volumes): Volumes =>
  becoming(
    volumes.filter((it) => it.phase === "held" || it.phase === "queued"),
    { queued: "held" }
  )

/** What was begun while a guest stands still that should run: it follows the resume. */
export const putOff = (lifecycle: Lifecycle): Lifecycle => ({
  ...lifecycle,
  volumes: becoming(lifecycle.volumes, { attaching: "queued", detaching: "leaving" })
})

/** What a guest that runs, or is off, has now to be done for volumes that came or went before; one after the other. */
const nextVolume = ({ volumes }: Lifecycle, vmm: ProcessIdentity, rest: VmmRest): State | null => {
  const next = volumes.find(({ phase }) => phase === "queued" || phase === "leaving")
  if (next === undefined || rest === "Paused") return null
  return next.phase === "queued"
    ? { _tag: "Attaching", vmm, volume: next.volume_id, rest }
    : { _tag: "Detaching", vmm, volume: next.volume_id, force: false, rest, undoes: null }
}

/** Where a piece of work leaves the instance: at rest, or first with the volumes that wait for that. */
export const settleIn = (
  lifecycle: Lifecycle,
  rest: VmmRest,
  vmm: ProcessIdentity,
  settle: ReadonlyArray<Settlement> = []
): Decision => {
  // The devices are there, and init mounts them at the boot.
  const volumes = rest === "Shutdown" ? becoming(lifecycle.volumes, { queued: "held" }) : lifecycle.volumes
  const state = nextVolume({ ...lifecycle, volumes }, vmm, rest)
  if (state === null) return enter({ ...lifecycle, volumes }, { _tag: rest, vmm }, settle)
  const phase = state._tag === "Attaching" ? "attaching" : "detaching"
  const volume = "volume" in state ? state.volume : null
  return enter(
    { ...lifecycle, volumes: volume === null ? volumes : withPhase(volumes, volume, phase) },
    state,
    settle
  )
}

/** The guest goes on, or off, after it stood still: one that kept a device is asked again. */
export const afterChange = (lifecycle: Lifecycle): Lifecycle => ({
  ...lifecycle,
  volumes: becoming(lifecycle.volumes, { stuck: "leaving" })
})

const frozen = (verb: string): Decision =>
  denied(
    `The instance is in Standby and its snapshot names its disks: restore it before you ${verb}, or give the snapshot up with stop and discard_snapshot=true.`
  )

const busyWith = (state: State, verb: string): Decision => {
  const busy = transitionOf(state)
  return busy === null
    ? denied(`A ${state._tag} instance cannot ${verb} volumes.`)
    : denied(`The instance is busy with ${busy}; ${verb} has to wait for it.`)
}

/** Why the volume cannot be attached as it is asked for; null where nothing of this instance is in the way. */
const obstacle = (volumes: Volumes, { volume }: CommandOf<"Attach">): string | null => {
  const path = volumes.find((it) => it.mount_path === volume.mount_path)
  if (path !== undefined) return `The volume '${path.volume_id}' has the path ${volume.mount_path} already.`
  return volumes.length >= volumesMax ? `An instance holds at most ${volumesMax} volumes.` : null
}

/** The answer where the instance holds the volume already. */
const attachAgain = (held: HeldVolume, { volume }: CommandOf<"Attach">): Decision => {
  if (held.phase === "detaching" || held.phase === "leaving" || held.phase === "stuck")
    return denied("The volume is being detached; attach it again when it is.")
  if (held.mount_path !== volume.mount_path || held.readonly !== volume.readonly)
    return denied(
      `The volume is attached at ${held.mount_path}${held.readonly ? ", read-only" : ""} already; detach it first.`
    )
  return held.phase === "attaching" ? joined("attach") : ignored
}

export const attach = (lifecycle: Lifecycle, command: CommandOf<"Attach">): Decision => {
  const { state, volumes } = lifecycle
  const held = volumes.find((it) => it.volume_id === command.volume.volume_id)
  if (held !== undefined && state._tag !== "Gone") return attachAgain(held, command)
  const taking = (phase: Phase): Lifecycle => ({
    ...lifecycle,
    volumes: [...volumes, { ...command.volume, phase }]
  })
  const reason = obstacle(volumes, command)
  switch (state._tag) {
    case "Stopped":
      return reason === null ? enter(taking("held"), state, [reached("attach")]) : denied(reason)
    case "Created":
    case "Running":
    case "Paused":
    case "Shutdown":
      return reason === null
        ? enter(taking("attaching"), {
            _tag: "Attaching",
            vmm: state.vmm,
            volume: command.volume.volume_id,
            rest: state._tag
          })
        : denied(reason)
    case "Standby":
      return frozen("attach")
    default:
      return busyWith(state, "attach")
  }
}

export const detach = (lifecycle: Lifecycle, { volume, force }: CommandOf<"Detach">): Decision => {
  const { state, volumes } = lifecycle
  const held = volumes.find((it) => it.volume_id === volume)
  if (held === undefined) return ignored
  if (held.phase === "detaching") return joined("detach")
  switch (state._tag) {
    case "Stopped":
      return enter({ ...lifecycle, volumes: without(volumes, volume) }, state, [reached("detach")])
    case "Paused":
      return held.phase === "leaving"
        ? ignored
        : enter({ ...lifecycle, volumes: withPhase(volumes, volume, "leaving") }, state, [reached("detach")])
    case "Created":
    case "Running":
    case "Shutdown":
      return enter(
        { ...lifecycle, volumes: withPhase(volumes, volume, "detaching") },
        { _tag: "Detaching", vmm: state.vmm, volume, force, rest: state._tag, undoes: null }
      )
    case "Standby":
      return frozen("detach")
    default:
      return busyWith(state, "detach")
  }
}

export const attached = (lifecycle: Lifecycle, { vmm, volume, rest }: StateOf<"Attaching">): Decision => {
  const phase = rest === "Paused" ? "queued" : "held"
  const volumes = withPhase(lifecycle.volumes, volume, phase)
  return settleIn({ ...lifecycle, volumes }, rest, vmm, [reached("attach")])
}

/** A device that may be there is taken out again; a paused guest does that when it is resumed. */
export const attachFailed = (
  lifecycle: Lifecycle,
  { vmm, volume, rest }: StateOf<"Attaching">,
  { failure, untouched }: FailedEvent
): Decision => {
  const { volumes } = lifecycle
  if (untouched)
    return settleIn({ ...lifecycle, volumes: without(volumes, volume) }, rest, vmm, [
      failed("attach", failure)
    ])
  if (rest === "Paused")
    return settleIn({ ...lifecycle, volumes: withPhase(volumes, volume, "leaving") }, rest, vmm, [
      failed("attach", failure)
    ])
  return enter(
    { ...lifecycle, volumes: withPhase(volumes, volume, "detaching") },
    { _tag: "Detaching", vmm, volume, force: true, rest, undoes: failure }
  )
}

export const detached = (
  lifecycle: Lifecycle,
  { vmm, volume, rest, undoes }: StateOf<"Detaching">
): Decision =>
  settleIn({ ...lifecycle, volumes: without(lifecycle.volumes, volume) }, rest, vmm, [
    ...(undoes === null ? [] : [failed("attach", undoes)]),
    reached("detach")
  ])

/** Refused by the guest, it is as it was; half out, it stays the instance's until the guest, or its VMM, is off. */
export const detachFailed = (
  lifecycle: Lifecycle,
  { vmm, volume, rest, undoes }: StateOf<"Detaching">,
  { failure, untouched }: FailedEvent
): Decision => {
  const phase = untouched && undoes === null ? "held" : "stuck"
  const volumes = withPhase(lifecycle.volumes, volume, phase)
  return settleIn({ ...lifecycle, volumes }, rest, vmm, [
    ...(undoes === null ? [] : [failed("attach", undoes)]),
    failed("detach", failure)
  ])
}

/** After a restart of the service, with the VMM alive: the same work again, wherever its guest stands by now. */
export const resumeVolume = (
  lifecycle: Lifecycle,
  state: StateOf<"Attaching"> | StateOf<"Detaching">,
  status: "prelaunch" | "running" | "paused" | "off" | "none"
): Decision => {
  if (status === "running" && state.rest !== "Running") return enter(lifecycle, { ...state, rest: "Running" })
  if (status === "paused" && state.rest === "Running")
    return enter(putOff(lifecycle), { _tag: "Resuming", vmm: state.vmm })
  return enter(lifecycle, state)
}
