/**
 * One seeded history: many instances, random verbs, random faults, the service killed now and then, all in virtual time.
 * The same seed gives the same history, to the letter; `npm run replay -- SEED` prints it.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/testing/TestClock"
import type { InstanceEvent } from "../../src/domain/Event.ts"
import { InstanceId } from "../../src/domain/Ids.ts"
import type { Instance, RestartPolicy, Verb } from "../../src/domain/Instance.ts"
import { type Probabilities, realLatency } from "../../src/host/simulated/FaultPlan.ts"
import * as incidents from "../../src/host/simulated/incidents.ts"
import {
  makePlace,
  request,
  type SimulatedPlace,
  type SimulatedService
} from "../support/simulatedService.ts"
import {
  disturbed,
  judge,
  judgeEvents,
  judgeLastEvents,
  leftovers,
  makeWatch,
  type Outage,
  resting
} from "./promises.ts"
import { generator, type Random } from "./random.ts"

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

const faults: Probabilities = {
  spawn: 0.03,
  boot: 0.02,
  pause: 0.03,
  resume: 0.03,
  snapshot: 0.05,
  restore: 0.05,
  tapAttach: 0.01,
  tapDetach: 0.01,
  quit: 0.05
}
/**
 * What may hang for good, before it does anything: a monitor's socket that never answers, to be given up at the deadline
 * of its work. A call that did its work and hangs then is a driver's to bound.
 */
const hanging = ["pause", "resume", "boot", "snapshot", "powerOff", "attach", "agentShutdown"] as const
/** What a disk does that takes nothing: it is full, or its fsync fails. */
const outageCodes = ["ENOSPC", "EIO"] as const
const outageMaxSteps = 12
/** Between two looks at everything, in steps. */
const lookEvery = 100
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
const recordedWithinMs = 2_000

interface Run {
  readonly place: SimulatedPlace
  readonly random: Random
  readonly watch: ReturnType<typeof makeWatch>
  readonly outages: Array<Outage>
  readonly restartsMs: Array<number>
  /** Instances whose VMM is told not to answer once, now or later: what their guest then does is a guess until it is asked. */
  readonly hung: Set<InstanceId>
  /** The step at which the disk takes writes again, and when it stopped; null while it does. */
  outage: { readonly until: number; readonly sinceMs: number } | null
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
  // A disk that takes nothing lets no service start; that it goes on from there is another test's.
  if (run.outage !== null) yield* endOutage(run)
  // What an outage kept from being recorded was answered so, and is recorded soon after it.
  yield* TestClock.adjust(recordedWithinMs)
  const before = resting(yield* run.service.instances.list({}), run.hung)
  yield* run.service[how]
  run.restartsMs.push(yield* Clock.currentTimeMillis)
  yield* Effect.forEach(run.fibers, Fiber.interrupt, { discard: true })
  run.fibers = []
  run.service = yield* startService(run.place)
  run.services++
  run.problems.push(...disturbed(before, yield* run.service.instances.list({})))
  run.lines.push(`${step} service ${how}`)
})

const beginOutage = Effect.fnUntraced(function* (run: Run, step: number) {
  run.place.files.failing = run.random.pick(outageCodes)
  run.outage = {
    until: step + 1 + run.random.below(outageMaxSteps),
    sinceMs: yield* Clock.currentTimeMillis
  }
  run.lines.push(`${step} disk ${run.place.files.failing}`)
})

const endOutage = Effect.fnUntraced(function* (run: Run) {
  if (run.outage === null) return
  run.outages.push([run.outage.sinceMs, yield* Clock.currentTimeMillis])
  run.outage = null
  run.place.files.failing = null
})

/** What befalls one instance; false where there was nothing for it to befall. */
const disturb = (run: Run, id: InstanceId): boolean => {
  const { world } = run.place
  const { plan } = world
  switch (run.random.below(7)) {
    case 0:
      return incidents.crashVmm(world, id)
    case 1:
      return incidents.guestPanics(world, id)
    case 2:
      return incidents.guestPowersOff(world, id)
    case 3:
      return incidents.freezeVmm(world, id)
    case 4:
      plan.failNext("tapAttach", { id, reason: "device or resource busy" })
      return true
    case 5:
      run.hung.add(id)
      plan.hangNext(run.random.pick(hanging), { id, phase: "start" })
      return true
    default:
      return incidents.guestExits(world, id, run.random.below(2))
  }
}

const oneStep = Effect.fnUntraced(function* (run: Run, step: number) {
  const { random, options } = run
  if (run.outage !== null && step >= run.outage.until) yield* endOutage(run)
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
  } else if (dice < 0.905) {
    if (run.outage === null) yield* beginOutage(run, step)
  } else if (dice < 0.997) {
    if (disturb(run, id)) run.lines.push(`${step} disturbed ${name}`)
  } else {
    yield* restart(run, step, random.next() < 0.8 ? "kill" : "stop")
  }
  yield* TestClock.adjust(random.below(tickMs))
  if (step % lookEvery === 0) run.problems.push(...run.watch.look(yield* instances.list({})))
})

/** The whole log, as a reader gets it who was never there. */
const eventsOf = ({ service }: Run) =>
  Effect.gen(function* () {
    const events: Array<InstanceEvent> = []
    const reading = yield* Effect.forkChild(
      Stream.runForEach(service.events.read(Option.some(0)), (event) => Effect.sync(() => events.push(event)))
    )
    yield* TestClock.adjust(1)
    yield* Fiber.interrupt(reading)
    return events
  })

const passTimeUntil = Effect.fnUntraced(function* (done: () => boolean) {
  for (let passed = 0; passed < restWithinMs && !done(); passed += tickMs) yield* TestClock.adjust(tickMs)
})

/** No more faults: everything comes to rest; what is there is judged; everything goes; nothing is left. */
const settle = Effect.fnUntraced(function* (run: Run) {
  const { place } = run
  place.world.plan.calm()
  yield* endOutage(run)
  yield* passTimeUntil(() => run.fibers.every((it) => it.pollUnsafe() !== undefined))
  const hanging = run.fibers.filter((it) => it.pollUnsafe() === undefined).length
  if (hanging > 0) run.problems.push(`${hanging} requests were never answered`)
  let views: ReadonlyArray<Instance> = []
  for (let passed = 0; passed < restWithinMs; passed += tickMs) {
    views = yield* run.service.instances.list({})
    if (views.every((view) => view.transition === null)) break
    yield* TestClock.adjust(tickMs)
  }
  run.problems.push(...run.watch.look(views), ...views.flatMap((view) => judge(place, view)))
  const events = yield* eventsOf(run)
  run.problems.push(
    ...judgeEvents(events, run.outages, run.restartsMs),
    ...judgeLastEvents(events, views, run.outages)
  )
  for (const view of views) run.lines.push(`end ${view.id} ${view.state} ${view.generation} ${view.restarts}`)
  run.fibers = []
  for (const view of views)
    yield* ask(run, run.options.steps, `delete ${view.id}`, run.service.instances.remove(view.id))
  yield* passTimeUntil(() => run.fibers.every((it) => it.pollUnsafe() !== undefined))
  run.problems.push(...leftovers(place))
  yield* run.service.stop
})

/** Lives one history through. */
export const live = Effect.fnUntraced(function* (options: HistoryOptions) {
  const place = yield* makePlace({ seed: options.seed, latencies: realLatency, faults })
  const run: Run = {
    place,
    random: generator(options.seed),
    watch: makeWatch(place),
    outages: [],
    restartsMs: [],
    hung: new Set(),
    outage: null,
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
