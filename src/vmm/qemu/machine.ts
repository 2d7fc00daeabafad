/**
 * The guest's run states over QMP: what QEMU calls them, what they mean here, and how to get from one to another.
 *
 *   prelaunch ──cont──► running ◄──cont/stop──► paused, postmigrate
 *      ▲                  │ power-off, reset, system_reset under `reboot=shutdown`
 *      │ system_reset     ▼
 *      └── under ───── shutdown, guest-panicked
 *        `reboot=reset`
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { VmmFault, type VmmEvent, type VmmStatus } from "../Vmm.ts"
import type { Qmp, QmpEvent, QmpFault } from "./Qmp.ts"

/** A change of state takes milliseconds; writing back a disk's cache at `stop` can take seconds. */
const stateBoundMs = 15_000
/** Only where an event came and went before anyone could listen. */
const statePollMs = 20
/**
 * How soon SeaBIOS resets a machine that it finds used: 35 ms were measured under software emulation. A guest kernel's
 * own reset within this time counts as one more power-on and is repeated once.
 */
const firmwareBoundMs = 1_000

const Status = Schema.Struct({ status: Schema.String })

/** A QMP fault as the fault of an operation. */
export const asVmmFault =
  (operation: string) =>
  (fault: QmpFault): VmmFault =>
    new VmmFault({ operation, reason: fault.reason, cause: fault })

export const rawStatus = (qmp: Qmp): Effect.Effect<string, QmpFault> =>
  qmp.execute("query-status", {}, Status).pipe(Effect.map(({ status }) => status))

/** QEMU's RunState (qapi/run-state.json) as ours. */
export const statusOf = (status: string): VmmStatus => {
  switch (status) {
    case "prelaunch":
      return { _tag: "Prelaunch" }
    case "running":
      return { _tag: "Running" }
    case "paused":
    case "postmigrate":
    case "finish-migrate":
    case "save-vm":
      return { _tag: "Paused" }
    case "shutdown":
      return { _tag: "Off" }
    case "guest-panicked":
      return { _tag: "Panicked" }
    default:
      return { _tag: "Broken", status }
  }
}

/** What the guest did by itself, where an event says so. */
export const vmmEventOf = (event: QmpEvent): Option.Option<VmmEvent> => {
  if (event.name === "GUEST_PANICKED") return Option.some({ _tag: "GuestPanicked" })
  if (event.name !== "SHUTDOWN" || event.data["guest"] !== true) return Option.none()
  switch (event.data["reason"]) {
    case "guest-shutdown":
      return Option.some({ _tag: "GuestOff", cause: "poweroff" })
    case "guest-reset":
      return Option.some({ _tag: "GuestOff", cause: "reset" })
    default:
      return Option.none()
  }
}

const fault = (operation: string, reason: string) => new VmmFault({ operation, reason, cause: undefined })

const changes = ["STOP", "RESUME", "RESET", "SHUTDOWN", "MIGRATION", "GUEST_PANICKED"]

/** The status if it is one of these, else none after the next change. Listens before it asks, so that none is missed. */
const look = Effect.fnUntraced(function* (qmp: Qmp, wanted: ReadonlyArray<string>) {
  const changed = yield* qmp.first((event) =>
    changes.includes(event.name) ? Option.some(event.name) : Option.none()
  )
  const status = yield* rawStatus(qmp)
  if (wanted.includes(status)) return Option.some(status)
  yield* changed.pipe(Effect.timeoutOption(statePollMs))
  return Option.none<string>()
}, Effect.scoped)

/** Waits until the status is one of these; gives it, or none where the bound passed. */
export const awaitStatus = (qmp: Qmp, wanted: ReadonlyArray<string>, boundMs: number = stateBoundMs) =>
  look(qmp, wanted).pipe(
    Effect.repeat({ until: Option.isSome }),
    Effect.timeoutOption(boundMs),
    Effect.map(Option.flatten)
  )

const reach = (qmp: Qmp, operation: string, wanted: ReadonlyArray<string>) =>
  Effect.gen(function* () {
    const reached = yield* awaitStatus(qmp, wanted)
    if (Option.isSome(reached)) return
    const status = yield* rawStatus(qmp)
    return yield* fault(
      operation,
      `QEMU stays in status ${status} and does not come to ${wanted.join(" or ")}`
    )
  })

/** Gives up what the guest was: the machine at its first instruction, not running. From any state that does not run. */
export const resetToPrelaunch = (qmp: Qmp, operation: string): Effect.Effect<void, QmpFault | VmmFault> =>
  Effect.gen(function* () {
    yield* qmp.order("set-action", { reboot: "reset" })
    yield* qmp.order("system_reset")
    yield* reach(qmp, operation, ["prelaunch"])
  }).pipe(Effect.ensuring(Effect.ignore(stopAtReset(qmp))))

