/**
 * The verbs of the matrix: how to bring an instance to where the verb starts, the verb, and where a kill in the middle of
 * it may leave the instance: what the verb leads to (finished) or where it came from (undone).
 */
import type { Instance, InstanceState } from "../../src/domain/Instance.ts"
import type { Victim } from "./Victim.ts"
import { sleep } from "./within.ts"

export const target = "target"

export interface Scenario {
  readonly name: string
  /** Ends when the verb can be asked. */
  readonly prepare: (victim: Victim, guest: GuestKind) => Promise<unknown>
  /** Ends when the verb did; rejects where the service dies. */
  readonly act: (victim: Victim, guest: GuestKind) => Promise<unknown>
  readonly from: InstanceState | "gone"
  readonly to: InstanceState | "gone"
  /** The guest's memory lives through it, finished or undone. */
  readonly keepsGuest: boolean
  /** What else has to come by itself before the host is looked at. */
  readonly awaits?: (view: Instance) => boolean
}

/** What of a request depends on what runs in the guest. */
export interface GuestKind {
  readonly image: string
  /** Idles. */
  readonly idle: Readonly<Record<string, unknown>>
  /** Ends by itself, badly, a moment after it came up. */
  readonly failing: Readonly<Record<string, unknown>>
}

/** Under software emulation on a busy machine a guest needs a while. */
const readyTimeoutMs = 120_000
const small = { memory_mb: 128, vcpus: 1, overlay_mb: 64 }

const create = (victim: Victim, guest: GuestKind, id: string, more: Readonly<Record<string, unknown>> = {}) =>
  victim.ask("POST", "/instances", { id, name: id, image: guest.image, ...small, ...guest.idle, ...more })

/** The guest answers: only then does it hear what it is asked. */
const ready = (victim: Victim, id: string) =>
  victim.ask("GET", `/instances/${id}/wait?ready=true&timeout_ms=${readyTimeoutMs}`)

const verb = (victim: Victim, id: string, name: string) => victim.ask("POST", `/instances/${id}/${name}`)

/** Between two looks at an instance that does something by itself: the API has no call that waits for a restart. */
const lookEveryMs = 20
const looksMax = 3_000

const until = async (victim: Victim, holds: (view: Instance) => boolean): Promise<void> => {
  for (let look = 0; look < looksMax; look++) {
    const view = (await victim.list()).find((it) => it.id === target)
    if (view !== undefined && holds(view)) return
    await sleep(lookEveryMs)
  }
  throw new Error("the instance did not do by itself what it should")
}

/** Instances that have nothing to do with the verb: one that runs, one that is frozen, one that is off. */
export const prepareNeighbours = async (victim: Victim, guest: GuestKind): Promise<void> => {
  await create(victim, guest, "by-running")
  await ready(victim, "by-running")
  await create(victim, guest, "by-standby")
  await verb(victim, "by-standby", "standby")
  await create(victim, guest, "by-created", { start: false })
}

const after =
  (...verbs: ReadonlyArray<string>) =>
  async (victim: Victim, guest: GuestKind) => {
    await create(victim, guest, target)
    await ready(victim, target)
    for (const name of verbs) await verb(victim, target, name)
  }
const ask = (name: string) => (victim: Victim) => verb(victim, target, name)
const nothing = () => Promise.resolve()

export const volume = "vol"
const attachment = `/instances/${target}/volumes/${volume}`
const volumeCall = async (
  victim: Victim,
  method: string,
  route: string,
  wanted: number,
  body?: unknown
): Promise<void> => {
  const answer = await victim.request(method, route, body === undefined ? undefined : JSON.stringify(body))
  if (answer.status !== wanted) throw new Error(`${method} ${route}: ${JSON.stringify(answer)}`)
}
const makeVolume = (victim: Victim) =>
  volumeCall(victim, "POST", "/volumes", 201, { id: volume, name: volume, size_gb: 1 })

const cameBack = (view: Instance): boolean =>
  view.restarts > 0 && view.state === "Running" && view.transition === null

