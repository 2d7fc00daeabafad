/** What happens to instances, counted. Labels come from closed lists. */
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import { ExitReason, RestartPolicy } from "../domain/Instance.ts"
import { family } from "../host/Measure.ts"

const counter = (name: string, description: string) =>
  family(Metric.counter(name, { description, incremental: true }))

/** Why a VMM process ended: the guest's own end, or what a client asked for. */
export type VmmExitReason = (typeof vmmExitReasons)[number]
const vmmExitReasons = [...ExitReason.literals, "standby", "deleted"] as const
type Leftover = (typeof leftovers)[number]
const leftovers = ["vmm", "tap", "directory"] as const

const restarts = counter("dataplane_restarts_total", "Restarts by restart policy.")
const vmmExits = counter("dataplane_vmm_exits_total", "Ends of VMM processes, by reason.")
const reconciled = counter(
  "dataplane_reconciled_leftovers_total",
  "What nothing owned and a start of the service removed."
)

export const countRestart = (policy: RestartPolicy) => Metric.update(restarts({ policy }), 1)
export const countVmmExit = (reason: VmmExitReason) => Metric.update(vmmExits({ reason }), 1)
export const countLeftovers = (kind: Leftover, count: number) => Metric.update(reconciled({ kind }), count)

/** Every series at zero, so that the first increase is one that a rate sees. */
export const registerCounters: Effect.Effect<void> = Effect.all(
  [
    ...RestartPolicy.literals.map((policy) => Metric.update(restarts({ policy }), 0)),
    ...vmmExitReasons.map((reason) => Metric.update(vmmExits({ reason }), 0)),
    ...leftovers.map((kind) => countLeftovers(kind, 0))
  ],
  { discard: true }
)
