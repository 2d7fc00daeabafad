/**
 * Every verb with one fault at every boundary that it passes, in virtual time on files in memory: the boundaries come
 * from a run that nothing disturbs. The service lives on; what it answers, and what is left, is looked at.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as TestClock from "effect/testing/TestClock"
import { InstanceId } from "../../src/domain/Ids.ts"
import type { Instance, Verb } from "../../src/domain/Instance.ts"
import { noLatency } from "../../src/host/simulated/FaultPlan.ts"
import * as incidents from "../../src/host/simulated/incidents.ts"
import { look } from "../../src/host/simulated/ledger.ts"
import {
  makePlace,
  request,
  type SimulatedPlace,
  type SimulatedService
} from "../support/simulatedService.ts"
import { judge, leftovers } from "./promises.ts"

export const target = InstanceId.make("target")
const neighbour = InstanceId.make("neighbour")

type Ask = Exclude<Verb, "delete"> | "stop?discard"

export interface Course {
  readonly name: string
  readonly before: ReadonlyArray<Ask>
  readonly verb: Ask | "create" | "create start:false" | "delete" | "restart by policy"
}

export const courses: ReadonlyArray<Course> = [
  { name: "create", before: [], verb: "create" },
  { name: "create start:false", before: [], verb: "create start:false" },
  { name: "start", before: ["stop"], verb: "start" },
  { name: "pause", before: [], verb: "pause" },
  { name: "resume", before: ["pause"], verb: "resume" },
  { name: "shutdown", before: [], verb: "shutdown" },
  { name: "stop", before: [], verb: "stop" },
  { name: "stop ?discard", before: ["standby"], verb: "stop?discard" },
  { name: "standby", before: [], verb: "standby" },
  { name: "standby of a paused one", before: ["pause"], verb: "standby" },
  { name: "restore", before: ["standby"], verb: "restore" },
  { name: "delete", before: [], verb: "delete" },
  { name: "restart by policy", before: [], verb: "restart by policy" }
]

/** What happens at the boundary; `calm` takes it back once the verb is over. */
export interface Fault {
  readonly name: string
  readonly strike: (place: SimulatedPlace) => void
  readonly calm: (place: SimulatedPlace) => void
}

const files = (name: string, code: string): Fault => ({
  name,
  strike: ({ files: disk }) => void (disk.failing = code),
  calm: ({ files: disk }) => void (disk.failing = null)
})

export const vmmDies: Fault = {
  name: "the VMM is killed",
  strike: ({ world }) => void incidents.crashVmm(world, target),
  calm: () => undefined
}
export const vmmHangs: Fault = {
  name: "the VMM answers nothing any more",
  strike: ({ world }) => void incidents.freezeVmm(world, target),
  calm: () => undefined
}
export const diskFull: Fault = files("the disk is full", "ENOSPC")
export const fsyncFails: Fault = files("fsync fails", "EIO")
export const tapBusy: Fault = {
  name: "the TAP is busy",
  strike: ({ world }) =>
    world.plan.failNext("tapAttach", { id: target, phase: "start", reason: "device or resource busy" }),
  calm: ({ world }) => world.plan.calm()
}

const tickMs = 100
/** Virtual: the longest deadline of a piece of work (ten minutes) and then some. */
const answerTicks = 400
const slowAfterTicks = 50
const slowTickMs = 5_000
/** Virtual: five minutes, for an Ending that tries again and again. */
const settleTicks = 3_000

/** Lets virtual time pass until the effect ends; dies where it never does. */
const inTime = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<Exit.Exit<A, E>, never, R> =>
  Effect.gen(function* () {
    const fiber = yield* Effect.forkChild(effect)
    for (let tick = 0; fiber.pollUnsafe() === undefined; tick++) {
      if (tick === answerTicks) return yield* Effect.die(new Error("no answer, however long one waits"))
      // A deadline of minutes in small steps would be most of the test's time.
      yield* TestClock.adjust(tick < slowAfterTicks ? tickMs : slowTickMs)
    }
    return yield* Fiber.await(fiber)
  })

const perform = (
  service: SimulatedService,
  place: SimulatedPlace,
  verb: Course["verb"]
): Effect.Effect<void, { readonly _tag: string }> => {
  const { instances } = service
  switch (verb) {
    case "create":
      return Effect.asVoid(instances.create(request(target)))
    case "create start:false":
      return Effect.asVoid(instances.create(request(target, { start: false })))
    case "delete":
      return instances.remove(target)
    case "stop?discard":
      return Effect.asVoid(instances.command(target, "stop", { discardSnapshot: true }))
    case "restart by policy":
      return Effect.suspend(() => {
        incidents.guestExits(place.world, target, 1)
        return instances.get(target).pipe(
          Effect.delay("100 millis"),
          Effect.repeat({
            until: (view) => (view.restarts > 0 || view.state === "Stopped") && view.transition === null,
            times: 1_000
          }),
          Effect.asVoid
        )
      })
    default:
      return Effect.asVoid(instances.command(target, verb, {}))
  }
}