/** The policy that a guest's reset ends its run; also after a service that died while it was lifted. */
export const stopAtReset = (qmp: Qmp): Effect.Effect<void, QmpFault> =>
  qmp.order("set-action", { reboot: "shutdown" })

/** While this service resets the machine itself, what QEMU reports of resets is not the guest's doing. */
export interface OwnResets {
  muted: boolean
}

const unmute = (own: OwnResets) =>
  Effect.sync(() => {
    own.muted = false
  })

/**
 * A second power-on of a machine. SeaBIOS finds its own traces in memory, puts itself right and resets the machine once
 * more (qemu_prep_reset), which under our policy stops it. So the first power-on is for the firmware, up to its reset;
 * the second is the guest's. Nothing of the guest runs in the first.
 */
const bootAgain = (qmp: Qmp, own: OwnResets) =>
  Effect.gen(function* () {
    own.muted = true
    yield* resetToPrelaunch(qmp, "boot")
    yield* qmp.order("cont")
    const stopped = yield* awaitStatus(qmp, ["shutdown"], firmwareBoundMs)
    // A firmware without that habit is booting the guest already.
    if (Option.isNone(stopped)) return
    yield* resetToPrelaunch(qmp, "boot")
    own.muted = false
    yield* qmp.order("cont")
  }).pipe(Effect.ensuring(unmute(own)))

/** From prelaunch, or from off. Nothing to do where the guest runs. */
export const boot = (qmp: Qmp, own: OwnResets): Effect.Effect<void, VmmFault> =>
  Effect.gen(function* () {
    const status = yield* rawStatus(qmp)
    switch (statusOf(status)._tag) {
      case "Running":
        return
      case "Prelaunch":
        yield* qmp.order("cont")
        break
      case "Off":
      case "Panicked":
        yield* bootAgain(qmp, own)
        break
      default:
        return yield* fault("boot", `the guest cannot be started from status ${status}`)
    }
    yield* reach(qmp, "boot", ["running", "shutdown", "guest-panicked"])
  }).pipe(Effect.catchTag("QmpFault", (cause) => Effect.fail(asVmmFault("boot")(cause))))

/** From running, or paused already. */
export const pause = (qmp: Qmp): Effect.Effect<void, VmmFault> =>
  Effect.gen(function* () {
    const status = yield* rawStatus(qmp)
    if (statusOf(status)._tag === "Paused") return
    if (status !== "running") return yield* fault("pause", `the guest is not running but ${status}`)
    yield* qmp.order("stop", {}, stateBoundMs)
    const after = yield* rawStatus(qmp)
    if (statusOf(after)._tag !== "Paused")
      return yield* fault("pause", `the guest did not pause but is ${after}`)
  }).pipe(Effect.catchTag("QmpFault", (cause) => Effect.fail(asVmmFault("pause")(cause))))

/**
 * From paused, or running already; also from io-error, in which QEMU stops a guest whose disk is full: `cont` repeats
 * the write.
 */
export const resume = (qmp: Qmp): Effect.Effect<void, VmmFault> =>
  Effect.gen(function* () {
    const status = yield* rawStatus(qmp)
    if (status === "running") return
    if (statusOf(status)._tag !== "Paused" && status !== "io-error")
      return yield* fault("resume", `the guest is not paused but ${status}`)
    yield* qmp.order("cont", {}, stateBoundMs)
    const after = yield* rawStatus(qmp)
    // It may have gone off at its first instruction; then it was resumed all the same.
    if (after !== "running" && statusOf(after)._tag !== "Off" && statusOf(after)._tag !== "Panicked")
      return yield* fault("resume", `the guest did not resume but is ${after}`)
  }).pipe(Effect.catchTag("QmpFault", (cause) => Effect.fail(asVmmFault("resume")(cause))))

/**
 * The guest off at once, from any state. Under `reboot=shutdown` a reset is a power-off, but only of a running machine:
 * one that stands is first reset, so that no instruction of the guest runs any more.
 */
export const powerOff = (qmp: Qmp, own: OwnResets): Effect.Effect<void, VmmFault> =>
  Effect.gen(function* () {
    const status = yield* rawStatus(qmp)
    if (status === "shutdown") return
    own.muted = status !== "running"
    if (status !== "running") {
      if (status !== "prelaunch") yield* resetToPrelaunch(qmp, "power-off")
      yield* qmp.order("cont")
    }
    yield* qmp.order("system_reset")
    yield* reach(qmp, "power-off", ["shutdown"])
  }).pipe(
    Effect.ensuring(unmute(own)),
    Effect.catchTag("QmpFault", (cause) => Effect.fail(asVmmFault("power-off")(cause)))
  )
