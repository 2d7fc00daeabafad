/** After the recovery: what the contract promises (§6), looked at from outside of the service. */
import type { Instance } from "../../src/domain/Instance.ts"
import { volumeSerial } from "../../src/host/volumeSerial.ts"
import { type Ground, type LiveVmm, surveyFiles, type Survey } from "./ground.ts"
import { type Scenario, target } from "./scenarios.ts"
import type { Victim } from "./Victim.ts"

/** What was there before the verb. */
export interface Before {
  readonly views: ReadonlyArray<Instance>
  readonly ground: Ground
}

const hasVmm = (view: Instance): boolean => view.state !== "Stopped" && view.state !== "Standby"

const vmmOf = (ground: Ground, id: string): LiveVmm | undefined => ground.vmms.find((it) => it.id === id)

const unique = (values: ReadonlyArray<string>): boolean => new Set(values).size === values.length

/** Nothing on the host without an instance that owns it, nothing missing that an instance needs. */
export const checkLeftovers = (
  dataDir: string,
  pid: number,
  views: ReadonlyArray<Instance>,
  ground: Ground
): ReadonlyArray<string> => {
  const files = surveyFiles(dataDir)
  // What the service that is alive writes just now is not left over.
  const unfinished = files.temporary.filter((name) => !name.endsWith(`.tmp-${pid}`))
  const ids = views.map((view): string => view.id)
  const up = views.filter(hasVmm)
  const want = (holds: boolean, problem: string) => (holds ? [] : [problem])
  const same = (left: ReadonlyArray<string>, right: ReadonlyArray<string>) =>
    JSON.stringify([...left].toSorted()) === JSON.stringify([...right].toSorted())
  const vmms = ground.vmms.map(({ id, pid }) => `${id} ${pid}`)
  const shown = up.map((view) => `${view.id} ${view.vmm.pid}`)
  const taps = up.flatMap((view) => view.network.tap ?? [])
  const standby = views.filter((view) => view.state === "Standby").map((view): string => view.id)
  const disks = ground.vmms.flatMap(({ id, volumes }) => (volumes ?? []).map((serial) => `${id} ${serial}`))
  const held = up.flatMap((view) =>
    vmmOf(ground, view.id)?.volumes === null
      ? []
      : view.volumes.map((it) => `${view.id} ${volumeSerial(it.volume_id)}`)
  )
  return [
    ...want(same(disks, held), `disks of volumes: ${disks.join(", ")}; the instances say ${held.join(", ")}`),
    ...want(same(vmms, shown), `VMMs: ${vmms.join(", ")}; the instances say ${shown.join(", ")}`),
    ...want(same(ground.taps, taps), `TAPs: ${ground.taps.join(", ")}; the instances say ${taps.join(", ")}`),
    ...want(same(files.instances, ids), `instance directories: ${files.instances.join(", ")}`),
    ...want(
      same(
        files.runDirectories,
        up.map((view) => view.id)
      ),
      `run directories: ${files.runDirectories.join(", ")}`
    ),
    ...want(
      same(
        files.snapshots.map((it) => it.id),
        standby
      ) && files.snapshots.every((it) => it.complete),
      `snapshots: ${JSON.stringify(files.snapshots)}`
    ),
    ...want(unfinished.length === 0, `unfinished files: ${unfinished.join(", ")}`),
    ...want(unique(views.flatMap((view) => view.network.ip ?? [])), "two instances share an address"),
    ...want(
      views.every((view) => view.has_snapshot === (view.state === "Standby")),
      "an instance tells a lie about its snapshot"
    )
  ]
}

/** The neighbours of the instance are as they were: same state, same VMM, same run of the same guest, same generation. */
const checkNeighbours = (
  before: Before,
  views: ReadonlyArray<Instance>,
  ground: Ground
): ReadonlyArray<string> =>
  before.views
    .filter((was) => was.id !== target)
    .flatMap((was) => {
      const is = views.find((view) => view.id === was.id)
      const same =
        is !== undefined &&
        is.state === was.state &&
        is.generation === was.generation &&
        is.vmm.pid === was.vmm.pid &&
        is.network.ip === was.network.ip &&
        vmmOf(ground, was.id)?.run === vmmOf(before.ground, was.id)?.run
      return same ? [] : [`the neighbour ${was.id} was disturbed: ${was.state}, now ${is?.state}`]
    })

const checkTarget = (
  scenario: Scenario,
  before: Before,
  views: ReadonlyArray<Instance>,
  ground: Ground
): ReadonlyArray<string> => {
  const was = before.views.find((view) => view.id === target)
  const is = views.find((view) => view.id === target)
  const state = is?.state ?? "gone"
  const want = (holds: boolean, problem: string) => (holds ? [] : [problem])
  const ranBefore = vmmOf(before.ground, target)?.ranMs ?? null
  const ranNow = vmmOf(ground, target)?.ranMs ?? null
  const kept =
    was?.started_at === is?.started_at && (ranBefore === null || ranNow === null || ranNow >= ranBefore)
  return [
    ...want(
      state === scenario.from || state === scenario.to,
      `it is ${state}, neither ${scenario.from} nor ${scenario.to}`
    ),
    ...want(!scenario.keepsGuest || kept, "the guest was started anew, or went back in time"),
    ...want(
      was === undefined || is === undefined || is.generation >= was.generation,
      "its generation went back"
    ),
    ...want(
      was === undefined || is === undefined || is.network.ip === was.network.ip,
      "it has another address"
    )
  ]
}

/** Looks at it all until nothing moved while it was looked at: an instance may restart by policy meanwhile. */
const looksMax = 5

export const check = async (
  victim: Victim,
  dataDir: string,
  survey: Survey,
  scenario: Scenario,
  before: Before
): Promise<ReadonlyArray<string>> => {
  for (let look = 1; ; look++) {
    const views = await victim.list()
    const ground = await survey(dataDir)
    const problems = [
      ...checkTarget(scenario, before, views, ground),
      ...checkNeighbours(before, views, ground),
      ...checkLeftovers(dataDir, victim.pid, views, ground)
    ]
    const settled = await victim.list()
    const moved = settled.some(
      (now) => now.generation !== views.find((view) => view.id === now.id)?.generation
    )
    if (!moved || look === looksMax) return problems
  }
}
