/**
 * The commands as a program: words in, exit code out. Results go to stdout; a failure is one sentence on stderr.
 */
import * as NodeHttpClient from "@effect/platform-node/NodeHttpClient"
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Cause from "effect/Cause"
import * as CliConfig from "effect/cli/CliConfig"
import * as CliError from "effect/cli/CliError"
import * as CliOutput from "effect/cli/CliOutput"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as GlobalFlag from "effect/cli/GlobalFlag"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { version } from "../domain/Version.ts"
import { prepared } from "./argv.ts"
import { commands, commandTails, commandTree } from "./commands.ts"
import { exitCodes, failureOf } from "./Failure.ts"
import type { LocalService } from "./LocalService.ts"
import { Screen } from "./Screen.ts"

/** `-v` is a volume's. */
const versionFlag = GlobalFlag.Action({
  flag: Flag.Boolean("version").pipe(
    Flag.withDescription("Show the version"),
    Flag.withDefault(false),
    Flag.withoutNegation
  ),
  run: GlobalFlag.Version.run
})

/** What is wrong with a line goes to stderr in a few lines, without the whole help. */
const layerPresenter = Layer.effect(
  CliOutput.Presenter,
  Effect.map(Screen, (screen) => {
    const formatter = CliOutput.defaultFormatter({ colors: screen.colour })
    return {
      present: (event: CliOutput.Presenter.Event) =>
        Effect.sync(() => {
          switch (event._tag) {
            case "Help":
              return screen.out(`${formatter.formatHelpDoc(event.helpDoc)}\n`)
            case "InvalidInvocation":
              return screen.note(
                `${event.errors.map(({ message }) => message).join("\n")}\nSee \`${event.commandPath.join(" ")} --help\`.\n`
              )
            case "Version":
              return screen.out(`${event.name} ${event.version}\n`)
          }
        })
    }
  })
)

const layerCli = layerPresenter.pipe(
  Layer.merge(CliConfig.layer({ builtIns: [GlobalFlag.Help, versionFlag] })),
  Layer.provideMerge(Screen.layer),
  Layer.merge(NodeHttpClient.layerNodeHttp),
  Layer.merge(NodeServices.layer)
)

const end = (cause: Cause.Cause<unknown>) =>
  Effect.gen(function* () {
    if (Cause.hasInterruptsOnly(cause)) return exitCodes.interrupted
    const error = Cause.squash(cause)
    if (CliError.isCliError(error)) {
      if (error._tag !== "ShowHelp") (yield* Screen).note(`${error.message}\n`)
      return exitCodes.usage
    }
    const { sentence, exitCode } = yield* failureOf(error)
    if (sentence !== "") (yield* Screen).note(`${sentence}\n`)
    return exitCode
  })

/** Runs one command line, without the program's name; gives its exit code. */
export const runCommandLine = (words: ReadonlyArray<string>): Effect.Effect<number, never, LocalService> =>
  Command.runWith(commands, { version })(prepared(words, commandTree(), commandTails)).pipe(
    Effect.as(0),
    Effect.catchCause(end),
    Effect.provide(layerCli)
  )
