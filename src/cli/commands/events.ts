/** Every state change of every instance, as it happens. */
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { InstanceEvent } from "../../domain/Event.ts"
import { failure } from "../Failure.ts"
import { followEvents } from "../following.ts"
import { findInstance } from "../names.ts"
import { remote } from "../Remote.ts"
import { printEach } from "../results.ts"
import { printable } from "../text.ts"

const exitText = ({ exit }: InstanceEvent): string => {
  if (exit === null) return ""
  const how = exit.signal ?? (exit.code === undefined ? "" : `code ${exit.code}`)
  return printable(` exit: ${[exit.reason, how, exit.message ?? ""].filter((it) => it !== "").join(", ")}`)
}

/** One line: when, who, what changed. */
const eventText = (event: InstanceEvent): string => {
  const { time, type, instance_id, from, to, transition, ready } = event
  const change = from === to ? (to ?? "deleted") : `${from ?? "new"} -> ${to ?? "deleted"}`
  const doing = transition === null ? "" : ` (${transition})`
  return `${time} ${instance_id} ${type.slice("instance.".length)} ${change}${doing}${ready ? " ready" : ""}${exitText(event)}\n`
}

export const events = Command.make(
  "events",
  {
    since: Flag.Int("since").pipe(
      Flag.withMetavar("ID"),
      Flag.withDescription(
        "Begin behind this event, 0 for the first one kept; new events only where it is not given"
      ),
      Flag.optional
    ),
    instance: Flag.String("instance").pipe(
      Flag.withMetavar("INSTANCE"),
      Flag.withDescription("Only events of this instance"),
      Flag.optional
    )
  },
  Effect.fnUntraced(function* ({ since, instance }) {
    const after = Option.getOrUndefined(since)
    if (after !== undefined && after < 0)
      return yield* failure("--since takes an event's id, 0 or more.", "usage")
    const service = yield* remote
    const only = Option.isSome(instance) ? (yield* findInstance(service, instance.value)).id : undefined
    yield* followEvents({
      position: { after },
      goesOn: true,
      open: (last) =>
        service.api.events.read({ query: {}, headers: last === undefined ? {} : { "last-event-id": last } }),
      each: ({ data }) =>
        only === undefined || data.instance_id === only ? printEach(data, () => eventText(data)) : Effect.void
    })
  })
).pipe(Command.withDescription("Follow what happens to instances, until interrupted"))
