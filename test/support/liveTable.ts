/** The contract's table of verbs, tried on an instance as it stands: what is not legal is refused and changes nothing. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type { Instance, InstanceState } from "../../src/domain/Instance.ts"
import { refused } from "./liveGuest.ts"
import type { Service } from "./Service.ts"

type Route = "start" | "pause" | "resume" | "shutdown" | "stop" | "standby" | "restore"
const routes: ReadonlyArray<Route> = ["start", "pause", "resume", "shutdown", "stop", "standby", "restore"]

/** Contract §1: what each state takes, "already there" included; delete is legal everywhere. */
const legal: Readonly<Record<InstanceState, ReadonlyArray<Route>>> = {
  Created: ["start", "stop"],
  Running: routes,
  Paused: ["pause", "resume", "shutdown", "stop", "standby"],
  Shutdown: ["start", "shutdown", "stop"],
  Stopped: ["start", "stop"],
  Standby: ["standby", "restore"]
}

/** Proves the state, and that every verb that is not legal in it is refused with the verbs that are. */
export const expectRefusals = (service: Service, { id }: Pick<Instance, "id">, state: InstanceState) =>
  Effect.gen(function* () {
    const before = yield* service.client.instances.get({ params: { id } })
    assert.deepStrictEqual([before.state, before.transition], [state, null])
    for (const verb of routes.filter((it) => !legal[state].includes(it))) {
      const problem = yield* refused(service, "POST", `/instances/${id}/${verb}`)
      assert.deepInclude(problem.members, {
        status: 409,
        instance_id: id,
        state,
        transition: null,
        verb,
        allowed: [...legal[state], "delete"]
      })
      assert.strictEqual(problem.name, "invalid-state")
    }
    assert.deepStrictEqual(yield* service.client.instances.get({ params: { id } }), before)
  })
