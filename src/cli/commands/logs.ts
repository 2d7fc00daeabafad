/** The log of an instance: its console, its VMM's own output, or what the dataplane did with it. */
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import { tailMaxLines } from "../../api/Instances.ts"
import type { InstanceId } from "../../domain/Ids.ts"
import { failure } from "../Failure.ts"
import { followEvents, type Position } from "../following.ts"
import { findInstance } from "../names.ts"
import { type Remote, remote } from "../Remote.ts"
import { printEach } from "../results.ts"
import { consoleLine } from "../text.ts"
import { instance } from "./list.ts"

export interface LogWish {
  readonly source: "app" | "vmm" | "dataplane"
  readonly follow: boolean
  readonly tail: number | undefined
  readonly timestamps: boolean
}

/** Prints the log; while it follows, a connection that drops is taken up behind the last line. */
export const printLogs = (service: Remote, id: InstanceId, wish: LogWish, position: Position) =>
  followEvents({
    position,
    goesOn: wish.follow,
    open: (after) =>
      service.api.instances
        .logs({
          params: { id },
          query: {
            source: wish.source,
            follow: wish.follow,
            ...(wish.tail === undefined || after !== undefined ? {} : { tail: wish.tail })
          },
          headers: after === undefined ? {} : { "last-event-id": after }
        })
        .pipe(
          Effect.flatMap((events) =>
            Predicate.isString(events)
              ? Effect.fail(failure("The service sent the log as text without cursors."))
              : Effect.succeed(events)
          )
        ),
    each: ({ id: cursor, data: { time, line } }) =>
      printEach({ cursor: Number(cursor), time, line }, ({ columns, colour }) => {
        const shown = columns === undefined ? line : consoleLine(line, colour)
        return wish.timestamps ? `${time} ${shown}\n` : `${shown}\n`
      })
  })

export const logs = Command.make(
  "logs",
  {
    instance,
    follow: Flag.Boolean("follow").pipe(
      Flag.withAlias("f"),
      Flag.withDescription("Go on with new lines until interrupted; a dropped connection is taken up again"),
      Flag.withDefault(false),
      Flag.withoutNegation
    ),
    tail: Flag.Int("tail").pipe(
      Flag.withMetavar("N"),
      Flag.withDescription("The newest N lines only"),
      Flag.optional
    ),
    source: Flag.Literals("source", ["app", "vmm", "dataplane"]).pipe(
      Flag.withDescription("The console, the VMM's own output, or what the dataplane did"),
      Flag.withDefault("app")
    ),
    timestamps: Flag.Boolean("timestamps").pipe(
      Flag.withAlias("t"),
      Flag.withDescription("When the dataplane saw each line"),
      Flag.withDefault(false),
      Flag.withoutNegation
    )
  },
  Effect.fnUntraced(function* ({ instance, follow, tail, source, timestamps }) {
    const lines = Option.getOrUndefined(tail)
    if (lines !== undefined && (lines < 0 || lines > tailMaxLines))
      return yield* failure(`--tail takes 0 to ${tailMaxLines} lines.`, "usage")
    const service = yield* remote
    const { id } = yield* findInstance(service, instance)
    yield* printLogs(service, id, { source, follow, tail: lines, timestamps }, { after: undefined })
  })
).pipe(Command.withDescription("Show an instance's log"))
