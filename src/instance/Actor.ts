/**
 * One instance: one fiber, one mailbox, one writer of the record.
 *
 *   take one input ──► decide ──► persist ──► show the view, answer who waits ──► begin the state's work
 *        ▲                                                                              │
 *        └────────────────────────── result, with the epoch of the work ◄───────────────┘
 *
 * The work runs in a fiber of its own, so the mailbox is never behind it; a new state interrupts the old state's work
 * and waits for its clean-up before its own begins. The VMM belongs to the state, not to this fiber: when the actor's
 * scope closes, wires are cut and work is interrupted, and the VMM runs on.
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import type * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import type * as Tracer from "effect/Tracer"
import { timestamp, type VolumeId } from "../domain/Ids.ts"
import type { Instance, PatchInstance } from "../domain/Instance.ts"
import type { AgentSession } from "../guest/AgentSession.ts"
import { Paths } from "../host/Paths.ts"
import { Network } from "../network/Network.ts"
import { logEvent } from "../telemetry/LogEvent.ts"
import { partOf } from "../telemetry/VerbRun.ts"
import { Vmm } from "../vmm/Vmm.ts"
import { begin, type Cell, notRecorded, persist, publish, rewire, type WorkServices } from "./Cell.ts"
import { amend, grow, resized } from "./amend.ts"
import { decide } from "./decide.ts"
import type { Journal } from "./Journal.ts"
import type { Command, Decision, Event, Probe, Settlement } from "./Lifecycle.ts"
import { verbOf } from "./Lifecycle.ts"
import * as Mailbox from "./Mailbox.ts"
import { denial } from "./denial.ts"
import { project } from "./project.ts"
import { evolve, mustBeDurable, type Record } from "./Record.ts"
import type { Reply } from "./Reply.ts"
import { Store } from "./Store.ts"
import { tell } from "./tell.ts"
import { makeVerbRuns } from "./VerbRuns.ts"
import { makeWaiters, type Waiter } from "./Waiters.ts"

/** Between two tries to write a record that could not be written. */
const saveRetryMs = 1_000

const mailboxFull = "Too many verbs wait for this instance; try again."

type Accepted = Extract<Decision, { readonly _tag: "Accepted" }>

export interface Begun {
  /** Ends when the command is decided, and what it reserves is in the record and the view. */
  readonly taken: Effect.Effect<void>
  readonly reply: Effect.Effect<Reply>
}

export interface Actor {
  readonly record: () => Record
  readonly view: () => Instance
  /** The channel to the guest's agent, while the guest has answered on it. */
  readonly agent: () => Option.Option<AgentSession>
  /** Answers when the verb's end state is reached and durable, or with why not. Interrupting it cancels nothing. */
  readonly send: (command: Command, expected: Mailbox.Expected) => Effect.Effect<Reply>
  /** Changes what can be changed of an instance that is there; answers when the change is durable and done. */
  readonly amend: (changes: PatchInstance, expected: Mailbox.Expected) => Effect.Effect<Reply>
  /** The same as `send` in two parts: decided, recorded and shown; then done. */
  readonly begin: (command: Command) => Effect.Effect<Begun>
  /** Tells the guest of a volume's new size, in bytes, and grows its file system. */
  readonly growVolume: (volume: VolumeId, bytes: number) => Effect.Effect<Reply>
  /** Waits for the end of the instance's creation. */
  readonly created: Effect.Effect<Reply>
  /** The loop; ends when the instance is gone. */
  readonly run: Effect.Effect<void>
}

/** A settlement is told only of what is durable; what is not is told to be so. */
const settle = (cell: Cell, settlement: Settlement) => {
  const told: Settlement =
    settlement.outcome === "reached" && !cell.saved
      ? { verb: settlement.verb, outcome: "failed", failure: { step: "record", reason: notRecorded } }
      : settlement
  return Effect.andThen(cell.verbs.end(told.verb, told.outcome), cell.waiters.settle(told))
}

const saveLater = (cell: Cell) =>
  Effect.forkIn(
    Effect.sleep(saveRetryMs).pipe(Effect.andThen(Effect.sync(() => cell.mailbox.offer({ _tag: "Save" })))),
    cell.scope
  )

