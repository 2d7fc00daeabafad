/**
 * The kill matrix: for each verb, the boundaries that it passes are taken from a run that nothing disturbs; then, for
 * each of them, the service is killed with SIGKILL right there, started again, and the host is looked at.
 *
 *   neighbours, preparation ──► verb ──► killed at the boundary ──► started again ──► settled ──► checked ──► all deleted
 */
import * as fs from "node:fs"
import * as path from "node:path"
import * as Schema from "effect/Schema"
import { Volume } from "../../src/domain/Volume.ts"
import { layout } from "../../src/host/Paths.ts"
import { type Before, check, checkLeftovers } from "./check.ts"
import { type Survey, surveyFiles } from "./ground.ts"
import { type GuestKind, prepareNeighbours, type Scenario, target } from "./scenarios.ts"
import { type Stage, startVictim, type Victim } from "./Victim.ts"
import { sleep, within } from "./within.ts"

export interface Case {
  readonly scenario: Scenario
  /** `name#n`: the nth time that it comes by since the start of the service. */
  readonly boundary: string
}

export interface Verdict extends Case {
  readonly state: string
  readonly outcome: "finished" | "undone" | "broken"
  readonly problems: ReadonlyArray<string>
  /** From the start of the new process until it listens, and until no instance is in transition. */
  readonly startMs: number
  readonly recoveryMs: number
}

/** Where the cases take place. */
export interface Theatre {
  readonly command: ReadonlyArray<string>
  readonly env: Readonly<Record<string, string>>
  /** A DATA_DIR with an image and no instance; each case has a copy of its own. */
  readonly template: string
  readonly guest: GuestKind
  /** Ends when the case has the host for itself; the second part gives it back. */
  readonly stage: () => Promise<readonly [Stage, () => Promise<void>]>
}

/** A verb that waits for a guest takes its grace, a restart by policy its backoff. */
const deathTimeoutMs = 120_000
const settleTimeoutMs = 120_000
const settleEveryMs = 5

interface Place {
  readonly dataDir: string
  readonly survey: Survey
  readonly start: (more?: Readonly<Record<string, string>>) => Promise<Victim>
}

/** One case's own DATA_DIR, run directory and stage; all gone afterwards, with whatever still runs. */
const inPlace = async <A>(theatre: Theatre, body: (place: Place) => Promise<A>): Promise<A> => {
  const directory = fs.mkdtempSync(path.join(path.dirname(theatre.template), "case-"))
  const dataDir = path.join(directory, "data")
  fs.cpSync(theatre.template, dataDir, { recursive: true })
  const [stage, leave] = await theatre.stage()
  const started: Array<Victim> = []
  const start = async (more: Readonly<Record<string, string>> = {}) => {
    const env = { ...theatre.env, DATA_DIR: dataDir, ...more }
    const victim = await startVictim(theatre.command, env, directory, stage)
    started.push(victim)
    return victim
  }
  try {
    return await body({ dataDir, survey: stage.survey, start })
  } finally {
    for (const victim of started) await victim.signal("SIGKILL")
    await leave()
    fs.rmSync(layout(dataDir).run, { recursive: true, force: true })
    fs.rmSync(directory, { recursive: true, force: true })
  }
}

const prepare = async (
  theatre: Theatre,
  scenario: Scenario,
  { dataDir, survey }: Place,
  victim: Victim
): Promise<Before> => {
  await prepareNeighbours(victim, theatre.guest)
  await scenario.prepare(victim, theatre.guest)
  return { views: await victim.list(), ground: await survey(dataDir) }
}

/** The boundaries that the verb passes when nothing disturbs it, each with how often it came by before. */
export const casesOf = (theatre: Theatre, scenario: Scenario): Promise<ReadonlyArray<Case>> =>
  inPlace(theatre, async (place) => {
    const victim = await place.start({ DATAPLANE_TRACE_BOUNDARIES: "1" })
    await prepare(theatre, scenario, place, victim)
    const before = victim.boundaries().length
    await scenario.act(victim, theatre.guest)
    const counts = new Map<string, number>()
    const numbered = victim.boundaries().map((name) => {
      const count = (counts.get(name) ?? 0) + 1
      counts.set(name, count)
      return `${name}#${count}`
    })
    return numbered.slice(before).map((boundary) => ({ scenario, boundary }))
  })

