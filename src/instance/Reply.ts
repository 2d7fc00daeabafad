/** What a client's verb comes to, as the actor tells it; `Instances.ts` makes problems of it. */
import type { InstanceState, Transition, Verb } from "../domain/Instance.ts"
import type { Failure } from "./Lifecycle.ts"

export type Reply =
  /** The end state is reached and durable, or it was so already. */
  | { readonly _tag: "Reached" }
  | {
      readonly _tag: "Denied"
      readonly reason: string
      readonly state: InstanceState
      readonly transition: Transition | null
      readonly allowed: ReadonlyArray<Verb>
    }
  /** Whatever the state: this host, or this instance, cannot do it. */
  | { readonly _tag: "Impossible"; readonly reason: string }
  | { readonly _tag: "Failed"; readonly verb: Transition; readonly failure: Failure }
  | { readonly _tag: "Cancelled"; readonly verb: Transition; readonly by: Verb }
  /** The actor's mailbox is full, the service drains, or the change cannot be recorded. */
  | { readonly _tag: "Busy"; readonly reason: string }
  | { readonly _tag: "Gone" }
  /** The record is not of a generation that the client expected; nothing was decided. */
  | { readonly _tag: "Moved"; readonly generation: number }