/** Makes the decided change: record, view, answers, wires, work. */
const accept = Effect.fnUntraced(function* (
  cell: Cell,
  decision: Accepted,
  event: Event | null,
  parent?: Tracer.AnySpan
) {
  const now = timestamp(yield* Clock.currentTimeMillis)
  const before = cell.record
  const vmm = yield* Vmm
  const evolved = evolve(before, decision.next, now)
  // A restore is by the version that wrote the snapshot, which the record names already.
  const launched = event?._tag === "Spawned" && before.lifecycle.state._tag === "Launching"
  const next = launched ? { ...evolved, vmm_version: vmm.version } : evolved
  const run = yield* cell.verbs.enter(decision.next.state, parent)
  const exit = yield* Effect.exit(persist(cell, next).pipe(partOf(run)))
  if (Exit.isFailure(exit)) {
    yield* logEvent("defect", `${before.spec.id}: the record cannot be written`, {
      instance_id: before.spec.id,
      reason: Cause.pretty(exit.cause)
    })
    if (mustBeDurable(before.lifecycle.state, next.lifecycle.state)) {
      if (run !== cell.verbs.of(before.lifecycle.state) && run !== undefined)
        yield* cell.verbs.end(run.verb, "failed")
      return false
    }
    cell.saved = false
    yield* saveLater(cell)
  }
  const wiredPid = cell.wire?.ref.process.pid ?? null
  cell.record = next
  yield* rewire(cell)
  yield* publish(cell)
  yield* tell(before, next, now, wiredPid)
  yield* Effect.forEach(decision.settle, (it) => settle(cell, it), { discard: true })
  if (run === undefined) yield* cell.verbs.endAll("failed")
  yield* begin(cell)
  return true
})

/** The same event as a failure, for a change that must be durable and cannot be made so. */
const asFailure = (event: Event, at: string): Event | null =>
  event._tag === "Done" || event._tag === "Spawned"
    ? {
        _tag: "Failed",
        epoch: event.epoch,
        failure: { step: "record", reason: notRecorded },
        untouched: false,
        exit: { reason: "boot-failed", message: notRecorded, at: timestamp(Date.parse(at)) }
      }
    : null

const onEvent = Effect.fnUntraced(function* (cell: Cell, event: Event) {
  const decision = decide(cell.record.lifecycle, event)
  if (decision._tag !== "Accepted") return
  if (yield* accept(cell, decision, event)) return
  const failure = asFailure(event, timestamp(yield* Clock.currentTimeMillis))
  if (failure === null) return
  const fallback = decide(cell.record.lifecycle, failure)
  if (fallback._tag === "Accepted") yield* accept(cell, fallback, failure)
})

const onCommand = Effect.fnUntraced(function* (
  cell: Cell,
  { command, reply, parent }: Extract<Mailbox.Mail, { readonly _tag: "Command" }>
) {
  const decision = decide(cell.record.lifecycle, command)
  switch (decision._tag) {
    case "Ignored":
      return yield* Deferred.succeed(reply, { _tag: "Reached" })
    case "Joined":
      return cell.waiters.add(decision.until, reply)
    case "Denied":
      return yield* Deferred.succeed(reply, yield* denial(cell.record.lifecycle, decision.reason))
    case "Accepted": {
      cell.waiters.add(verbOf(command), reply)
      if (!(yield* accept(cell, decision, null, parent)))
        yield* Deferred.succeed(reply, { _tag: "Busy", reason: notRecorded })
    }
  }
})

/** The record moved on since the client saw it: its change is not decided, so that nothing of it can happen. */
const hasMoved = (cell: Cell, expected: Mailbox.Expected): boolean =>
  expected !== null && !expected.includes(cell.record.generation)

const handle = (cell: Cell, mail: Mailbox.Mail) => {
  if ("expected" in mail && hasMoved(cell, mail.expected))
    return Deferred.succeed(mail.reply, { _tag: "Moved", generation: cell.record.generation })
  switch (mail._tag) {
    case "Command":
      return onCommand(cell, mail).pipe(
        Effect.ensuring(
          Effect.suspend(() =>
            mail.taken === undefined ? Effect.void : Deferred.succeed(mail.taken, undefined)
          )
        )
      )
    case "Event":
      return onEvent(cell, mail.event)
    case "Amend":
      return amend(cell, mail.changes, mail.reply)
    case "Grow":
      return grow(cell, mail.volume, mail.bytes, mail.reply)
    case "Resized":
      return resized(cell, mail)
    case "Ready":
      cell.ready = mail.ready
      return publish(cell)
    case "Save":
      return cell.saved ? Effect.void : persist(cell, cell.record).pipe(Effect.catch(() => saveLater(cell)))
  }
}

