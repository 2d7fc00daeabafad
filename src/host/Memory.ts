/** The memory of the host that guests share. */
import { totalmem } from "node:os"
import * as Context from "effect/Context"
import * as Layer from "effect/Layer"

export class HostMemory extends Context.Service<HostMemory, { readonly totalMb: number }>()(
  "dataplane/host/HostMemory"
) {
  static readonly layer = Layer.sync(HostMemory, () => ({ totalMb: Math.floor(totalmem() / (1024 * 1024)) }))
  /** For guests that take no memory: simulated ones. */
  static readonly layerOf = (totalMb: number) => Layer.succeed(HostMemory, { totalMb })
}
