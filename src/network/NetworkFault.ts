/** What goes wrong in the network: in the kernel (NetworkFault), or between two records (LeaseClash). */
import * as Schema from "effect/Schema"

/** `operation` is the verb that failed; `reason` is a sentence for an operator. */
export class NetworkFault extends Schema.TaggedError<NetworkFault>()("NetworkFault", {
  operation: Schema.String,
  reason: Schema.String,
  cause: Schema.Defect()
}) {
  override get message(): string {
    return `${this.operation}: ${this.reason}`
  }
}

/**
 * Two records hold one address, MAC or TAP: an error to be shown, never a guess. `holder` is the other instance, or says
 * that the address belongs to nobody's record: it is outside of the subnet, or the subnet's own.
 */
export class LeaseClash extends Schema.TaggedError<LeaseClash>()("LeaseClash", {
  instance_id: Schema.String,
  holder: Schema.String,
  ip: Schema.String
}) {
  override get message(): string {
    return `the lease of ${this.instance_id} (${this.ip}) is taken: ${this.holder}`
  }
}
