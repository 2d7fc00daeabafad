/** The rules against the flags of model.ts, step by step, on random histories: both say the same to every verb. */
import { assert, describe, it } from "@effect/vitest"
import { decide } from "../../src/instance/decide.ts"
import { transitionOf } from "../../src/instance/decide/step.ts"
import type { Lifecycle } from "../../src/instance/Lifecycle.ts"
import { outwardState } from "../../src/instance/project.ts"
import { generator, type Random } from "../simulation/random.ts"
import { commands, events, explore, initial, label, wayTo } from "./exploration.ts"
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
const walks = 500
const stepsMax = 60
const stepsAfter = 15

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

type Input = Parameters<typeof decide>[1]
type Named = readonly [string, Input]

/** An accepted input, to both sides. */
const feed = (walk: Walk, [name, input]: Named, visited: Set<string>): void => {
  const decision = decide(walk.lifecycle, input)
  if (decision._tag !== "Accepted") return
  const here = label(walk.lifecycle.state)
  visited.add(`${here} ${name}`)
  walk.story.push(`${here} + ${name}`)
  const ask = asks.find((it) => it === name)
  if (ask !== undefined) model.accept(walk.flags, ask)
  else if (input._tag === "GuestEnded")
    model.guestEnded(walk.flags, { failed: name !== "exits 0", gone: input.gone })
  else tell(walk.flags, name)
  walk.lifecycle = decision.next
  compare(walk)
}

const coming = ({ lifecycle }: Walk): ReadonlyArray<Named> =>
  [...commands, ...events(lifecycle).filter(([name]) => !name.startsWith("found"))].filter(
    ([, input]) => decide(lifecycle, input)._tag === "Accepted"
  )

const stroll = (walk: Walk, random: Random, visited: Set<string>): void => {
  const [one, ...more] = coming(walk)
  if (one !== undefined) feed(walk, random.pick([one, ...more]), visited)
}

const begin = (policy: model.Model["policy"], boots: boolean): Walk => {
  const walk = { lifecycle: initial(policy, boots), flags: model.begin(policy, boots), story: [] }
  compare(walk)
  return walk
}

describe.each(policies)("the rules under restart policy %s", (policy) => {
  it("answer every verb as the flags do, and show the same", () => {
    const random = generator(7)
    const visited = new Set<string>()
    const changes = explore(policy).edges.filter(
      (edge) =>
        // Volumes change nothing of what the flags say; volumes.test.ts has their rules.
        !/^(found|attach|detach)/.test(edge.input) &&
        !/^(Attaching|Detaching)/.test(edge.from) &&
        !/^(-|denied|wait for .*)$/.test(edge.answer)
    )
    // To every edge on the shortest way, then on at random.
    for (const target of changes) {
      const way = wayTo(changes, target)
      const walk = begin(policy, way.has("Launching(create)") && target.from !== "Created")
      const met = () => visited.has(`${target.from} ${target.input}`)
      for (let at = 0; at < stepsMax && !met(); at++) {
        const hint = way.get(label(walk.lifecycle.state))
        const next = coming(walk).find(([name]) => name === hint)
        if (next === undefined) break
        feed(walk, next, visited)
      }
      for (let at = 0; at < stepsAfter; at++) stroll(walk, random, visited)
    }
    for (let at = 0; at < walks; at++) {
      const walk = begin(policy, random.next() < 0.8)
      for (let step = 0; step < stepsMax && walk.lifecycle.state._tag !== "Gone"; step++)
        stroll(walk, random, visited)
    }
    assert.deepStrictEqual(
      changes.map((edge) => `${edge.from} ${edge.input}`).filter((edge) => !visited.has(edge)),
      []
    )
  })
})