const settled = async (victim: Victim, { awaits }: Scenario): Promise<void> => {
  for (const since = Date.now(); Date.now() - since < settleTimeoutMs; await sleep(settleEveryMs))
    if (
      (await victim.list()).every(
        (view) => view.transition === null && (view.id !== target || awaits === undefined || awaits(view))
      )
    )
      return
  throw new Error(`not settled within ${settleTimeoutMs} ms: ${JSON.stringify(await victim.list())}`)
}

const decodeVolumes = Schema.decodeUnknownSync(Schema.Array(Volume))

/** Everything deleted leaves nothing, and the service ends when it is asked to. */
const strike = async (victim: Victim, dataDir: string, survey: Survey): Promise<ReadonlyArray<string>> => {
  const views = await victim.list()
  const answers = await Promise.all(views.map(({ id }) => victim.request("DELETE", `/instances/${id}`)))
  const refused = answers.filter(({ status }) => status !== 204).map((it) => `DELETE: ${JSON.stringify(it)}`)
  const { body: volumes } = await victim.request("GET", "/volumes")
  for (const { id } of decodeVolumes(volumes)) {
    const { status, body } = await victim.request("DELETE", `/volumes/${id}`)
    if (status !== 204) refused.push(`DELETE of volume ${id}: ${JSON.stringify(body)}`)
  }
  refused.push(...surveyFiles(dataDir).volumes.map((name) => `when all is deleted: volume ${name}`))
  const left = checkLeftovers(dataDir, victim.pid, [], await survey(dataDir))
  const how = await victim.signal("SIGTERM")
  return [
    ...refused,
    ...left.map((it) => `when all is deleted: ${it}`),
    ...(how === 0 ? [] : [`SIGTERM ended it with ${how}`])
  ]
}

const broken = (it: Case, problem: string): Verdict => ({
  ...it,
  state: "?",
  outcome: "broken",
  problems: [problem],
  startMs: 0,
  recoveryMs: 0
})

/** One cell of the matrix. */
export const live = (theatre: Theatre, it: Case): Promise<Verdict> =>
  inPlace(theatre, async (place) => {
    const { scenario } = it
    const { dataDir, survey, start } = place
    const first = await start({ DATAPLANE_KILL_AT: it.boundary })
    const before = await prepare(theatre, scenario, place, first)
    // The verb's request dies with the service.
    const act = scenario.act(first, theatre.guest).then(
      () => undefined,
      () => undefined
    )
    const how = await within(deathTimeoutMs, first.ended, () => `the kill at ${it.boundary}`)
    await act
    if (how !== "SIGKILL") return broken(it, `the service ended with ${how}`)
    const began = performance.now()
    const second = await start()
    const startMs = performance.now() - began
    await settled(second, scenario)
    const recoveryMs = performance.now() - began
    const problems = await check(second, dataDir, survey, scenario, before)
    const state = (await second.list()).find((view) => view.id === target)?.state ?? "gone"
    const left = await strike(second, dataDir, survey)
    const all = [...problems, ...left]
    const ended = state === scenario.to ? "finished" : "undone"
    const verdict: Verdict = {
      ...it,
      state,
      outcome: all.length > 0 ? "broken" : ended,
      problems: all,
      startMs,
      recoveryMs
    }
    return verdict
  }).catch((cause: unknown) => broken(it, cause instanceof Error ? cause.message : String(cause)))

/** Runs the bodies, so many at once, in order of their start. */
export const atOnce = async <A, B>(
  width: number,
  items: ReadonlyArray<A>,
  body: (item: A) => Promise<B>
): Promise<ReadonlyArray<B>> => {
  const results: Array<B> = []
  const queue = [...items.entries()]
  const lane = async (): Promise<void> => {
    for (let next = queue.shift(); next !== undefined; next = queue.shift())
      results[next[0]] = await body(next[1])
  }
  await Promise.all(Array.from({ length: width }, lane))
  return results
}
