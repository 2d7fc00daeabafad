/** All commands, as the one tree that is parsed, explained by --help and completed by shells. */
import * as Argument from "effect/cli/Argument"
import * as Command from "effect/cli/Command"
import * as Completions from "effect/cli/Completions"
import * as Effect from "effect/Effect"
import { events } from "./commands/events.ts"
import { exec } from "./commands/exec.ts"
import { copy } from "./commands/copy.ts"
import { gc, image } from "./commands/images.ts"
import { inspect, ps, wait } from "./commands/list.ts"
import { doctor, fsck, serve } from "./commands/local.ts"
import { logs } from "./commands/logs.ts"
import { createCommand, run } from "./commands/run.ts"
import { pause, remove, restore, resume, shutdown, standby, start, stop } from "./commands/verbs.ts"
import { token } from "./commands/token.ts"
import { attach, detach, volumeCommand } from "./commands/volumes.ts"
import { dataplane } from "./dataplane.ts"
import { Screen } from "./Screen.ts"

const completion = Command.make(
  "completion",
  { shell: Argument.Literals("SHELL", ["bash", "zsh", "fish"]) },
  ({ shell }) =>
    Effect.flatMap(Screen, (screen) =>
      Effect.sync(() =>
        screen.out(Completions.generate("dataplane", shell, Completions.fromCommand(described)))
      )
    )
).pipe(Command.withDescription("Print a completion script for a shell"))

/** Commands that need no other command to be known. */
const listed = [
  serve,
  doctor,
  token,
  image,
  run,
  createCommand,
  ps,
  inspect,
  start,
  stop,
  pause,
  resume,
  shutdown,
  standby,
  restore,
  remove,
  wait,
  logs,
  exec,
  copy,
  volumeCommand,
  attach,
  detach,
  events,
  gc,
  fsck
] as const

export const commands = Command.withSubcommands(dataplane, [...listed, completion])

/** The tree as data, for completion and for what people type. */
const described: Command.Command.Any = commands
export const commandTree = (): Completions.CommandDescriptor => Completions.fromCommand(described)

/** From this operand on, the words of these commands are the guest's. */
export const commandTails: ReadonlyMap<string, number> = new Map([
  ["run", 2],
  ["create", 2],
  ["exec", 2]
])
