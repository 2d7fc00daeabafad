import { it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { agentSocket } from "../../src/vmm/qemu/args.ts"
import { consoleText, tell, untilConsole } from "../support/vmmGuest.ts"
import { startVm, vmmHost } from "../support/vmmHost.ts"
it.live("x", () => Effect.scoped(Effect.gen(function* () {
  const host = yield* vmmHost
  const config = host.configure("cycle")
  const { session } = yield* startVm(host, config)
  const t = performance.now()
  yield* session.boot
  yield* untilConsole(config.consolePath, "r", (t) => t.includes("ready"))
  console.log("boot", performance.now() - t)
  yield* tell(agentSocket(config.runDirectory), "cat /proc/bus/input/devices; ls -l /dev/input /modules; lsmod; type button; dmesg | grep -i button")
  yield* untilConsole(config.consolePath, "r", (t) => t.includes("ran"))
  console.log(consoleText(config.consolePath))
})), 60000)
