/** The rules against the flags of model.ts, step by step, on random histories: both say the same to every verb. */
import { assert, describe, it } from "@effect/vitest"
import { decide } from "../../src/instance/decide.ts"
import { transitionOf } from "../../src/instance/decide/step.ts"
import type { Lifecycle } from "../../src/instance/Lifecycle.ts"
import { outwardState } from "../../src/instance/project.ts"
import { generator, type Random } from "../simulation/random.ts"
import { commands, events, explore, initial, label } from "./exploration.ts"
import * as model from "./model.ts"

const asks = [
  "start",
  "pause",
  "resume",
  "shutdown",
  "stop",
  "stop+discard",
  "standby",
  "restore",
  "restore,stay",
  "delete"
] as const satisfies ReadonlyArray<model.Ask>
const policies = ["never", "on-failure", "always"] as const
const walks = 8_000
const stepsMax = 60

/** The model's side of one event. False where the event means nothing to it. */
const tell = (it: model.Model, input: string): void => {
  switch (input) {
    case "done":
    case "spawned":
      return model.done(it)
    case "failed":
      return model.failed(it, false)
    case "failed,untouched":
      return model.failed(it, true)
    default:
      return undefined
  }
}

interface Walk {
  lifecycle: Lifecycle
  readonly flags: model.Model
  readonly story: Array<string>
}

/** What both say now: every verb's answer, the state that shows, and what the instance is busy with. */
const compare = (walk: Walk): void => {
  const { lifecycle, flags, story } = walk
  const told = `${label(lifecycle.state)} after\n${story.slice(-10).join("\n")}`
  const rules = { state: outwardState(lifecycle.state), busy: transitionOf(lifecycle.state) }
  assert.deepStrictEqual(rules, { state: model.shown(flags), busy: flags.busy }, told)
  for (const ask of asks) {
    const command = commands.find(([name]) => name === ask)
    assert.isDefined(command)
    const decision = decide(lifecycle, command[1])._tag.toLowerCase()
    assert.strictEqual(decision, model.answer(flags, ask), `${ask} in ${told}`)
  }
}

const step = (walk: Walk, random: Random, visited: Set<string>): void => {
  const { lifecycle } = walk
  const comes = [...commands, ...events(lifecycle).filter(([name]) => !name.startsWith("found"))]
  const accepted = comes.filter(([, input]) => decide(lifecycle, input)._tag === "Accepted")
  const results = accepted.filter(([name]) => name === "done" || name === "spawned")
  const ending = (name: string) => name === "delete" || name.startsWith("stop") || name.includes("exits")
  const milder = accepted.filter(([name]) => !ending(name) || random.next() < 0.2)
  const rare = /standby|restore|paused|Unfreezing|Loading|Reviving/
  const here = label(lifecycle.state)
  // What was not met in this state before goes first, mostly where a walk seldom comes.
  const unmet = accepted.filter(([name]) => !visited.has(`${here} ${name}`))
  const chosen = unmet.length > 0 && rare.test(here) ? unmet : milder
  const [one, ...more] = results.length > 0 && random.next() < 0.5 ? results : chosen
  if (one === undefined) return
  const [name, input] = random.pick([one, ...more])
  const decision = decide(lifecycle, input)
  if (decision._tag !== "Accepted") return
  visited.add(`${label(lifecycle.state)} ${name}`)
  walk.story.push(`${label(lifecycle.state)} + ${name}`)
  const ask = asks.find((it) => it === name)
  if (ask !== undefined) model.accept(walk.flags, ask)
  else if (input._tag === "GuestEnded")
    model.guestEnded(walk.flags, { failed: name !== "exits 0", gone: input.gone })
  else tell(walk.flags, name)
  walk.lifecycle = decision.next
}

describe.each(policies)("the rules under restart policy %s", (policy) => {
  it("answer every verb as the flags do, and show the same", () => {
    const random = generator(7)
    const visited = new Set<string>()
    for (let walk = 0; walk < walks; walk++) {
      const boots = random.next() < 0.8
      const it: Walk = { lifecycle: initial(policy, boots), flags: model.begin(policy, boots), story: [] }
      compare(it)
      for (let at = 0; at < stepsMax && it.lifecycle.state._tag !== "Gone"; at++) {
        step(it, random, visited)
        compare(it)
      }
    }
    const wanted = explore(policy)
      .edges.filter((edge) => !edge.input.startsWith("found") && !/^(-|denied|wait for .*)$/.test(edge.answer))
      .map((edge) => `${edge.from} ${edge.input}`)
    assert.deepStrictEqual(
      wanted.filter((edge) => !visited.has(edge)),
      []
    )
  })
})
