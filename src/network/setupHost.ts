/**
 * Sets up the guests' network on this host before the service runs, or takes it away: `scripts/setup-host-network.sh`.
 * The service does the same at its first instance; this is for who wants to see it, or to undo it. Exit code 2 where the
 * configuration is wrong, 1 where the host refuses.
 */
import * as Effect from "effect/Effect"
import { Settings } from "../host/Settings.ts"
import { conflicts, foreignDrops } from "./conflicts.ts"
import { removeAll, setUp } from "./Network.ts"

const say = (line: string): void => void process.stdout.write(`${line}\n`)
const complain = (line: string): void => void process.stderr.write(`${line}\n`)

const program = Effect.gen(function* () {
  const { subnet } = yield* Settings
  if (process.argv.includes("--remove")) {
    yield* removeAll(subnet)
    return say(`removed TAPs and rules of ${subnet.bridge}, and the bridge where it was ours and unused`)
  }
  const inTheWay = yield* conflicts(subnet)
  yield* setUp(subnet)
  for (const sentence of [...inTheWay, ...(yield* foreignDrops(subnet))]) complain(`warning: ${sentence}`)
  return say(
    `${subnet.bridge} is up: gateway ${subnet.gateway}, network ${subnet.cidr}, NAT and forwarding are on`
  )
}).pipe(Effect.provide(Settings.layer))

process.exitCode = await Effect.runPromise(
  program.pipe(
    Effect.as(0),
    Effect.catchTags({
      SettingsRefused: (refused) => Effect.sync(() => (complain(refused.message), 2)),
      NetworkFault: (fault) => Effect.sync(() => (complain(fault.message), 1))
    })
  )
)
