/**
 * Walks every state that the rules can reach, feeding every input that makes sense there, and collects the edges. States
 * are told apart by their label, which keeps what the rules look at and drops what they only carry (pids, times).
 */
import { timestamp, VolumeId } from "../../src/domain/Ids.ts"
import type { InstanceExit } from "../../src/domain/Instance.ts"
import { decide } from "../../src/instance/decide.ts"
import type { Decision, Input, Lifecycle, Probe, State } from "../../src/instance/Lifecycle.ts"
import { vmmOf, work } from "../../src/instance/Lifecycle.ts"

export const at = timestamp(0)
export const vmm = { pid: 100, start_time: "1", boot_id: "boot" }
export const otherVmm = { pid: 200, start_time: "2", boot_id: "boot" }

const exit = (reason: InstanceExit["reason"], code?: number): InstanceExit =>
  code === undefined ? { reason, at } : { reason, code, at }

export const label = (state: State): string => {
  switch (state._tag) {
    case "Standby":
    case "Snapshotting":
      return `${state._tag}(${state.snapshot.paused ? "paused" : "running"})`
    case "Unfreezing":
      return `Unfreezing(${state.snapshot.paused ? "paused" : "running"}${state.failure === null ? "" : ",failed"}${state.by === null ? "" : `,by ${state.by}`})`
    case "Launching":
      return `Launching(${state.verb}${state.boot ? "" : ",no boot"})`
    case "Booting":
      return `Booting(${state.verb})`
    case "Attaching":
      return `Attaching(${state.rest})`
    case "Detaching":
      return `Detaching(${state.rest}${state.force ? ",force" : ""}${state.undoes === null ? "" : ",undoes attach"})`
    case "Loading":
      return `Loading(${state.snapshot.paused ? "paused" : "running"}${state.resume ? ",resume" : ""})`
    case "Reviving":
      return `Reviving(${state.resume ? "resume" : "stay paused"})`
    case "Ending": {
      const { destination } = state
      switch (destination._tag) {
        case "Stopped":
          return `Ending(Stopped by ${destination.verb ?? "itself"}${destination.failure === null ? "" : ",failed"})`
        case "Standby":
          return `Ending(Standby ${destination.snapshot.paused ? "paused" : "running"}${destination.restoreNext ? ",restore next" : ""})`
        case "BackToStandby":
          return `Ending(BackToStandby ${destination.snapshot.paused ? "paused" : "running"}${destination.failure === null ? "" : ",failed"}${destination.by === null ? "" : `,by ${destination.by}`})`
        case "Gone":
          return `Ending(Gone${destination.failure === null ? "" : ",create failed"})`
        default:
          return `Ending(${destination._tag})`
      }
    }
    default:
      return state._tag
  }
}

const failure = { step: "step", reason: "reason" }

/** Commands, by name. */
export const commands: ReadonlyArray<readonly [string, Input]> = [
  ["start", { _tag: "Start" }],
  ["pause", { _tag: "Pause" }],
  ["resume", { _tag: "Resume" }],
  ["shutdown", { _tag: "Shutdown", at }],
  ["stop", { _tag: "Stop", discardSnapshot: false, at }],
  ["stop+discard", { _tag: "Stop", discardSnapshot: true, at }],
  ["standby", { _tag: "Standby" }],
  ["restore", { _tag: "Restore", resume: true }],
  ["restore,stay", { _tag: "Restore", resume: false }],
  ["delete", { _tag: "Delete" }]
]

/** The volume that the instance has from its creation on, and one that nobody has. */
export const heldVolume = VolumeId.make("held")
const freeVolume = { volume_id: VolumeId.make("free"), mount_path: "/free", readonly: false }

export const volumeCommands: ReadonlyArray<readonly [string, Input]> = [
  ["attach", { _tag: "Attach", volume: freeVolume }],
  ["detach", { _tag: "Detach", volume: heldVolume, force: false }],
  ["detach,force", { _tag: "Detach", volume: heldVolume, force: true }]
]
export const allCommands: ReadonlyArray<readonly [string, Input]> = [...commands, ...volumeCommands]

const probes: ReadonlyArray<readonly [string, Probe]> = (
  [
    ["gone", null, "none", false],
    ["gone,snapshot", null, "none", true],
    ["silent", vmm, "none", false],
    ["prelaunch", vmm, "prelaunch", false],
    ["running", vmm, "running", false],
    ["paused", vmm, "paused", false],
    ["paused,snapshot", vmm, "paused", true],
    ["off", vmm, "off", false]
  ] as const
).map(([name, it, status, snapshotComplete]) => [
  name,
  { vmm: it, status, snapshotComplete, exit: exit(it === null ? "vmm-died" : "guest-poweroff") }
])

