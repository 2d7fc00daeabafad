/** The command `dataplane` itself: the flags that every command takes. Commands read them with `yield* dataplane`. */
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"

export const dataplane = Command.make("dataplane").pipe(
  Command.withSharedFlags({
    url: Flag.String("url").pipe(
      Flag.withMetavar("URL"),
      Flag.withDescription("Where the service is; else DATAPLANE_URL, else http://127.0.0.1:8080"),
      Flag.optional
    ),
    token: Flag.String("token").pipe(
      Flag.withMetavar("JWT"),
      Flag.withDescription("Bearer token; better in DATAPLANE_TOKEN, where no process list shows it"),
      Flag.optional
    ),
    json: Flag.Boolean("json").pipe(
      Flag.withDescription("Print JSON as the API has it; streams print one object a line"),
      Flag.withDefault(false),
      Flag.withoutNegation
    )
  }),
  Command.withDescription("Runs OCI images as virtual machines on this host.")
)