/** The loop ended: nobody is left waiting. */
const farewell = Effect.fnUntraced(function* (cell: Cell) {
  const reply: Reply =
    cell.record.lifecycle.state._tag === "Gone"
      ? { _tag: "Gone" }
      : { _tag: "Busy", reason: "The service was interrupted; ask for the instance's state and try again." }
  yield* cell.waiters.settleAll(reply)
  for (const mail of yield* cell.mailbox.drain) {
    if ("reply" in mail) yield* Deferred.succeed(mail.reply, reply)
    if ("taken" in mail && mail.taken !== undefined) yield* Deferred.succeed(mail.taken, undefined)
  }
})

/** From a record: a new one, or one that a restart found, with the probe of what is there. */
const open = (cell: Cell, probe: Probe | null) =>
  Effect.gen(function* () {
    if (probe !== null) {
      const decision = decide(cell.record.lifecycle, { _tag: "Observed", probe })
      if (decision._tag === "Accepted" && (yield* accept(cell, decision, { _tag: "Observed", probe }))) return
    }
    yield* rewire(cell)
    yield* begin(cell)
  })

/** What others put into the mailbox, and how they hear of it. */
const sender = (cell: Cell) => {
  const ask = Effect.fnUntraced(function* (mail: (reply: Waiter) => Mailbox.Mail) {
    const reply = yield* Deferred.make<Reply>()
    if (cell.record.lifecycle.state._tag === "Gone") return { _tag: "Gone" } satisfies Reply
    if (!cell.mailbox.offer(mail(reply))) return { _tag: "Busy", reason: mailboxFull } satisfies Reply
    return yield* Deferred.await(reply)
  })
  const beginCommand = Effect.fnUntraced(function* (command: Command) {
    const reply = yield* Deferred.make<Reply>()
    const taken = yield* Deferred.make<void>()
    const over = (it: Reply): Begun => ({ taken: Effect.void, reply: Effect.succeed(it) })
    if (cell.record.lifecycle.state._tag === "Gone") return over({ _tag: "Gone" })
    const parent = Option.getOrUndefined(yield* Effect.option(Effect.currentParentSpan))
    return cell.mailbox.offer({ _tag: "Command", command, expected: null, reply, taken, parent })
      ? { taken: Deferred.await(taken), reply: Deferred.await(reply) }
      : over({ _tag: "Busy", reason: mailboxFull })
  })
  return { ask, beginCommand }
}

export const make = Effect.fnUntraced(function* (
  initial: Record,
  probe: Probe | null,
  published: (view: Instance, from: Instance) => Effect.Effect<void>,
  parent?: Tracer.AnySpan
) {
  const network = yield* Network
  const services = yield* Effect.context<WorkServices | Journal | Vmm | Scope.Scope>()
  const cell: Cell = {
    store: yield* Store,
    subnet: network.subnet,
    paths: (yield* Paths).instance(initial.spec.id),
    services,
    scope: yield* Effect.scope,
    mailbox: yield* Mailbox.make,
    waiters: makeWaiters(),
    verbs: makeVerbRuns(initial.spec.id),
    published,
    record: initial,
    view: project(initial, { ready: false, memoryMb: null }, network.subnet),
    ready: false,
    memoryMb: null,
    wire: null,
    working: null,
    saved: true
  }
  const created = yield* Deferred.make<Reply>()
  cell.waiters.add("create", created)
  yield* cell.verbs.enter(initial.lifecycle.state, parent)

  const loop = Effect.gen(function* () {
    while (cell.record.lifecycle.state._tag !== "Gone") yield* handle(cell, yield* cell.mailbox.take)
  })
  const { ask, beginCommand } = sender(cell)
  return {
    record: () => cell.record,
    view: () => cell.view,
    agent: () => cell.wire?.agent() ?? Option.none(),
    send: (command: Command, expected: Mailbox.Expected) =>
      Effect.flatMap(Effect.option(Effect.currentParentSpan), (parent) =>
        ask((reply) => ({
          _tag: "Command",
          command,
          expected,
          reply,
          parent: Option.getOrUndefined(parent)
        }))
      ),
    amend: (changes: PatchInstance, expected: Mailbox.Expected) =>
      ask((reply) => ({ _tag: "Amend", changes, expected, reply })),
    begin: beginCommand,
    growVolume: (volume, bytes) => ask((reply) => ({ _tag: "Grow", volume, bytes, reply })),
    created: Deferred.await(created),
    run: open(cell, probe).pipe(
      Effect.andThen(loop),
      Effect.ensuring(Effect.suspend(() => Effect.andThen(cell.verbs.endAll("cancelled"), farewell(cell)))),
      // Put in place of what is there, not merged with it: a copy for each actor is a tenth of its memory.
      Effect.updateContext((_: Context.Context<never>) => services)
    )
  } satisfies Actor
})