/** Events that can come in this state: results only where work is under way, a guest's end only where there is a VMM. */
export const events = (lifecycle: Lifecycle): ReadonlyArray<readonly [string, Input]> => {
  const { epoch, state } = lifecycle
  const task = work(lifecycle)
  const results: ReadonlyArray<readonly [string, Input]> =
    task === null
      ? []
      : [
          task._tag === "Launch" || task._tag === "Load"
            ? ["spawned", { _tag: "Spawned", epoch, vmm }]
            : ["done", { _tag: "Done", epoch }],
          ["failed", { _tag: "Failed", epoch, failure, untouched: false, exit: exit("boot-failed") }],
          ...(task._tag === "Load" || task._tag === "Attach" || task._tag === "Detach"
            ? ([
                [
                  "failed,untouched",
                  { _tag: "Failed", epoch, failure, untouched: true, exit: exit("boot-failed") }
                ]
              ] as const)
            : [])
        ]
  const ends: ReadonlyArray<readonly [string, Input]> =
    vmmOf(state) === null
      ? []
      : [
          ["exits 0", { _tag: "GuestEnded", vmm, exit: exit("exited", 0), healthy: true, gone: false }],
          ["exits 1", { _tag: "GuestEnded", vmm, exit: exit("exited", 1), healthy: false, gone: false }],
          ["vmm dies", { _tag: "GuestEnded", vmm, exit: exit("vmm-died"), healthy: false, gone: true }]
        ]
  const observed = probes.map(([name, probe]) => [`found ${name}`, { _tag: "Observed", probe }] as const)
  return [...results, ...ends, ...observed]
}

export const initial = (policy: Lifecycle["policy"], boot: boolean): Lifecycle => ({
  epoch: 1,
  policy,
  attempt: 0,
  snapshots: 0,
  volumes: [{ volume_id: heldVolume, mount_path: "/held", readonly: false, phase: "held" }],
  state: { _tag: "Launching", verb: "create", boot }
})

export interface Edge {
  readonly from: string
  readonly input: string
  readonly answer: string
  readonly settled: string
}

const answer = (decision: Decision): string => {
  switch (decision._tag) {
    case "Accepted":
      return label(decision.next.state)
    case "Ignored":
      return "-"
    case "Joined":
      return `wait for ${decision.until}`
    case "Denied":
      return "denied"
  }
}

const settled = (decision: Decision): string =>
  decision._tag === "Accepted"
    ? decision.settle
        .map((it) => `${it.verb} ${it.outcome}${it.outcome === "cancelled" ? ` by ${it.by}` : ""}`)
        .join(", ")
    : ""

/** Every edge from the initial states on, breadth first, in a stable order; and one lifecycle for each state's label. */
export const explore = (policy: Lifecycle["policy"]) => {
  const seen = new Map<string, Lifecycle>()
  const edges: Array<Edge> = []
  const queue: Array<Lifecycle> = []
  const visit = (lifecycle: Lifecycle) => {
    const name = label(lifecycle.state)
    if (seen.has(name)) return
    seen.set(name, lifecycle)
    queue.push(lifecycle)
  }
  visit(initial(policy, true))
  visit(initial(policy, false))
  for (let next = queue.shift(); next !== undefined; next = queue.shift()) {
    for (const [input, value] of [...allCommands, ...events(next)]) {
      const decision = decide(next, value)
      edges.push({ from: label(next.state), input, answer: answer(decision), settled: settled(decision) })
      if (decision._tag === "Accepted") visit(decision.next)
    }
  }
  return { states: seen, edges }
}

/** By state: the input that leads nearer to the edge, and at its start the edge's own. */
export const wayTo = (edges: ReadonlyArray<Edge>, target: Edge): ReadonlyMap<string, string> => {
  const way = new Map([[target.from, target.input]])
  for (let before = 0; before < way.size;) {
    before = way.size
    for (const { from, input, answer } of edges) if (!way.has(from) && way.has(answer)) way.set(from, input)
  }
  return way
}

export const printTable = (edges: ReadonlyArray<Edge>): string => {
  const width = (pick: (edge: Edge) => string) => Math.max(...edges.map((edge) => pick(edge).length))
  const widths = [width((it) => it.from), width((it) => it.input), width((it) => it.answer)] as const
  return `${edges
    .map((it) =>
      `${it.from.padEnd(widths[0])}  ${it.input.padEnd(widths[1])}  ${it.answer.padEnd(widths[2])}  ${it.settled}`.trimEnd()
    )
    .join("\n")}\n`
}