const enter = Effect.fnUntraced(function* (place: SimulatedPlace, course: Course) {
  const service = yield* place.start
  yield* inTime(service.instances.create(request(neighbour)))
  if (course.verb !== "create" && course.verb !== "create start:false")
    yield* inTime(service.instances.create(request(target, { restart_policy: policyOf(course) })))
  for (const verb of course.before) yield* inTime(perform(service, place, verb))
  return service
})

const policyOf = (course: Course) => (course.verb === "restart by policy" ? "always" : "never")

/** The boundaries that the verb passes, in order, when nothing disturbs it. */
export const boundariesOf = Effect.fnUntraced(function* (course: Course) {
  const passed: Array<string> = []
  const place = yield* makePlace({
    latencies: noLatency,
    boundary: (name) => Effect.sync(() => void passed.push(name))
  })
  const service = yield* enter(place, course)
  const from = passed.length
  yield* inTime(perform(service, place, course.verb))
  return passed.slice(from)
})

export interface Outcome {
  readonly boundary: string
  readonly answer: string
  readonly state: string
  readonly problems: ReadonlyArray<string>
}

const settled = (service: SimulatedService) =>
  Effect.gen(function* () {
    for (let tick = 0; tick < settleTicks; tick++) {
      const views = yield* service.instances.list({})
      if (views.every((view) => view.transition === null)) return views
      yield* TestClock.adjust(tickMs)
    }
    return yield* service.instances.list({})
  })

/** A standby that was cut off has the guest as it was, and so has every other verb that is about the guest's memory. */
const memoryLost = (course: Course, fault: Fault, was: Instance | undefined, is: Instance | undefined) => {
  const about = course.verb === "standby" || course.verb === "restore" || course.verb === "pause"
  if (!about || fault === vmmDies || fault === vmmHangs || was === undefined) return []
  const kept = is !== undefined && is.state !== "Stopped" && is.started_at === was.started_at
  return kept ? [] : [`the guest is lost: it was ${was.state} and is ${is?.state}`]
}

/** One verb, one fault at one boundary (counted within the verb). */
export const live = Effect.fnUntraced(function* (course: Course, fault: Fault, at: number) {
  let left = Number.POSITIVE_INFINITY
  let boundary = ""
  const place: SimulatedPlace = yield* makePlace({
    latencies: noLatency,
    boundary: (name) =>
      Effect.sync(() => {
        left -= 1
        if (left !== 0) return
        boundary = name
        fault.strike(place)
      })
  })
  const service = yield* enter(place, course)
  const [was] = (yield* service.instances.list({})).filter((view) => view.id === target)
  const near = look(place.world, neighbour)
  left = at + 1
  const exit = yield* inTime(perform(service, place, course.verb))
  fault.calm(place)
  // A VMM's death is seen a moment later, and what could not be recorded is within a second of the disk's recovery.
  yield* TestClock.adjust("2 seconds")
  const views = yield* settled(service)
  const is = views.find((view) => view.id === target)
  const far = look(place.world, neighbour)
  const problems = [
    ...views.flatMap((view) => judge(place, view)),
    ...memoryLost(course, fault, was, is),
    ...(far?.state === "Running" && far.counter >= (near?.counter ?? 0)
      ? []
      : ["the neighbour was disturbed"])
  ]
  // Another service finds the same: what is recorded is what is there.
  yield* service.kill
  const next = yield* inTime(place.start)
  if (Exit.isFailure(next))
    return { boundary, answer: "", state: "", problems: ["the service does not start"] }
  const again = yield* settled(next.value)
  const found = again.find((view) => view.id === target)
  if (found?.state !== is?.state)
    problems.push(`it was ${is?.state} and is ${found?.state} for the next service`)
  problems.push(...again.flatMap((view) => judge(place, view)))
  for (const view of again) yield* inTime(next.value.instances.remove(view.id))
  problems.push(...leftovers(place))
  yield* next.value.stop
  const answer = Exit.isSuccess(exit) ? "ok" : "refused"
  return { boundary, answer, state: is?.state ?? "gone", problems } satisfies Outcome
})
