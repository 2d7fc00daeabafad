/**
 * The guest's run states: what the API and the event log say of them together, and how to get from one to another.
 *
 *   Created ──vm.boot──► Running ◄──vm.resume/vm.pause──► Paused
 *      ▲                   │ power-off (`--no-shutdown`), vm.shutdown
 *      └───────────────────┘
 *
 * The API has no state for a guest that went off: its VM is Created again, as before its first boot. Events tell them
 * apart. A guest's reset boots it again inside the VMM, which ends a run that nobody asked to be repeated: it is switched
 * off as soon as it is seen. So is one that panicked, whose VMM lets it go on.
 */
import * as Effect from "effect/Effect"
import { VmmFault, type VmmStatus } from "../Vmm.ts"
import { asVmmFault, type Client, type ClientFault, says } from "./Client.ts"
import type { EventLog, History } from "./EventLog.ts"
import type { EventRecord } from "./protocol.ts"

/** A boot maps the guest's memory and opens every disk; a pause waits for each vCPU and for disks to drain. */
const stateBoundMs = 30_000
/** Between an order's answer and the record of what it did: another thread of the VMM writes it. */
const recordBoundMs = 1_000

/** One VMM, as a session holds it. */
export interface Machine {
  readonly client: Client
  readonly log: EventLog
  /** While this service switches the guest off itself, the records of that are not the guest's doing. */
  muted: boolean
}

const fault = (operation: string, reason: string) => new VmmFault({ operation, reason, cause: undefined })

const isVm =
  (...names: ReadonlyArray<string>) =>
  (record: EventRecord): boolean =>
    record.source === "vm" && names.includes(record.event)

/** The API's state and what happened before, as one. */
export const statusOf = (state: string, history: History): VmmStatus => {
  const isUp = state === "Running" || state === "Paused"
  if (history.panicked && (isUp || state === "Created")) return { _tag: "Panicked" }
  // It runs once more, for as long as it takes to switch it off.
  if (history.ended === "reset" && isUp) return { _tag: "Off" }
  switch (state) {
    case "Running":
      return { _tag: "Running" }
    case "Paused":
      return { _tag: "Paused" }
    case "Created":
      return history.started ? { _tag: "Off" } : { _tag: "Prelaunch" }
    case "Shutdown":
      return { _tag: "Off" }
    default:
      return { _tag: "Broken", status: state }
  }
}

const rawStatus = ({ client, log }: Machine): Effect.Effect<VmmStatus, ClientFault> =>
  client.info.pipe(
    Effect.map((info) => statusOf(info.state, log.history())),
    Effect.catchIf(
      (cause) => says(cause, "VM is not created"),
      () => Effect.succeed<VmmStatus>({ _tag: "Broken", status: "no VM" })
    )
  )

export const status = (machine: Machine): Effect.Effect<VmmStatus, VmmFault> =>
  rawStatus(machine).pipe(Effect.mapError(asVmmFault("status")))

const name = (it: VmmStatus): string => (it._tag === "Broken" ? it.status : it._tag.toLowerCase())

/** An order, and the record of what it did. */
const recorded = (
  { client, log }: Machine,
  call: string,
  wanted: (record: EventRecord) => boolean
): Effect.Effect<void, ClientFault> =>
  Effect.gen(function* () {
    const seen = yield* log.first(wanted)
    yield* client.order(call, undefined, stateBoundMs)
    yield* seen.pipe(Effect.timeoutOption(recordBoundMs))
  }).pipe(Effect.scoped)

/** The guest off at once, from any state; nothing to do where it is. The VM stays configured. */
const switchOff = (machine: Machine): Effect.Effect<void, ClientFault> =>
  Effect.sync(() => {
    machine.muted = true
  }).pipe(
    Effect.andThen(recorded(machine, "vm.shutdown", isVm("shutdown"))),
    Effect.catchIf(
      (cause) => says(cause, "VM is not running") || says(cause, "VM is not created"),
      () => Effect.void
    ),
    Effect.ensuring(
      Effect.sync(() => {
        machine.muted = false
      })
    )
  )

/** A VM is there already: what 53.0 says, and what releases before say. */
const isThere = (cause: ClientFault) =>
  says(cause, "VM is already created") || says(cause, "invalid VM state transition")

const startGuest = (machine: Machine) =>
  recorded(machine, "vm.boot", isVm("booted")).pipe(
    // A boot that failed late leaves a VM behind that only has to go.
    Effect.catchIf(isThere, () =>
      Effect.andThen(switchOff(machine), recorded(machine, "vm.boot", isVm("booted")))
    )
  )

/** From prelaunch, or from off. Nothing to do where the guest runs. */
export const boot = (machine: Machine): Effect.Effect<void, VmmFault> =>
  Effect.gen(function* () {
    const before = yield* rawStatus(machine)
    switch (before._tag) {
      case "Running":
        return
      case "Off":
      case "Panicked":
        yield* switchOff(machine)
        return yield* startGuest(machine)
      case "Prelaunch":
        return yield* startGuest(machine)
      default:
        return yield* fault("boot", `the guest cannot be started from ${name(before)}`)
    }
  }).pipe(Effect.catchTag("ClientFault", (cause) => Effect.fail(asVmmFault("boot")(cause))))

/** From running, or paused already. */
export const pause = (machine: Machine): Effect.Effect<void, VmmFault> =>
  Effect.gen(function* () {
    const before = yield* rawStatus(machine)
    if (before._tag === "Paused") return
    if (before._tag !== "Running")
      return yield* fault("pause", `the guest is not running but ${name(before)}`)
    yield* machine.client.order("vm.pause", undefined, stateBoundMs)
  }).pipe(Effect.catchTag("ClientFault", (cause) => Effect.fail(asVmmFault("pause")(cause))))

/** From paused, or running already. */
export const resume = (machine: Machine): Effect.Effect<void, VmmFault> =>
  Effect.gen(function* () {
    const before = yield* rawStatus(machine)
    if (before._tag === "Running") return
    if (before._tag !== "Paused") return yield* fault("resume", `the guest is not paused but ${name(before)}`)
    yield* machine.client.order("vm.resume", undefined, stateBoundMs)
  }).pipe(Effect.catchTag("ClientFault", (cause) => Effect.fail(asVmmFault("resume")(cause))))

/** The VMM takes the button in every state of a VM, and forgets it where no guest runs. */
export const powerButton = (machine: Machine): Effect.Effect<void, VmmFault> =>
  Effect.gen(function* () {
    const before = yield* rawStatus(machine)
    if (before._tag !== "Running")
      return yield* fault("power-button", `the guest is not running but ${name(before)}`)
    yield* machine.client.order("vm.power-button")
  }).pipe(Effect.catchTag("ClientFault", (cause) => Effect.fail(asVmmFault("power-button")(cause))))

export const powerOff = (machine: Machine): Effect.Effect<void, VmmFault> =>
  switchOff(machine).pipe(Effect.mapError(asVmmFault("power-off")))

/** What was the guest's doing is over: it does not go on by itself. */
export const hold = (machine: Machine): Effect.Effect<void> => Effect.ignore(switchOff(machine))

/** Asks the process to end. It may be gone before its answer is read. */
export const quit = (machine: Machine): Effect.Effect<void, VmmFault> =>
  Effect.sync(() => {
    machine.muted = true
  }).pipe(
    Effect.andThen(machine.client.order("vmm.shutdown")),
    Effect.catchIf(
      (cause) => cause.kind === "closed",
      () => Effect.void
    ),
    Effect.mapError(asVmmFault("quit"))
  )
