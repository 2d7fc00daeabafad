/** What must be so of instances, whatever happened before: looked at now and then during a history, and at its end. */
import type { InstanceEvent } from "../../src/domain/Event.ts"
import type { InstanceId } from "../../src/domain/Ids.ts"
import type { Instance } from "../../src/domain/Instance.ts"
import { ledger, look } from "../../src/host/simulated/ledger.ts"
import type { SimulatedPlace } from "../support/simulatedService.ts"
import { servicePaths } from "../support/simulatedService.ts"

/** What was seen of an instance before: a guest that was not booted anew since has counted on. */
interface Seen {
  readonly view: Instance
  readonly counter: number
}

const isUp = (view: Instance): boolean =>
  (view.state === "Running" || view.state === "Paused") && view.transition === null

const sameLife = (before: Instance, now: Instance): boolean => before.created_at === now.created_at

/** Looks again and again; `look` gives what is wrong now. */
export const makeWatch = (place: SimulatedPlace) => {
  const seen = new Map<InstanceId, Seen>()
  const counterOf = (view: Instance) => look(place.world, view.id)?.counter ?? 0

  const since = (view: Instance): ReadonlyArray<string> => {
    const before = seen.get(view.id)
    if (before === undefined || !sameLife(before.view, view)) return []
    const shrunk = view.generation < before.view.generation
    const sameBoot = isUp(view) && isUp(before.view) && before.view.started_at === view.started_at
    // A guest may end unseen in a VMM that hangs; one that is off counts no more.
    const counts = look(place.world, view.id)?.state
    const back =
      (counts === "Running" || counts === "Paused") &&
      sameBoot &&
      view.started_at !== null &&
      counterOf(view) < before.counter
    const moved = before.view.network.ip !== view.network.ip || before.view.network.mac !== view.network.mac
    return [
      ...(shrunk
        ? [`${view.id} went back from generation ${before.view.generation} to ${view.generation}`]
        : []),
      ...(back ? [`${view.id} went back in time from ${before.counter} to ${counterOf(view)}`] : []),
      ...(moved ? [`${view.id} lost its address ${before.view.network.ip}`] : [])
    ]
  }

  const shared = (views: ReadonlyArray<Instance>): ReadonlyArray<string> => {
    const owners = new Map<string, InstanceId>()
    return views.flatMap(({ id, network }) =>
      [network.ip, network.mac, network.tap].flatMap((it) => {
        const owner = it === null ? undefined : owners.get(it)
        if (it !== null) owners.set(it, id)
        return owner === undefined ? [] : [`${id} and ${owner} share ${it}`]
      })
    )
  }

  return {
    look: (views: ReadonlyArray<Instance>): ReadonlyArray<string> => {
      const found = [...shared(views), ...views.flatMap(since)]
      seen.clear()
      for (const view of views) seen.set(view.id, { view, counter: counterOf(view) })
      return found
    }
  }
}

/** Instances that rest, just before the service goes down, with what no restart of it may change. */
export const resting = (
  views: ReadonlyArray<Instance>,
  except: ReadonlySet<InstanceId>
): ReadonlyMap<InstanceId, Instance> =>
  new Map(
    views
      .filter(({ id, transition }) => transition === null && !except.has(id))
      .map((view) => [view.id, view])
  )

/** A restart of the service disturbs nothing that rested. */
export const disturbed = (
  before: ReadonlyMap<InstanceId, Instance>,
  after: ReadonlyArray<Instance>
): ReadonlyArray<string> => {
  const now = new Map(after.map((view) => [view.id, view]))
  return [...before.values()].flatMap((was) => {
    const is = now.get(was.id)
    if (is === undefined) return [`${was.id} is gone after a restart of the service`]
    return is.state === was.state && is.vmm.pid === was.vmm.pid
      ? []
      : [`${was.id} was ${was.state} (${was.vmm.pid}) and is ${is.state} (${is.vmm.pid}) after a restart`]
  })
}

