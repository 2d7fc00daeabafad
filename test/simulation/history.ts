/**
 * One seeded history: many instances, random verbs, random faults, the service killed now and then, all in virtual time.
 * The same seed gives the same history, to the letter; `npm run replay -- SEED` prints it.
 */
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as TestClock from "effect/testing/TestClock"
import { InstanceId } from "../../src/domain/Ids.ts"
import type { Instance, RestartPolicy, Verb } from "../../src/domain/Instance.ts"
import { type Probabilities, realLatency } from "../../src/host/simulated/FaultPlan.ts"
import * as incidents from "../../src/host/simulated/incidents.ts"
import { ledger } from "../../src/host/simulated/ledger.ts"
import {
  makePlace,
  request,
  type SimulatedPlace,
  type SimulatedService
} from "../support/simulatedService.ts"

export interface HistoryOptions {
  readonly seed: number
  readonly instances: number
  readonly steps: number
}

export interface History {
  readonly lines: ReadonlyArray<string>
  readonly problems: ReadonlyArray<string>
  readonly outcomes: ReadonlyMap<string, number>
  readonly services: number
}

/** mulberry32: small, seeded, the same everywhere. */
const generator = (seed: number) => {
  let state = seed >>> 0
  const next = (): number => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296
  }
  const below = (bound: number): number => Math.floor(next() * bound)
  const pick = <A>(items: readonly [A, ...ReadonlyArray<A>]): A => items[below(items.length)] ?? items[0]
  return { next, below, pick }
}

const faults: Probabilities = { spawn: 0.03, boot: 0.02, pause: 0.03, resume: 0.03, snapshot: 0.05 }
const verbs = [
  "start",
  "start",
  "pause",
  "resume",
  "resume",
  "shutdown",
  "stop",
  "standby",
  "standby",
  "restore",
  "restore"
] as const satisfies ReadonlyArray<Exclude<Verb, "delete">>
const policies = ["never", "on-failure", "always"] as const satisfies ReadonlyArray<RestartPolicy>
/** How long everything may take to come to rest once nobody asks and nothing fails any more, in virtual time. */
const restWithinMs = 900_000
const tickMs = 500

interface Run {
  readonly place: SimulatedPlace
  readonly random: ReturnType<typeof generator>
  readonly options: HistoryOptions
  readonly lines: Array<string>
  readonly problems: Array<string>
  readonly outcomes: Map<string, number>
  service: SimulatedService
  services: number
  fibers: Array<Fiber.Fiber<void>>
}

const count = (run: Run, what: string) => run.outcomes.set(what, (run.outcomes.get(what) ?? 0) + 1)

/** Forks a request, as a client would, and writes down how it ended. */
const ask = <A>(run: Run, step: number, what: string, effect: Effect.Effect<A, { readonly _tag: string }>) =>
  Effect.forkChild(
    effect.pipe(
      Effect.match({ onFailure: (problem) => problem._tag, onSuccess: () => "ok" }),
      Effect.map((outcome) => {
        run.lines.push(`${step} ${what}: ${outcome}`)
        count(run, `${what.split(" ")[0]} ${outcome}`)
      })
    )
  ).pipe(Effect.map((fiber) => void run.fibers.push(fiber)))

const startService = Effect.fnUntraced(function* (place: SimulatedPlace) {
  const starting = yield* Effect.forkChild(place.start)
  while (starting.pollUnsafe() === undefined) yield* TestClock.adjust(tickMs)
  return yield* Fiber.join(starting)
})

const restart = Effect.fnUntraced(function* (run: Run, step: number, how: "kill" | "stop") {
  yield* run.service[how]
  yield* Effect.forEach(run.fibers, Fiber.interrupt, { discard: true })
  run.fibers = []
  run.service = yield* startService(run.place)
  run.services++
  run.lines.push(`${step} service ${how}`)
})

const disturb = (run: Run, id: InstanceId) => {
  const { world } = run.place
  const what = run.random.below(4)
  if (what === 0) return incidents.crashVmm(world, id)
  if (what === 1) return incidents.guestPanics(world, id)
  if (what === 2) return incidents.guestPowersOff(world, id)
  return incidents.guestExits(world, id, run.random.below(2))
}

