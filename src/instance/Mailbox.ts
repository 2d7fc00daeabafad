/**
 * What an actor reads: one queue, bounded for clients, read in the order of urgency: the guest's or VMM's end, results
 * of work, stop and delete, the other verbs. Within one urgency first come, first served.
 */
import type * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
import type * as Tracer from "effect/Tracer"
import type { VolumeId } from "../domain/Ids.ts"
import type { PatchInstance } from "../domain/Instance.ts"
import type { Command, Event } from "./Lifecycle.ts"
import type { Reply } from "./Reply.ts"

/** Verbs that may wait in front of one instance; the next one is told to come again. */
export const commandsMax = 64

/** The generations that a change may find the record in; null where any will do. */
export type Expected = ReadonlyArray<number> | null

export type Mail =
  | {
      readonly _tag: "Command"
      readonly command: Command
      readonly expected: Expected
      readonly reply: Deferred.Deferred<Reply>
      /** The span of the request that asks. */
      readonly parent: Tracer.AnySpan | undefined
      /** Done once the command is decided, and what it reserves is recorded and shown. */
      readonly taken?: Deferred.Deferred<void>
    }
  | { readonly _tag: "Event"; readonly event: Event }
  | {
      readonly _tag: "Amend"
      readonly changes: PatchInstance
      readonly expected: Expected
      readonly reply: Deferred.Deferred<Reply>
    }
  /** A live memory change is over: what was asked for, and what the guest has now. */
  | {
      readonly _tag: "Resized"
      readonly requestedMb: number
      readonly actualMb: number
      readonly reply: Deferred.Deferred<Reply>
    }
  /** A volume's file has grown, and the guest is to follow. */
  | {
      readonly _tag: "Grow"
      readonly volume: VolumeId
      readonly bytes: number
      readonly reply: Deferred.Deferred<Reply>
    }
  | { readonly _tag: "Ready"; readonly ready: boolean }
  /** The record could not be written; try again. */
  | { readonly _tag: "Save" }

/** From a client: counted, and bounded. */
const isAsked = ({ _tag }: Mail): boolean => _tag === "Command" || _tag === "Amend" || _tag === "Grow"

const urgency = (mail: Mail): number => {
  if (mail._tag === "Amend" || mail._tag === "Grow") return 3
  if (mail._tag !== "Command") return mail._tag === "Event" && mail.event._tag === "GuestEnded" ? 0 : 1
  return mail.command._tag === "Stop" || mail.command._tag === "Delete" ? 2 : 3
}

export const make = Effect.map(Queue.unbounded<Mail>(), (queue) => {
  const pending: Array<Mail> = []
  let commands = 0

  const sort = (arrived: ReadonlyArray<Mail>) => {
    for (const mail of arrived) {
      const at = pending.findIndex((it) => urgency(it) > urgency(mail))
      pending.splice(at === -1 ? pending.length : at, 0, mail)
    }
  }

  /** False where the mailbox is full of commands; events always fit: they are as few as the work in flight. */
  const offer = (mail: Mail): boolean => {
    if (isAsked(mail)) {
      if (commands >= commandsMax) return false
      commands++
    }
    return Queue.offerUnsafe(queue, mail)
  }

  const take: Effect.Effect<Mail> = Effect.gen(function* () {
    sort(pending.length === 0 ? yield* Queue.takeAll(queue) : yield* Queue.clear(queue))
    const mail = pending.shift()
    if (mail === undefined) return yield* take
    if (isAsked(mail)) commands--
    return mail
  })

  /** What nobody will take any more: the loop has ended. */
  const drain: Effect.Effect<ReadonlyArray<Mail>> = Effect.map(Queue.clear(queue), (arrived) => [
    ...pending.splice(0),
    ...arrived
  ])

  return { offer, take, drain }
})

export type Mailbox = Effect.Success<typeof make>