/** An instance at rest, with nothing failing any more. */
export const judge = ({ world, files }: SimulatedPlace, view: Instance): ReadonlyArray<string> => {
  const process = world.byId.get(view.id)
  const alive = view.state !== "Stopped" && view.state !== "Standby"
  const { tap } = view.network
  const snapshots = files.names(servicePaths.instance(view.id).snapshots)
  const want = (holds: boolean, problem: string) => (holds ? [] : [`${view.id} ${problem}`])
  return [
    ...want(view.transition === null, `is busy with ${view.transition} for ever`),
    ...want(alive === (process !== undefined), `is ${view.state} and its VMM is ${alive ? "gone" : "there"}`),
    ...want(view.vmm.pid === (process?.record.identity.pid ?? null), "shows another VMM than it has"),
    ...want(
      tap === null || alive === world.taps.has(tap),
      `is ${view.state} and its TAP is ${alive ? "gone" : "there"}`
    ),
    ...want(
      view.state !== "Standby" || snapshots.some((it) => it.endsWith("/manifest.json")),
      "is Standby without a complete snapshot"
    ),
    ...want(view.has_snapshot === (view.state === "Standby"), "tells a lie about its snapshot"),
    ...want(view.state === "Standby" || snapshots.length === 0, `is ${view.state} and keeps a snapshot`)
  ]
}

/** What is left when every instance was deleted. */
export const leftovers = ({ world, files }: SimulatedPlace): ReadonlyArray<string> => {
  const held = Object.entries(ledger(world)).flatMap(([what, it]) => {
    const amount = Array.isArray(it) ? it.length : it
    return amount === 0 ? [] : [`${amount} ${what} are left when every instance is gone`]
  })
  const names = [...files.names(servicePaths.instances), ...files.names(servicePaths.run)]
  return [
    ...held,
    ...(names.length === 0 ? [] : [`${names.length} files are left: ${names.slice(0, 3).join(", ")}`]),
    ...world.violations.map((it) => `violation: ${it}`)
  ]
}

/** Spans in which the disk took nothing: an event may be missing there, and only there. */
export type Outage = readonly [fromMs: number, toMs: number]

/** The event log: ids without gap, generations that grow, each change from where the one before led to, once. */
export const judgeEvents = (
  events: ReadonlyArray<InstanceEvent>,
  outages: ReadonlyArray<Outage>,
  restartsMs: ReadonlyArray<number>
): ReadonlyArray<string> => {
  const last = new Map<InstanceId, InstanceEvent>()
  const problems: Array<string> = []
  let id: number | null = null
  for (const event of events) {
    if (id !== null && event.id !== id + 1) problems.push(`event ${event.id} follows ${id}`)
    id = event.id
    const before = last.get(event.instance_id)
    if (event.type === "instance.deleted") last.delete(event.instance_id)
    else last.set(event.instance_id, event)
    if (before === undefined) continue
    const [from, to] = [Date.parse(before.time), Date.parse(event.time)]
    const lost = outages.some(([begin, end]) => begin <= to && end >= from)
    if (event.type === "instance.created" && !lost) problems.push(`event ${event.id}: created twice`)
    if (event.type !== "instance.changed") continue
    const name = `event ${event.id} of ${event.instance_id}`
    if (event.generation < before.generation) problems.push(`${name}: its generation shrinks`)
    if (event.from !== null && event.from !== before.to && !lost)
      problems.push(`${name}: from ${event.from}, but the one before led to ${before.to}`)
    const told = (it: InstanceEvent) =>
      JSON.stringify([it.generation, it.to, it.transition, it.ready, it.exit])
    // A service that is new asks each guest again whether it is ready, and tells the answer.
    const asked = restartsMs.some((at) => at >= from && at <= to)
    if (!asked && told(event) === told(before)) problems.push(`${name}: told twice`)
  }
  return problems
}

/** What the log says last of each instance is what the instance is. */
export const judgeLastEvents = (
  events: ReadonlyArray<InstanceEvent>,
  views: ReadonlyArray<Instance>,
  outages: ReadonlyArray<Outage>
): ReadonlyArray<string> => {
  const last = new Map<InstanceId, InstanceEvent>()
  for (const event of events) last.set(event.instance_id, event)
  return views.flatMap((view) => {
    const event = last.get(view.id)
    // What the full disk did not take is told at the next change, or at the next start.
    const lost = outages.some(([, end]) => event === undefined || end >= Date.parse(event.time))
    if (lost || (event?.to === view.state && event.transition === view.transition)) return []
    return [`${view.id} is ${view.state} and its last event says ${event?.to} ${event?.transition}`]
  })
}