const oneStep = Effect.fnUntraced(function* (run: Run, step: number) {
  const { random, options } = run
  const { instances } = run.service
  const name = `vm-${random.below(options.instances)}`
  const id = InstanceId.make(name)
  const dice = random.next()
  if (dice < 0.3) {
    const more = { restart_policy: random.pick(policies), start: random.next() < 0.9 }
    yield* ask(run, step, `create ${name}`, instances.create(request(name, more)))
  } else if (dice < 0.82) {
    const verb = random.pick(verbs)
    const given = { discardSnapshot: random.next() < 0.3, resume: random.next() < 0.7 }
    yield* ask(run, step, `${verb} ${name}`, instances.command(id, verb, given))
  } else if (dice < 0.9) {
    yield* ask(run, step, `delete ${name}`, instances.remove(id))
  } else if (dice < 0.997) {
    if (disturb(run, id)) run.lines.push(`${step} disturbed ${name}`)
  } else {
    yield* restart(run, step, random.next() < 0.8 ? "kill" : "stop")
  }
  yield* TestClock.adjust(random.below(tickMs))
})

/** What must be so of an instance at rest, whatever happened before. */
const judge = (run: Run, view: Instance): ReadonlyArray<string> => {
  const { world, files } = run.place
  const process = world.byId.get(view.id)
  const alive = view.state !== "Stopped" && view.state !== "Standby"
  const tap = view.network.tap
  const snapshots = files.names().filter((it) => it.startsWith(`/data/instances/${view.id}/snapshot/`))
  return [
    ...(view.transition === null ? [] : [`is busy with ${view.transition} for ever`]),
    ...(alive === (process !== undefined)
      ? []
      : [`is ${view.state} and its VMM is ${alive ? "gone" : "there"}`]),
    ...(tap === null || alive === world.taps.has(tap)
      ? []
      : [`is ${view.state} and its TAP is ${alive ? "gone" : "there"}`]),
    ...(view.state === "Standby" && !snapshots.some((it) => it.endsWith("/manifest.json"))
      ? ["is Standby without a complete snapshot"]
      : []),
    ...(view.state !== "Standby" && snapshots.length > 0 ? [`is ${view.state} and keeps a snapshot`] : [])
  ].map((problem) => `${view.id} ${problem}`)
}

const passTimeUntil = Effect.fnUntraced(function* (done: () => boolean) {
  for (let passed = 0; passed < restWithinMs && !done(); passed += tickMs) yield* TestClock.adjust(tickMs)
})

/** No more faults: everything comes to rest; what is there is judged; everything goes; nothing is left. */
const settle = Effect.fnUntraced(function* (run: Run) {
  const { place } = run
  place.world.plan.calm()
  yield* passTimeUntil(() => run.fibers.every((it) => it.pollUnsafe() !== undefined))
  const hanging = run.fibers.filter((it) => it.pollUnsafe() === undefined).length
  if (hanging > 0) run.problems.push(`${hanging} requests were never answered`)
  let views: ReadonlyArray<Instance> = []
  for (let passed = 0; passed < restWithinMs; passed += tickMs) {
    views = yield* run.service.instances.list({})
    if (views.every((view) => view.transition === null)) break
    yield* TestClock.adjust(tickMs)
  }
  run.problems.push(...views.flatMap((view) => judge(run, view)))
  for (const view of views) run.lines.push(`end ${view.id} ${view.state} ${view.generation} ${view.restarts}`)
  run.fibers = []
  for (const view of views)
    yield* ask(run, run.options.steps, `delete ${view.id}`, run.service.instances.remove(view.id))
  yield* passTimeUntil(() => run.fibers.every((it) => it.pollUnsafe() !== undefined))
  const left = ledger(place.world)
  for (const [what, held] of Object.entries(left)) {
    const amount = Array.isArray(held) ? held.length : held
    if (amount !== 0) run.problems.push(`${amount} ${what} are left when every instance is gone`)
  }
  const files = place.files
    .names()
    .filter((it) => it.startsWith("/data/instances/") || it.startsWith("/run/"))
  if (files.length > 0) run.problems.push(`${files.length} files are left: ${files.slice(0, 3).join(", ")}`)
  yield* run.service.stop
})

/** Lives one history through. */
export const live = Effect.fnUntraced(function* (options: HistoryOptions) {
  const place = yield* makePlace({ seed: options.seed, latencies: realLatency, faults })
  const run: Run = {
    place,
    random: generator(options.seed),
    options,
    lines: [],
    problems: [],
    outcomes: new Map(),
    service: yield* startService(place),
    services: 1,
    fibers: []
  }
  for (let step = 0; step < options.steps; step++) {
    yield* oneStep(run, step)
    run.fibers = run.fibers.filter((it) => it.pollUnsafe() === undefined)
  }
  yield* settle(run)
  const { lines, problems, outcomes, services } = run
  return { lines, problems, outcomes, services } satisfies History
})