export const scenarios: ReadonlyArray<Scenario> = [
  {
    name: "create",
    prepare: nothing,
    act: (victim, guest) => create(victim, guest, target),
    from: "gone",
    to: "Running",
    keepsGuest: false
  },
  {
    name: "create start:false",
    prepare: nothing,
    act: (victim, guest) => create(victim, guest, target, { start: false }),
    from: "gone",
    to: "Created",
    keepsGuest: false
  },
  {
    name: "start",
    prepare: after("stop"),
    act: ask("start"),
    from: "Stopped",
    to: "Running",
    keepsGuest: false
  },
  {
    name: "start after shutdown",
    prepare: after("shutdown"),
    act: ask("start"),
    from: "Shutdown",
    to: "Running",
    keepsGuest: false
  },
  { name: "pause", prepare: after(), act: ask("pause"), from: "Running", to: "Paused", keepsGuest: true },
  {
    name: "resume",
    prepare: after("pause"),
    act: ask("resume"),
    from: "Paused",
    to: "Running",
    keepsGuest: true
  },
  {
    name: "shutdown",
    prepare: after(),
    act: ask("shutdown"),
    from: "Running",
    to: "Shutdown",
    keepsGuest: false
  },
  { name: "stop", prepare: after(), act: ask("stop"), from: "Running", to: "Stopped", keepsGuest: false },
  {
    name: "stop ?discard",
    prepare: after("standby"),
    act: ask("stop?discard_snapshot=true"),
    from: "Standby",
    to: "Stopped",
    keepsGuest: false
  },
  {
    name: "standby",
    prepare: after(),
    act: ask("standby"),
    from: "Running",
    to: "Standby",
    keepsGuest: true
  },
  {
    name: "restore",
    prepare: after("standby"),
    act: ask("restore"),
    from: "Standby",
    to: "Running",
    keepsGuest: true
  },
  {
    name: "delete",
    prepare: after(),
    act: async (victim) => {
      const { status } = await victim.request("DELETE", `/instances/${target}`)
      if (status !== 204) throw new Error(`DELETE: ${status}`)
    },
    from: "Running",
    to: "gone",
    keepsGuest: false
  },
  {
    name: "attach",
    prepare: async (victim, guest) => {
      await makeVolume(victim)
      await after()(victim, guest)
    },
    act: (victim) => victim.ask("POST", attachment, { mount_path: "/mnt/vol" }),
    from: "Running",
    to: "Running",
    keepsGuest: true
  },
  {
    name: "detach",
    prepare: async (victim, guest) => {
      await makeVolume(victim)
      await create(victim, guest, target, { volumes: [{ volume_id: volume, mount_path: "/mnt/vol" }] })
      await ready(victim, target)
    },
    act: (victim) => victim.ask("DELETE", attachment),
    from: "Running",
    to: "Running",
    keepsGuest: true
  },
  {
    name: "grow an attached volume",
    prepare: async (victim, guest) => {
      await makeVolume(victim)
      await create(victim, guest, target, { volumes: [{ volume_id: volume, mount_path: "/mnt/vol" }] })
      await ready(victim, target)
    },
    act: (victim) => volumeCall(victim, "PATCH", `/volumes/${volume}`, 200, { size_gb: 2 }),
    from: "Running",
    to: "Running",
    keepsGuest: true
  },
  {
    name: "life of a volume",
    prepare: nothing,
    act: async (victim) => {
      await makeVolume(victim)
      await volumeCall(victim, "PATCH", `/volumes/${volume}`, 200, { size_gb: 2 })
      await volumeCall(victim, "DELETE", `/volumes/${volume}`, 204)
    },
    from: "gone",
    to: "gone",
    keepsGuest: false
  },
  {
    name: "restart by policy",
    awaits: cameBack,
    prepare: (victim, guest) => create(victim, guest, target, { restart_policy: "always", ...guest.failing }),
    act: (victim) => until(victim, cameBack),
    from: "Running",
    to: "Running",
    keepsGuest: false
  }
]
