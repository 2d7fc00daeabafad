/**
 * How long the operations of a simulated host take, and which of them fail. Every draw is a hash of (seed, instance,
 * operation, how many draws that instance had before): one seed gives one history per instance, whatever the others do
 * and however real I/O interleaves.
 *
 * An operation passes three phases, and may fail or hang at each:
 *
 *   start ──(first half of its effect)──► middle ──(latency, second half)──► end ──► answer
 *
 * A failure at `end` is an effect that took place and an answer that says it did not.
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Record from "effect/Record"

/** `guestBoot` and `guestEnd` are the guest's own: its way to init's answer, and its orderly end after it was asked. */
export const operations = [
  "spawn",
  "restore",
  "attach",
  "boot",
  "guestBoot",
  "guestEnd",
  "pause",
  "resume",
  "powerButton",
  "powerOff",
  "quit",
  "snapshot",
  "resizeMemory",
  "addDisk",
  "removeDisk",
  "resizeDisk",
  "kill",
  "agentConnect",
  "agentReady",
  "agentShutdown",
  "agentAwaken",
  "agentSync",
  "agentMount",
  "agentUnmount",
  "agentGrow",
  "agentExec",
  "agentTransfer",
  "tapAttach",
  "tapPin",
  "tapDetach",
  "tapReconcile"
] as const
export type Operation = (typeof operations)[number]

export type Phase = "start" | "middle" | "end"

/** Uniform between the two, in milliseconds; one in a hundred takes `tailFactor` times as long. */
export interface Latency {
  readonly minMs: number
  readonly maxMs: number
}
export type Latencies = Readonly<Record<Operation, Latency>>
export type Probabilities = Readonly<Partial<Record<Operation, number>>>

const tailProbability = 0.01
const tailFactor = 5

export const between = (minMs: number, maxMs: number): Latency => ({ minMs, maxMs })

/**
 * About what QEMU 7.2 on q35 took for a guest of 512 MiB on two slow cores (spawn, snapshot, restore, hot plug measured;
 * the rest estimated), and a guest boot as with hardware virtualization.
 */
export const realLatency: Latencies = {
  spawn: between(40, 120),
  restore: between(80, 450),
  attach: between(1, 5),
  boot: between(1, 8),
  guestBoot: between(280, 480),
  guestEnd: between(80, 250),
  pause: between(1, 5),
  resume: between(1, 5),
  powerButton: between(1, 3),
  powerOff: between(1, 10),
  quit: between(2, 20),
  snapshot: between(110, 300),
  resizeMemory: between(50, 150),
  addDisk: between(60, 120),
  removeDisk: between(80, 150),
  resizeDisk: between(1, 5),
  kill: between(5, 40),
  agentConnect: between(1, 5),
  agentReady: between(1, 3),
  agentShutdown: between(1, 5),
  agentAwaken: between(2, 20),
  agentSync: between(2, 30),
  agentMount: between(5, 40),
  agentUnmount: between(5, 40),
  agentGrow: between(5, 60),
  agentExec: between(2, 15),
  agentTransfer: between(2, 15),
  tapAttach: between(5, 20),
  tapPin: between(5, 20),
  tapDetach: between(5, 30),
  tapReconcile: between(10, 60)
}

/** No time at all: an operation still gives way to other fibers between its halves. */
export const noLatency: Latencies = Record.map(realLatency, () => between(0, 0))

/** FNV-1a with the finish of MurmurHash3: every bit of the text moves every bit of the number. */
const hash = (text: string): number => {
  let value = 0x811c9dc5
  for (let at = 0; at < text.length; at += 1) value = Math.imul(value ^ text.charCodeAt(at), 0x01000193)
  value = Math.imul(value ^ (value >>> 16), 0x85ebca6b)
  value = Math.imul(value ^ (value >>> 13), 0xc2b2ae35)
  return (value ^ (value >>> 16)) >>> 0
}

/** An operation that was told to hang: `reached` ends when it does, `release` lets it go on. */
export interface Hang {
  readonly reached: Deferred.Deferred<void>
  readonly release: Deferred.Deferred<void>
}

export type Outcome =
  | { readonly _tag: "Fail"; readonly reason: string }
  | { readonly _tag: "Hang"; readonly hang: Hang }

/** What was decided for one operation when it began. */
export interface Course {
  readonly latencyMs: number
  readonly fault: { readonly phase: Phase; readonly outcome: Outcome } | null
}

