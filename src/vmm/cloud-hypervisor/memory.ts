/**
 * Live growth of a guest's memory through virtio-mem: the host names a size, the guest's driver takes or gives back blocks
 * of 2 MiB until it is reached or it cannot. What is there is what counts; releases before 52.0 cannot tell it, and show
 * what was asked for.
 */
import * as Effect from "effect/Effect"
import { VmmFault } from "../Vmm.ts"
import { asVmmFault, type Client } from "./Client.ts"
import { memoryBlockMb } from "./config.ts"

const mib = 1024 * 1024
/** A guest that has not answered by then keeps what it took. */
const resizeBoundMs = 5_000
/** The VMM tells nobody that the guest took a block. */
const sizePollMs = 50

const fault = (reason: string) => new VmmFault({ operation: "resize", reason, cause: undefined })

const memoryBytes = (client: Client) => Effect.map(client.info, (info) => info.memory_actual_size)

export const memoryMb = (client: Client): Effect.Effect<number, VmmFault> =>
  memoryBytes(client).pipe(
    Effect.map((bytes) => Math.floor(bytes / mib)),
    Effect.mapError(asVmmFault("memory"))
  )

/** Looks at the size until it is what was asked for. */
const settled = (client: Client, wanted: number) =>
  memoryBytes(client).pipe(
    Effect.flatMap((bytes) =>
      bytes === wanted ? Effect.succeed(true) : Effect.delay(Effect.succeed(false), sizePollMs)
    ),
    Effect.repeat({ until: (done) => done }),
    Effect.timeoutOption(resizeBoundMs)
  )

/**
 * Asks the guest to have this much memory in all and gives what it has after at most 5 s, both in MiB; an odd MiB above
 * the memory at boot is not asked for. Fails below the memory at boot and above the VM's ceiling.
 */
export const resizeMemory = (client: Client, wantedMb: number): Effect.Effect<number, VmmFault> =>
  Effect.gen(function* () {
    const { memory } = (yield* client.info).config
    const bootMb = Math.floor(memory.size / mib)
    const roomMb = Math.floor((memory.hotplug_size ?? 0) / mib)
    if (wantedMb < bootMb)
      return yield* fault(`the guest cannot go below the ${bootMb} MiB that it booted with`)
    const growth = Math.floor((wantedMb - bootMb) / memoryBlockMb) * memoryBlockMb
    if (growth > roomMb)
      return yield* fault(
        roomMb === 0
          ? "this VM was started without room to grow: its ceiling is its memory at boot"
          : `the guest cannot go above ${bootMb + roomMb} MiB`
      )
    if (roomMb === 0) return bootMb
    const wanted = (bootMb + growth) * mib
    yield* client.order("vm.resize", { desired_ram: wanted })
    yield* settled(client, wanted)
    return Math.floor((yield* memoryBytes(client)) / mib)
  }).pipe(Effect.catchTag("ClientFault", (cause) => Effect.fail(asVmmFault("resize")(cause))))
