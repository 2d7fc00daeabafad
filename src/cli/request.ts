/** POST /instances as flags: what `create` and `run` take, and the request that it makes. */
import { readFile } from "node:fs/promises"
import * as Argument from "effect/cli/Argument"
import * as Flag from "effect/cli/Flag"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { CreateInstance, RestartPolicy, VmmKind } from "../domain/Instance.ts"
import { failure, type Failure, typed } from "./Failure.ts"
import { findVolume } from "./names.ts"
import type { Remote } from "./Remote.ts"
import { reason } from "./text.ts"

const text = (name: string, metavar: string, description: string) =>
  Flag.String(name).pipe(Flag.withMetavar(metavar), Flag.withDescription(description))
const list = (name: string, metavar: string, description: string) =>
  text(name, metavar, description).pipe(Flag.atLeast(0))

export const requestFlags = {
  image: Argument.String("IMAGE").pipe(Argument.withDescription("Id or reference of an image")),
  command: Argument.String("COMMAND").pipe(
    Argument.withDescription("In place of the image's cmd; everything after IMAGE is its own"),
    Argument.variadic()
  ),
  id: text("id", "ID", "The instance's id; the service makes one where it is not given").pipe(Flag.optional),
  name: text("name", "NAME", "Free text for people").pipe(Flag.withAlias("n"), Flag.optional),
  memory: text("memory", "SIZE", "Memory at boot: MiB, or with a unit such as 2g").pipe(
    Flag.withAlias("m"),
    Flag.optional
  ),
  memoryMax: text("memory-max", "SIZE", "How far the memory can grow while the guest runs").pipe(
    Flag.optional
  ),
  vcpus: Flag.Int("vcpus").pipe(Flag.withAlias("c"), Flag.withDescription("Virtual CPUs"), Flag.optional),
  overlay: text("overlay", "SIZE", "The writable disk over the image; takes only what the guest writes").pipe(
    Flag.optional
  ),
  env: list("env", "NAME=VALUE", "Environment; a name alone takes the value that it has here").pipe(
    Flag.withAlias("e")
  ),
  envFile: list("env-file", "FILE", "Lines of NAME=VALUE; # begins a comment line"),
  label: list("label", "NAME=VALUE", "Label, for people and for ps --label").pipe(Flag.withAlias("l")),
  volume: list("volume", "VOLUME:PATH[:ro]", "A volume, by id or name, mounted at a path of the guest").pipe(
    Flag.withAlias("v")
  ),
  network: Flag.Boolean("network").pipe(
    Flag.withDescription("A network of its own address; --no-network for none"),
    Flag.withDefault(true)
  ),
  entrypoint: list("entrypoint", "WORD", "In place of the image's entrypoint; again for each further word"),
  workdir: text("workdir", "PATH", "Working directory in the guest").pipe(Flag.withAlias("w"), Flag.optional),
  user: text("user", "USER[:GROUP]", "Who the command runs as").pipe(Flag.withAlias("u"), Flag.optional),
  hostname: text("hostname", "NAME", "The guest's host name").pipe(Flag.optional),
  restart: Flag.Literals("restart", RestartPolicy.literals).pipe(
    Flag.withDescription("What follows when the guest ends by itself"),
    Flag.withDefault("never")
  ),
  vmm: Flag.Literals("vmm", VmmKind.literals).pipe(
    Flag.withDescription("Which VMM runs it; the service's own choice where it is not given"),
    Flag.optional
  ),
  pull: Flag.Literals("pull", ["missing", "never"]).pipe(
    Flag.withDescription("Whether an image that is not on the host is pulled"),
    Flag.withDefault("missing")
  )
}

type Given = {
  readonly [Name in keyof typeof requestFlags]: (typeof requestFlags)[Name] extends Flag.Flag<infer A>
    ? A
    : (typeof requestFlags)[Name] extends Argument.Argument<infer A>
      ? A
      : never
}

const unitMib: Readonly<Record<string, number>> = { "": 1, m: 1, g: 1024, t: 1024 * 1024 }

