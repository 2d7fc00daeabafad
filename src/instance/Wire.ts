/**
 * The service's wires to one live VMM: the control session, the agent channel, the watch on its death. An actor has one
 * Wire for the VMM that its state owns, and closes it when the state owns another or none. Closing never touches the VMM.
 *
 *   attach ──► session ──► events ──► GuestEnded
 *      └─ exit watch ─────────────► GuestEnded (vmm-died)
 *   connect ──► agent hello ──► (after a restore: clock and entropy) ──► ready ──► closed ──► connect again
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { InstanceExit } from "../domain/Instance.ts"
import { Agent } from "../guest/Agent.ts"
import type { AgentSession } from "../guest/AgentSession.ts"
import { type GuestReport } from "../guest/GuestConfig.ts"
import { readReport } from "../guest/configDisk.ts"
import { type AgentEndpoint, Vmm, VmmFault, VmmProcesses, type VmmRef, type VmmSession } from "../vmm/Vmm.ts"
import { exitFrom } from "./exit.ts"

/** Between two tries to reach a VMM or an agent; the guest needs seconds to boot under software emulation. */
const reconnectDelayMs = 250
/** Tries to attach before the session counts as lost: 250 ms apart, so about 5 s. */
const attachAttempts = 20

export interface Wire {
  readonly ref: VmmRef
  readonly session: Effect.Effect<VmmSession, VmmFault>
  /** The agent's channel while it is up. */
  readonly agent: () => Option.Option<AgentSession>
  /** The agent's channel, now or once it is up. Never ends where the guest does not answer. */
  readonly awaitAgent: Effect.Effect<AgentSession>
  /** Ends when the guest is off or the VMM is dead. */
  readonly guestOff: Effect.Effect<void>
  readonly close: Effect.Effect<void>
}

export interface WireEvents {
  /** `gone`: the VMM ended as well. */
  readonly guestEnded: (exit: InstanceExit, gone: boolean) => void
  readonly ready: (ready: boolean) => void
}

const isVmmFault = (cause: unknown): cause is VmmFault => cause instanceof VmmFault

/**
 * The agent's channel, life after life: hello, wake-up where it is due, ready, until it closes; then again. `changed` is
 * told of each channel that is up, and of its end.
 */
const keepChannel = Effect.fnUntraced(function* (
  endpoint: AgentEndpoint,
  restored: boolean,
  changed: (channel: Option.Option<AgentSession>) => void
) {
  const agents = yield* Agent
  let asleep = restored
  const once = Effect.gen(function* () {
    const agent = yield* agents.connect(endpoint)
    yield* agent.ready
    if (asleep) yield* agent.awaken
    asleep = false
    changed(Option.some(agent))
    yield* agent.closed
  }).pipe(Effect.ensuring(Effect.sync(() => changed(Option.none()))), Effect.scoped)
  yield* once.pipe(Effect.ignore, Effect.repeat(Schedule.spaced(reconnectDelayMs)))
})

/**
 * Connects to a VMM; the scope cuts the wires, as `close` does. `restored`: the guest ran before, maybe slept, so `ready`
 * waits until its clock and entropy are right.
 */
export const connect = Effect.fnUntraced(function* (
  ref: VmmRef,
  configDisk: string,
  restored: boolean,
  events: WireEvents
) {
  const vmm = yield* Vmm
  const processes = yield* VmmProcesses
  const scope = yield* Scope.fork(yield* Effect.scope)
  const session = yield* Deferred.make<VmmSession, VmmFault>()
  const off = yield* Deferred.make<void>()
  let channel: Option.Option<AgentSession> = Option.none()
  let arrival = yield* Deferred.make<AgentSession>()

  const report = (event: Parameters<typeof exitFrom>[0]) =>
    Effect.gen(function* () {
      const said = yield* readReport(configDisk).pipe(Effect.orElseSucceed(() => Option.none<GuestReport>()))
      const now = yield* Clock.currentTimeMillis
      yield* Deferred.succeed(off, undefined)
      events.guestEnded(exitFrom(event, said, now), event._tag === "VmmExited")
    })

  const watchExit = processes.exit(ref).pipe(Effect.flatMap((exit) => report({ _tag: "VmmExited", exit })))

  /** A guest that went off while nobody listened sends no event any more. */
  const reportIfOff = Effect.fnUntraced(function* (control: VmmSession) {
    const status = yield* control.status
    if (status._tag === "Off") yield* report({ _tag: "GuestOff", cause: "poweroff" })
    if (status._tag === "Panicked") yield* report({ _tag: "GuestPanicked" })
  })

  const watchSession = vmm.attach(ref).pipe(
    Effect.retry({ schedule: Schedule.spaced(reconnectDelayMs), times: attachAttempts }),
    Effect.tap((it) => Deferred.succeed(session, it)),
    // Events since the attach wait for their reader: none is missed while the status is asked for.
    Effect.tap((it) => (restored ? reportIfOff(it) : Effect.void)),
    Effect.flatMap((it) => Stream.runForEach(it.events, report)),
    Effect.tapCause((cause) => {
      const fault = Cause.squash(cause)
      return Deferred.fail(
        session,
        isVmmFault(fault)
          ? fault
          : new VmmFault({ operation: "attach", reason: "the VMM does not answer", cause: fault })
      )
    }),
    Scope.provide(scope),
    Effect.ignore
  )

  const watchAgent = Effect.flatMap(Deferred.await(session), ({ agent }) =>
    keepChannel(agent, restored, (it) => {
      channel = it
      if (Option.isNone(it)) return
      events.ready(true)
      Deferred.doneUnsafe(arrival, Effect.succeed(it.value))
      arrival = Deferred.makeUnsafe()
    })
  ).pipe(Effect.ignore)

  yield* Effect.forkIn(watchExit, scope)
  yield* Effect.forkIn(watchSession, scope)
  yield* Effect.forkIn(watchAgent, scope)
  return {
    ref,
    session: Deferred.await(session),
    agent: () => channel,
    awaitAgent: Effect.suspend(() =>
      Option.match(channel, { onNone: () => Deferred.await(arrival), onSome: Effect.succeed })
    ),
    guestOff: Deferred.await(off),
    close: Scope.close(scope, Exit.void)
  } satisfies Wire
})
