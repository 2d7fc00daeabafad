import { readFileSync, writeFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { assert, describe, it } from "@effect/vitest"
import { timestamp } from "../../src/domain/Ids.ts"
import { allowed, decide } from "../../src/instance/decide.ts"
import { rests, transitionOf } from "../../src/instance/decide/step.ts"
import { deadlineMs, type Lifecycle, work } from "../../src/instance/Lifecycle.ts"
import { outwardState } from "../../src/instance/project.ts"
import {
  allCommands,
  at,
  commands,
  events,
  explore,
  label,
  otherVmm,
  printTable,
  vmm
} from "./exploration.ts"

const policies = ["never", "on-failure", "always"] as const
const tablePath = (policy: string) => fileURLToPath(new URL(`./edges.${policy}.table.txt`, import.meta.url))
const inputs = (lifecycle: Lifecycle) => [...allCommands, ...events(lifecycle)]

describe.each(policies)("the rules under restart policy %s", (policy) => {
  const { states, edges } = explore(policy)
  const each = (body: (lifecycle: Lifecycle, name: string) => void) => {
    for (const [name, lifecycle] of states) body(lifecycle, name)
  }

  it("are the committed table, edge for edge (UPDATE_TABLES=1 writes it)", () => {
    const table = printTable(edges)
    if (process.env["UPDATE_TABLES"] === "1") writeFileSync(tablePath(policy), table)
    assert.strictEqual(table, readFileSync(tablePath(policy), "utf8"))
  })

  it("never deny stop or delete to an instance that has a VMM or is busy, except where a guest is frozen", () => {
    each((lifecycle, name) => {
      if (name === "Gone" || name.startsWith("Ending(Gone") || name.startsWith("Standby")) return
      for (const [input, value] of commands.filter(([it]) => it === "stop" || it === "delete"))
        assert.notStrictEqual(decide(lifecycle, value)._tag, "Denied", `${input} in ${name}`)
    })
  })

  it("let nothing happen to an instance that is gone", () => {
    const gone = states.get("Gone")
    assert.isDefined(gone)
    for (const [input, value] of inputs(gone))
      assert.notStrictEqual(decide(gone, value)._tag, "Accepted", input)
  })

  it("give every state that does not rest one piece of work with a deadline and a transition to show", () => {
    each((lifecycle, name) => {
      const task = work(lifecycle)
      if (task === null) return assert.isNull(transitionOf(lifecycle.state), name)
      assert.isAbove(deadlineMs[task._tag], 0, name)
      assert.isNotNull(transitionOf(lifecycle.state), name)
    })
  })

  it("ignore results of another epoch and the end of another VMM", () => {
    each((lifecycle, name) => {
      const epoch = lifecycle.epoch + 1
      const exit = { reason: "boot-failed", at } as const
      const stale = [
        { _tag: "Done", epoch },
        { _tag: "Spawned", epoch, vmm: otherVmm },
        { _tag: "Failed", epoch, failure: { step: "s", reason: "r" }, untouched: false, exit },
        { _tag: "GuestEnded", vmm: otherVmm, exit, healthy: false, gone: true }
      ] as const
      for (const input of stale)
        assert.strictEqual(decide(lifecycle, input)._tag, "Ignored", `${input._tag} in ${name}`)
    })
  })

  it("raise the epoch with every accepted input", () => {
    each((lifecycle, name) => {
      for (const [input, value] of inputs(lifecycle)) {
        const decision = decide(lifecycle, value)
        if (decision._tag === "Accepted")
          assert.strictEqual(decision.next.epoch, lifecycle.epoch + 1, `${input} in ${name}`)
      }
    })
  })

  it("come to rest from every state when all work succeeds, and when all work fails", () => {
    each((lifecycle, name) => {
      for (const outcome of ["done", "failed"] as const) {
        let now = lifecycle
        let steps = 0
        const tried: Array<string> = []
        while (!rests(now) && steps++ < 20) {
          // A VMM that never ends is the one thing that is tried for ever, and a restart policy goes round for ever.
          const never = now.state._tag === "Ending" || now.state._tag === "Waiting"
          const wanted = outcome === "failed" && !never ? ["failed"] : ["done", "spawned"]
          const input = events(now).find(([it]) => wanted.includes(it))
          assert.isDefined(input, `${name}: ${label(now.state)}`)
          const decision = decide(now, input[1])
          assert.strictEqual(decision._tag, "Accepted", `${name}: ${label(now.state)}`)
          if (decision._tag !== "Accepted") break
          tried.push(label(now.state))
          now = decision.next
          if (outcome === "failed" && now.state._tag === "Waiting") break
        }
        assert.isBelow(steps, 20, `${name} with all work ${outcome}: ${tried.join(" > ")}`)
      }
    })
  })

  it("answer everybody who waits: a verb that is accepted or joined is settled before the instance rests", () => {
    each((lifecycle, name) => {
      for (const [input, command] of allCommands) {
        const first = decide(lifecycle, command)
        if (first._tag !== "Accepted" && first._tag !== "Joined") continue
        const verb = first._tag === "Joined" ? first.until : (input.split(/[+,]/)[0] ?? input)
        let now = first._tag === "Accepted" ? first.next : lifecycle
        const told: Array<string> = first._tag === "Accepted" ? first.settle.map((it) => it.verb) : []
        for (let steps = 0; !rests(now) && !told.includes(verb) && steps < 20; steps++) {
          const input = events(now).find(([it]) => it === "done" || it === "spawned")
          assert.isDefined(input)
          const decision = decide(now, input[1])
          if (decision._tag !== "Accepted") break
          told.push(...decision.settle.map((it) => it.verb))
          now = decision.next
        }
        assert.include(told, verb, `${input} in ${name}`)
      }
    })
  })

  it("answer everybody who waits also where another verb takes over", () => {
    each((lifecycle, name) => {
      for (const [input, command] of allCommands) {
        const first = decide(lifecycle, command)
        if (first._tag !== "Accepted" && first._tag !== "Joined") continue
        const verb = first._tag === "Joined" ? first.until : (input.split(/[+,]/)[0] ?? input)
        const waiting = first._tag === "Accepted" ? first.next : lifecycle
        if (first._tag === "Accepted" && first.settle.some((it) => it.verb === verb)) continue
        if (rests(waiting)) continue
        // A probe follows a restart, and nobody waits across one.
        const takeovers = [...allCommands, ...events(waiting)].filter(([it]) => !it.startsWith("found"))
        for (const [takeover, second] of takeovers) {
          let decision = decide(waiting, second)
          const told: Array<string> = []
          let now = waiting
          for (let steps = 0; decision._tag === "Accepted" && steps < 20; steps++) {
            told.push(...decision.settle.map((it) => it.verb))
            now = decision.next
            const next = events(now).find(([it]) => it === "done" || it === "spawned")
            if (rests(now) || next === undefined) break
            decision = decide(now, next[1])
          }
          if (now !== waiting) assert.include(told, verb, `${input} in ${name}, then ${takeover}`)
        }
      }
    })
  })

  it("offer as allowed just what they do not deny", () => {
    each((lifecycle, name) => {
      for (const [input, command] of commands) {
        if (input.includes("+") || input.includes(",")) continue
        const offered = allowed(lifecycle, at).some((verb) => verb === input)
        assert.strictEqual(decide(lifecycle, command)._tag !== "Denied", offered, `${input} in ${name}`)
      }
    })
  })
})

describe("the contract's table", () => {
  const { states } = explore("never")
  const outward = ["Created", "Running", "Paused", "Shutdown", "Stopped"] as const
  const lifecycles = [
    ...outward.map((name) => [name, states.get(name)] as const),
    ["Standby", states.get("Standby(running)")] as const
  ]
  const table: Readonly<Record<string, Readonly<Record<string, string>>>> = {
    start: { Created: "Running", Shutdown: "Running", Stopped: "Running", Running: "same" },
    pause: { Running: "Paused", Paused: "same" },
    resume: { Paused: "Running", Running: "same" },
    shutdown: { Running: "Shutdown", Paused: "Shutdown", Shutdown: "same" },
    stop: { Created: "Stopped", Running: "Stopped", Paused: "Stopped", Shutdown: "Stopped", Stopped: "same" },
    "stop+discard": {
      Created: "Stopped",
      Running: "Stopped",
      Paused: "Stopped",
      Shutdown: "Stopped",
      Stopped: "same",
      Standby: "Stopped"
    },
    standby: { Running: "Standby", Paused: "Standby", Standby: "same" },
    restore: { Standby: "Running", Running: "same" },
    delete: {
      Created: "gone",
      Running: "gone",
      Paused: "gone",
      Shutdown: "gone",
      Stopped: "gone",
      Standby: "gone"
    }
  }

  for (const [verb, rows] of Object.entries(table)) {
    for (const [name, lifecycle] of lifecycles) {
      const expected = rows[name] ?? "409"
      it(`${verb} from ${name}: ${expected}`, () => {
        const command = commands.find(([it]) => it === verb)
        assert.isDefined(command)
        assert.isDefined(lifecycle)
        let decision = decide(lifecycle, command[1])
        if (expected === "409") return assert.strictEqual(decision._tag, "Denied")
        if (expected === "same") return assert.strictEqual(decision._tag, "Ignored")
        let now = lifecycle
        while (decision._tag === "Accepted") {
          now = decision.next
          const input = rests(now) ? undefined : events(now).find(([it]) => it === "done" || it === "spawned")
          if (input === undefined) break
          decision = decide(now, input[1])
        }
        if (expected === "gone") return assert.strictEqual(now.state._tag, "Gone")
        assert.strictEqual(outwardState(now.state), expected)
        assert.isTrue(rests(now))
      })
    }
  }

  it("restore of a guest that was paused leaves it so only where that is asked for", () => {
    for (const [from, resume, expected] of [
      ["Standby(paused)", true, "Running"],
      ["Standby(paused)", false, "Paused"],
      ["Standby(running)", false, "Running"]
    ] as const) {
      let now = states.get(from)
      assert.isDefined(now)
      let decision = decide(now, { _tag: "Restore", resume })
      while (decision._tag === "Accepted") {
        now = decision.next
        const input = events(now).find(([it]) => it === "done" || it === "spawned")
        if (input === undefined) break
        decision = decide(now, input[1])
      }
      assert.strictEqual(now.state._tag, expected, `${from}, resume=${resume}`)
    }
  })
})

describe("a restore that names how the memory comes back", () => {
  const { states } = explore("never")
  const from = (name: string) => {
    const found = states.get(name)
    assert.isDefined(found)
    return found
  }

  it("says so to its work, and one that names nothing leaves it to the driver", () => {
    for (const [mode, expected] of [
      ["on_demand", "on_demand"],
      ["copy", "copy"],
      [undefined, "auto"]
    ] as const) {
      const decision = decide(from("Standby(running)"), {
        _tag: "Restore",
        resume: true,
        ...(mode === undefined ? {} : { mode })
      })
      assert(decision._tag === "Accepted")
      assert.deepInclude(work(decision.next), { _tag: "Load", mode: expected })
    }
  })

  it("is not promised while the standby still ends, where nothing would remember it", () => {
    const ending = [...states].find(([name]) => name.startsWith("Ending(Standby"))?.[1]
    assert.isDefined(ending)
    assert.strictEqual(decide(ending, { _tag: "Restore", resume: true, mode: "on_demand" })._tag, "Denied")
    assert.strictEqual(decide(ending, { _tag: "Restore", resume: true })._tag, "Accepted")
  })
})

describe("a standby that does not succeed", () => {
  it("gives the guest back as it was, and says why", () => {
    const { states } = explore("never")
    for (const [from, back] of [
      ["Running", "Running"],
      ["Paused", "Paused"]
    ] as const) {
      const lifecycle = states.get(from)
      assert.isDefined(lifecycle)
      const begun = decide(lifecycle, { _tag: "Standby" })
      assert(begun._tag === "Accepted")
      const exit = { reason: "boot-failed", at: timestamp(1) } as const
      const failure = { step: "snapshot", reason: "The disk is full." }
      const broken = decide(begun.next, {
        _tag: "Failed",
        epoch: begun.next.epoch,
        failure,
        untouched: false,
        exit
      })
      assert(broken._tag === "Accepted")
      assert.strictEqual(outwardState(broken.next.state), back)
      const undone = decide(broken.next, { _tag: "Done", epoch: broken.next.epoch })
      assert(undone._tag === "Accepted")
      assert.deepStrictEqual(undone.next.state, { _tag: back, vmm })
      assert.deepInclude(undone.settle, { verb: "standby", outcome: "failed", failure })
    }
  })
})