/** `512`, `512m`, `2g`, `2GiB`: MiB, whole. */
const mib = (flag: string, size: string): Effect.Effect<number, Failure> => {
  const [, digits, unit = ""] = /^(\d{1,9}(?:\.\d{1,3})?)([mgt]?)(?:i?b)?$/iu.exec(size) ?? []
  const value = Number(digits) * (unitMib[unit.toLowerCase()] ?? Number.NaN)
  return Number.isInteger(value)
    ? Effect.succeed(value)
    : Effect.fail(
        failure(`--${flag} takes MiB or a size with a unit, such as 512 or 2g; not "${size}".`, "usage")
      )
}

const optionalMib = (flag: string, size: Option.Option<string>) =>
  Option.isNone(size) ? Effect.void : mib(flag, size.value)

const pair = (flag: string, word: string): Effect.Effect<readonly [string, string], Failure> => {
  const at = word.indexOf("=")
  return at > 0
    ? Effect.succeed([word.slice(0, at), word.slice(at + 1)])
    : Effect.fail(failure(`--${flag} takes NAME=VALUE, not "${word}".`, "usage"))
}

/** A value is never told: it may be a secret. */
export const environmentPair = (
  word: string
): Effect.Effect<ReadonlyArray<readonly [string, string]>, Failure> => {
  if (word.includes("=") && !word.startsWith("=")) return Effect.map(pair("env", word), (it) => [it])
  const value = process.env[word]
  return value === undefined
    ? Effect.fail(failure(`--env ${word} is not set here, and has no value.`, "usage"))
    : Effect.succeed([[word, value]])
}

const environmentFile = (file: string) =>
  Effect.gen(function* () {
    const content = yield* Effect.tryPromise({
      try: () => readFile(file, "utf8"),
      catch: (error) => failure(`Cannot read --env-file ${file}: ${reason(error)}`, "usage")
    })
    const words = content.split(/\r?\n/u).filter((line) => line.trim() !== "" && !line.startsWith("#"))
    return (yield* Effect.forEach(words, environmentPair)).flat()
  })

const mount = (service: Remote, word: string) =>
  Effect.gen(function* () {
    const [, reference = "", path, mode] = /^([^:]+):(\/[^:]*)(?::(ro|rw))?$/u.exec(word) ?? []
    if (path === undefined)
      return yield* failure(`--volume takes VOLUME:PATH or VOLUME:PATH:ro, not "${word}".`, "usage")
    const { id } = yield* findVolume(service, reference)
    return { volume_id: id, mount_path: path, readonly: mode === "ro" }
  })

const whereGiven = <A>(name: string, value: Option.Option<A> | A | undefined) => {
  const given = Option.isOption(value) ? Option.getOrUndefined(value) : value
  return given === undefined ? {} : { [name]: given }
}

/** The request, checked by the API's own schema: what is wrong is told before anything is sent. */
export const createRequest = (service: Remote, given: Given, start: boolean) =>
  Effect.gen(function* () {
    const files = yield* Effect.forEach(given.envFile, environmentFile)
    const words = yield* Effect.forEach(given.env, environmentPair)
    const name = Option.getOrElse(
      Option.orElse(given.name, () => given.id),
      () => given.image.slice(0, 100)
    )
    const request = {
      name,
      image: given.image,
      ...whereGiven("id", given.id),
      ...whereGiven("memory_mb", yield* optionalMib("memory", given.memory)),
      ...whereGiven("memory_max_mb", yield* optionalMib("memory-max", given.memoryMax)),
      ...whereGiven("overlay_mb", yield* optionalMib("overlay", given.overlay)),
      ...whereGiven("vcpus", given.vcpus),
      env: Object.fromEntries([...files.flat(), ...words.flat()]),
      labels: Object.fromEntries(yield* Effect.forEach(given.label, (word) => pair("label", word))),
      volumes: yield* Effect.forEach(given.volume, (word) => mount(service, word)),
      network: { enabled: given.network },
      ...(given.command.length > 0 ? { command: given.command } : {}),
      ...(given.entrypoint.length > 0 ? { entrypoint: given.entrypoint } : {}),
      ...whereGiven("working_dir", given.workdir),
      ...whereGiven("user", given.user),
      ...whereGiven("hostname", given.hostname),
      ...whereGiven("vmm", given.vmm),
      restart_policy: given.restart,
      start
    }
    return yield* typed(CreateInstance, request, "The request is not valid")
  })
