/**
 * A simulated guest: pure rules over a value, with time given in. Its memory is a clock of its own that only runs while
 * the guest does; a counter in it proves that a restore goes on at N+1, and what the guest will do to itself (exit,
 * panic, power off) is written in it as a fate, so that a snapshot carries that too.
 *
 *   Prelaunch ──boot──► Running ◄──resume / pause──► Paused
 *   Loading ──snapshot read──────────────────────────► Paused
 *   Running ──fate──► Off (reason) or Panicked         Running, Paused ──power off──► Off
 *   Off, Panicked ──boot──► Running, from nothing
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"

/** One step of the counter in the guest's memory, in guest milliseconds. */
export const counterStepMs = 100

/** How a guest ends by its own doing, or by its init's. All but Reset and PoweredOff leave a report. */
export const End = Schema.TaggedUnion({
  Exited: { code: Schema.Int },
  Signaled: { signal: Schema.Int },
  /** Init was asked to end the image's process and to power off. */
  Stopped: {},
  /** Init could not start the image's process. */
  Failed: { message: Schema.String },
  PoweredOff: {},
  Reset: {},
  Panicked: {}
})
export type End = typeof End.Type

export const Fate = Schema.Struct({ atMs: Schema.Finite, end: End })
export type Fate = typeof Fate.Type

/** A disk that the guest has mounted. */
export const Mount = Schema.Struct({ serial: Schema.String, path: Schema.String, readonly: Schema.Boolean })
export type Mount = typeof Mount.Type

/** What a snapshot holds. Times are guest milliseconds since its boot unless they say otherwise. */
export const Memory = Schema.Struct({
  ranMs: Schema.Finite,
  /** When init answers, with the image's process started. */
  readyAtMs: Schema.Finite,
  answered: Schema.Boolean,
  fate: Schema.NullOr(Fate),
  /** Neither the power button nor the agent's shutdown moves this guest. */
  deaf: Schema.Boolean,
  /** How far the guest's wall clock is behind the host's. */
  clockBehindMs: Schema.Finite,
  /** Stands for the state of the entropy pool: two guests with one value would draw the same numbers. */
  entropy: Schema.Finite,
  mounts: Schema.Array(Mount).pipe(Schema.withDecodingDefaultKey(Effect.succeed([])))
})
export type Memory = typeof Memory.Type

export const Guest = Schema.TaggedUnion({
  Prelaunch: {},
  Loading: {},
  /** `sinceMs`: host time (epoch) at which it began to run. */
  Running: { memory: Memory, sinceMs: Schema.Finite },
  Paused: { memory: Memory, sinceMs: Schema.Finite },
  Off: { end: Schema.NullOr(End) },
  Panicked: {}
})
export type Guest = typeof Guest.Type
export type Running = Extract<Guest, { readonly _tag: "Running" }>
export type Paused = Extract<Guest, { readonly _tag: "Paused" }>

/** Guest milliseconds since boot; 0 where there is no memory. */
export const ranMs = (guest: Guest, nowMs: number): number => {
  switch (guest._tag) {
    case "Running":
      return guest.memory.ranMs + Math.max(0, nowMs - guest.sinceMs)
    case "Paused":
      return guest.memory.ranMs
    default:
      return 0
  }
}

/** The counter in the guest's memory. */
export const counter = (guest: Guest, nowMs: number): number =>
  Math.floor(ranMs(guest, nowMs) / counterStepMs)

/** Init answers: only a guest that runs does. */
export const answers = (guest: Guest): boolean => guest._tag === "Running" && guest.memory.answered

/** How far the guest's wall clock is behind the host's: it stands still while the guest does. */
export const clockBehindMs = (guest: Guest, nowMs: number): number => {
  switch (guest._tag) {
    case "Running":
      return guest.memory.clockBehindMs
    case "Paused":
      return guest.memory.clockBehindMs + Math.max(0, nowMs - guest.sinceMs)
    default:
      return 0
  }
}

export const boot = (memory: Memory, nowMs: number): Running => ({ _tag: "Running", memory, sinceMs: nowMs })

export const pause = (guest: Running, nowMs: number): Paused => ({
  _tag: "Paused",
  memory: { ...guest.memory, ranMs: ranMs(guest, nowMs) },
  sinceMs: nowMs
})

export const resume = (guest: Paused, nowMs: number): Running => ({
  _tag: "Running",
  memory: { ...guest.memory, clockBehindMs: clockBehindMs(guest, nowMs) },
  sinceMs: nowMs
})

export const ended = (end: End): Guest =>
  end._tag === "Panicked" ? { _tag: "Panicked" } : { _tag: "Off", end }

/** The earlier fate wins: a guest ends once. */
export const hasten = (memory: Memory, fate: Fate): Memory =>
  memory.fate !== null && memory.fate.atMs <= fate.atMs ? memory : { ...memory, fate }

export const answer = (guest: Running): Running => ({
  ...guest,
  memory: { ...guest.memory, answered: true }
})

/** Sets the wall clock and stirs the entropy pool, as init does after a restore. */
export const awaken = (guest: Running, entropy: number): Running => ({
  ...guest,
  memory: { ...guest.memory, clockBehindMs: 0, entropy }
})

/** The same at the same path is one mount. */
export const mount = (guest: Running, it: Mount): Running => ({
  ...guest,
  memory: {
    ...guest.memory,
    mounts: [...guest.memory.mounts.filter(({ path }) => path !== it.path), it]
  }
})

export const unmount = (guest: Running, path: string): Running => ({
  ...guest,
  memory: { ...guest.memory, mounts: guest.memory.mounts.filter((it) => it.path !== path) }
})

/** What the guest has in its tree. */
export const mountsOf = (guest: Guest): ReadonlyArray<Mount> =>
  guest._tag === "Running" || guest._tag === "Paused" ? guest.memory.mounts : []

/** What a running guest does next of itself, and in how many milliseconds; null where nothing is ahead. */
export type Deed = { readonly _tag: "Answer" } | { readonly _tag: "End"; readonly end: End }

export const nextDeed = (
  guest: Guest,
  nowMs: number
): { readonly inMs: number; readonly deed: Deed } | null => {
  if (guest._tag !== "Running") return null
  const { fate, readyAtMs, answered } = guest.memory
  const ran = ranMs(guest, nowMs)
  const answer = answered ? null : { inMs: Math.max(0, readyAtMs - ran), deed: { _tag: "Answer" } as const }
  const end =
    fate === null
      ? null
      : { inMs: Math.max(0, fate.atMs - ran), deed: { _tag: "End", end: fate.end } as const }
  if (answer === null || end === null) return answer ?? end
  return readyAtMs <= (fate?.atMs ?? 0) ? answer : end
}
