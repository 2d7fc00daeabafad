/** What the rules do to a host: folded over a host made of sets, in random walks that visit every edge of the table. */
import { assert, describe, it } from "@effect/vitest"
import * as Schema from "effect/Schema"
import { InstanceId } from "../../src/domain/Ids.ts"
import { InterfaceName, Ipv4, Mac } from "../../src/domain/Network.ts"
import { vmmOf, work } from "../../src/instance/Lifecycle.ts"
import * as Record from "../../src/instance/Record.ts"
import { generator } from "../simulation/random.ts"
import { explore, label, wayTo } from "./exploration.ts"
import { recordOf } from "./records.ts"
import { begin, rest, restart, seek, stroll, type Walk } from "./walk.ts"

const policies = ["never", "on-failure", "always"] as const
const seed = Number(process.env["LEDGER_SEED"] ?? 20261124)
/** Most of the first ones seek out an edge that was not visited yet. */
const walksMin = 3_000
const walksMax = 20_000
const stepsMax = 80
/** Works that follow each other at most, from any state to rest, with room for a restart by policy. */
const restSteps = 80

/** What must be so in the state that the instance is in, whatever happened before. */
const problems = ({ host, lifecycle, disturbed }: Walk): ReadonlyArray<string> => {
  const { state } = lifecycle
  const found = [...host.violations]
  const want = (holds: boolean, what: string) => void (holds || found.push(what))
  const vmm = vmmOf(state)
  want(host.vmms.size <= 1, "two VMMs live")
  want(host.record === (state._tag !== "Gone") || state._tag === "Ending", "the record went too early")
  if (vmm !== null) want(host.tap, "a VMM without its TAP")
  const volumes = new Set<string>(lifecycle.volumes.map((it) => it.volume_id))
  for (const it of host.vmms.get(vmm?.pid ?? 0)?.disks ?? [])
    want(volumes.has(it), `a disk of ${it}, which the instance does not hold`)
  if (vmm !== null || state._tag === "Launching" || state._tag === "Loading") want(host.lease, "no lease")
  if (work(lifecycle) !== null || disturbed) return found
  if (vmm === null) {
    want(host.vmms.size === 0, "a VMM that nobody owns")
    want(!host.tap && !host.run, "a TAP or a run directory that nobody owns")
  }
  if (state._tag === "Standby") {
    const snapshot = host.snapshots.get(state.snapshot.number)
    want(snapshot?.complete === true, "Standby without a complete snapshot")
    want(snapshot?.stale !== true, "Standby with the snapshot of a guest that ran on")
    want(host.snapshots.size === 1, "a snapshot that nobody owns")
    want(host.lease, "Standby without its lease")
  }
  if (state._tag === "Stopped")
    want(host.snapshots.size === 0 && host.lease, "Stopped with a snapshot, or without lease")
  if (state._tag === "Gone")
    want(
      !host.lease && !host.record && host.snapshots.size === 0,
      "something is left of an instance that is gone"
    )
  return found
}

const told = (walk: Walk) => walk.story.slice(-12).join("\n")

describe.each(policies)("the ledger under restart policy %s", (policy) => {
  it("stays right through random walks that visit every edge of the table", () => {
    const { edges } = explore(policy)
    // A walk ends at Gone: decide.test.ts shows that nothing leads out of it.
    const unvisited = () => edges.filter((it) => it.from !== "Gone" && !visited.has(`${it.from} ${it.input}`))
    const visited = new Set<string>()
    const random = generator(seed)
    let walks = 0
    for (let missing = unvisited(); walks < walksMax && (walks < walksMin || missing.length > 0); walks++) {
      if (walks % 20 === 0) missing = unvisited()
      const walk = begin(random, policy, random.next() < 0.8, visited)
      const target = missing[random.below(missing.length)]
      const way = target === undefined ? null : wayTo(edges, target)
      for (let step = 0; step < stepsMax && walk.lifecycle.state._tag !== "Gone"; step++) {
        const hint = way?.get(label(walk.lifecycle.state))
        if (hint !== undefined && random.next() < 0.8) seek(walk, hint)
        else stroll(walk)
        assert.deepStrictEqual(problems(walk), [], `walk ${walks}, step ${step}:\n${told(walk)}`)
      }
    }
    assert.deepStrictEqual(unvisited(), [], `edges that ${walks} walks did not visit`)
  })

  it("comes to a legal state after a kill behind every prefix, and goes on from there", () => {
    const random = generator(seed + 1)
    for (let walks = 0; walks < 400; walks++) {
      const walk = begin(random, policy, random.next() < 0.8, new Set())
      for (let step = 0; step < stepsMax && walk.lifecycle.state._tag !== "Gone"; step++) {
        stroll(walk)
        const kept: Walk = {
          ...walk,
          host: structuredClone({ ...walk.host, vmms: new Map(walk.host.vmms) }),
          story: [...walk.story],
          visited: new Set(),
          random: generator(step)
        }
        restart(kept, "service", null)
        assert.isTrue(rest(kept, restSteps), `does not rest after a kill:\n${told(kept)}`)
        assert.deepStrictEqual(problems(kept), [], `after a kill:\n${told(kept)}`)
        for (let more = 0; more < 10 && kept.lifecycle.state._tag !== "Gone"; more++) stroll(kept)
        assert.isTrue(rest(kept, restSteps), `does not rest:\n${told(kept)}`)
        assert.deepStrictEqual(problems(kept), [], `after a kill and more:\n${told(kept)}`)
      }
    }
  })

  it("is written and read back the same in every state", () => {
    const json = Schema.fromJsonString(Record.Record)
    const lease = {
      ip: Ipv4.make("10.0.0.2"),
      mac: Mac.make("52:54:00:00:00:02"),
      tap: InterfaceName.make("tap-vm")
    }
    for (const [name, lifecycle] of explore(policy).states) {
      const record = { ...recordOf(InstanceId.make("vm"), lease, policy), lifecycle }
      const back = Schema.decodeSync(json)(Schema.encodeSync(json)(record))
      assert.deepStrictEqual(back, record, name)
      assert.strictEqual(label(back.lifecycle.state), name)
    }
  })
})
