/**
 * One service for one DATA_DIR. The holder is a process identity in `service.json`, taken by a hard link, which the
 * kernel gives to one taker only; a holder that is dead, by pid, start time and boot id, is taken over.
 */
import * as fs from "node:fs/promises"
import * as path from "node:path"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as Schema from "effect/Schema"
import { ProcessIdentity } from "../domain/Process.ts"
import { FileFault } from "./Fault.ts"
import { Paths } from "./Paths.ts"
import { identify, isAlive } from "./Proc.ts"

const HolderJson = Schema.fromJsonString(ProcessIdentity)
/** Takes that a dead holder, or another service that starts at the same moment, may cost. */
const takeAttempts = 5

export class ServiceRuns extends Schema.TaggedError<ServiceRuns>()("ServiceRuns", {
  pid: Schema.Int,
  data_dir: Schema.String
}) {
  override get message(): string {
    return `DATA_DIR=${this.data_dir}: another dataplane (pid ${this.pid}) uses it; stop that one or choose another directory`
  }
}

const attempt = <A>(operation: string, target: string, body: () => Promise<A>) =>
  Effect.tryPromise({
    try: body,
    catch: (cause) =>
      new FileFault({
        operation,
        path: target,
        code: Predicate.hasProperty(cause, "code") && Predicate.isString(cause.code) ? cause.code : "UNKNOWN",
        cause
      })
  })

const holder = (target: string) =>
  attempt("read", target, () => fs.readFile(target, "utf8")).pipe(
    Effect.map(Schema.decodeUnknownOption(HolderJson)),
    Effect.orElseSucceed(() => Option.none<ProcessIdentity>())
  )

/** True where the link was ours to make. */
const link = (from: string, to: string) =>
  attempt("link", to, () => fs.link(from, to)).pipe(
    Effect.as(true),
    Effect.catchIf(
      (fault) => fault.code === "EEXIST",
      () => Effect.succeed(false)
    )
  )

const take = Effect.fnUntraced(function* (target: string, own: ProcessIdentity, dataDir: string) {
  const ticket = `${target}.${own.pid}`
  yield* attempt("write", ticket, () =>
    fs.writeFile(ticket, Schema.encodeSync(HolderJson)(own), { mode: 0o600 })
  )
  const drop = attempt("remove", ticket, () => fs.rm(ticket, { force: true }))
  return yield* Effect.gen(function* () {
    for (let attempts = 0; attempts < takeAttempts; attempts++) {
      if (yield* link(ticket, target)) return
      const present = yield* holder(target)
      if (Option.isSome(present) && (yield* isAlive(present.value)))
        return yield* new ServiceRuns({ pid: present.value.pid, data_dir: dataDir })
      yield* attempt("remove", target, () => fs.rm(target, { force: true }))
    }
    return yield* new ServiceRuns({ pid: own.pid, data_dir: dataDir })
  }).pipe(Effect.ensuring(Effect.ignore(drop)))
})

export class ServiceLock extends Context.Service<ServiceLock, { readonly own: ProcessIdentity }>()(
  "dataplane/host/ServiceLock"
) {
  static readonly layer = Layer.effect(
    ServiceLock,
    Effect.gen(function* () {
      const { service, root } = yield* Paths
      yield* attempt("mkdir", root, () => fs.mkdir(root, { recursive: true, mode: 0o700 }))
      const own = Option.getOrThrow(yield* identify(process.pid))
      yield* Effect.acquireRelease(take(service, own, path.resolve(root)), () =>
        Effect.ignore(attempt("remove", service, () => fs.rm(service, { force: true })))
      )
      return ServiceLock.of({ own })
    })
  )
}
