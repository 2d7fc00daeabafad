/** Commands on this host itself: the service, the doctor. */
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Effect from "effect/Effect"
import { Failure } from "../Failure.ts"
import { LocalService } from "../LocalService.ts"
import { Screen } from "../Screen.ts"

export const serve = Command.make("serve", {}, () =>
  Effect.flatMap(LocalService, (service) => service.serve)
).pipe(Command.withDescription("Run the service; configured by its environment"))

const vmm = Flag.Boolean("vmm").pipe(
  Flag.withDescription("Take the VMM itself through a guest's life: ping, boot, pause, snapshot, restore")
)

export const doctor = Command.make("doctor", { vmm }, (asked) =>
  Effect.gen(function* () {
    const service = yield* LocalService
    const screen = yield* Screen
    const { text, exitCode } = yield* asked.vmm ? service.conformance : service.doctor
    screen.out(text)
    if (exitCode !== 0) return yield* new Failure({ sentence: "", exitCode })
  })
).pipe(Command.withDescription("Check this host, and say for each failure how to fix it"))

const repair = Flag.Boolean("repair").pipe(
  Flag.withDescription("Remove or make anew what can be, where no service runs on the directory")
)

export const fsck = Command.make("fsck", { repair }, (asked) =>
  Effect.gen(function* () {
    const service = yield* LocalService
    const screen = yield* Screen
    const { text, exitCode } = yield* service.checkImages(asked.repair)
    screen.out(text)
    if (exitCode !== 0) return yield* new Failure({ sentence: "", exitCode })
  })
).pipe(Command.withDescription("Hold what is stored of images against its checksums"))