export interface Script {
  /** Only for this instance (or TAP owner); any where it is not given. */
  readonly id?: string
  /** `middle` where it is not given. */
  readonly phase?: Phase
  readonly reason?: string
  /** For how many operations; 1 where it is not given. */
  readonly times?: number
}

/** One boundary of one operation: what a kill matrix enumerates. */
export interface Step {
  readonly operation: Operation
  readonly id: string
  readonly phase: Phase
}

export interface FaultPlan {
  readonly seed: number
  /** Draws in [0, 1) for one instance. */
  readonly draw: (id: string, what: string) => number
  /** Only how long such an operation takes, in milliseconds. */
  readonly latencyMs: (operation: Operation, id: string) => number
  /** Decides the course of an operation that begins: a scripted fault first, then a random one. */
  readonly course: (operation: Operation, id: string) => Course
  readonly failNext: (operation: Operation, script?: Script) => void
  readonly hangNext: (operation: Operation, script?: Script) => Hang
  /** Forgets scripted and random faults; what hangs already stays so. */
  readonly calm: () => void
  /** Called at every boundary, before its fault: a test may kill the service or a VMM there. */
  onStep: (step: Step) => Effect.Effect<void>
}

export interface FaultPlanOptions {
  readonly seed?: number
  readonly latencies?: Latencies
  readonly faults?: Probabilities
  readonly onStep?: (step: Step) => Effect.Effect<void>
}

/** Instances whose draws are counted at once; beyond it the longest known starts over. */
const countedMax = 65_536

const phaseOf = (draw: number): Phase => (draw < 0.4 ? "start" : draw < 0.8 ? "middle" : "end")

interface Pending {
  readonly operation: Operation
  readonly id: string | undefined
  readonly phase: Phase
  readonly outcome: Outcome
  left: number
}

export const makeFaultPlan = (options: FaultPlanOptions = {}): FaultPlan => {
  const seed = options.seed ?? 1
  const latencies = options.latencies ?? noLatency
  let faults = options.faults ?? {}
  const scripts: Array<Pending> = []
  const counts = new Map<string, number>()

  const draw = (id: string, what: string): number => {
    const count = counts.get(id) ?? 0
    if (count === 0 && counts.size >= countedMax) {
      for (const oldest of counts.keys()) {
        counts.delete(oldest)
        break
      }
    }
    counts.set(id, count + 1)
    return hash(`${seed}/${id}/${what}/${count}`) / 2 ** 32
  }

  const latencyMs = (operation: Operation, id: string): number => {
    const { minMs, maxMs } = latencies[operation]
    if (maxMs === 0) return 0
    const drawn = draw(id, `${operation} latency`)
    const tail = draw(id, `${operation} tail`) < tailProbability ? tailFactor : 1
    return Math.round((minMs + drawn * (maxMs - minMs)) * tail)
  }

  const scripted = (operation: Operation, id: string): Course["fault"] => {
    const index = scripts.findIndex((it) => it.operation === operation && (it.id ?? id) === id)
    const found = scripts[index]
    if (found === undefined) return null
    found.left -= 1
    if (found.left === 0) scripts.splice(index, 1)
    return { phase: found.phase, outcome: found.outcome }
  }

  const random = (operation: Operation, id: string): Course["fault"] => {
    const probability = faults[operation] ?? 0
    if (probability === 0 || draw(id, `${operation} fault`) >= probability) return null
    const outcome = { _tag: "Fail", reason: "a simulated fault" } as const
    return { phase: phaseOf(draw(id, `${operation} phase`)), outcome }
  }

  const script = (operation: Operation, of: Script, outcome: Outcome): void =>
    void scripts.push({
      operation,
      id: of.id,
      phase: of.phase ?? "middle",
      outcome,
      left: of.times ?? 1
    })

  return {
    seed,
    draw,
    latencyMs,
    course: (operation, id) => ({
      latencyMs: latencyMs(operation, id),
      fault: scripted(operation, id) ?? random(operation, id)
    }),
    failNext: (operation, of = {}) =>
      script(operation, of, { _tag: "Fail", reason: of.reason ?? "a scripted fault" }),
    hangNext: (operation, of = {}) => {
      const hang = { reached: Deferred.makeUnsafe<void>(), release: Deferred.makeUnsafe<void>() }
      script(operation, of, { _tag: "Hang", hang })
      return hang
    },
    calm: () => {
      faults = {}
      scripts.length = 0
    },
    onStep: options.onStep ?? (() => Effect.void)
  }
}
