/** Instances: virtual machines on this host, and what a client may ask of them. */
import * as Schema from "effect/Schema"
import * as HttpApiEndpoint from "effect/http-api/HttpApiEndpoint"
import * as HttpApiGroup from "effect/http-api/HttpApiGroup"
import * as HttpApiSchema from "effect/http-api/HttpApiSchema"
import * as OpenApi from "effect/http-api/OpenApi"
import { InstanceId, Timestamp } from "../domain/Ids.ts"
import { CreateInstance, Instance, InstanceState, PatchInstance, RestoreMode } from "../domain/Instance.ts"
import {
  Busy,
  HostUnfit,
  IdempotencyOutcomeUnknown,
  ImageNotFound,
  ImageNotReady,
  InstanceExists,
  InstanceNotFound,
  InsufficientMemory,
  InvalidState,
  NoAddressLeft,
  PreconditionFailed,
  Unprocessable,
  VerbCancelled,
  VerbFailed,
  VolumeInUse,
  VolumeNotFound,
  WaitTimeout
} from "../domain/problems.ts"
import { Authorization } from "./Authorization.ts"
import { execEndpoints } from "./Exec.ts"
import { filesEndpoints } from "./Files.ts"
import { Idempotency, TellsOutcome } from "./Idempotency.ts"
import { IfMatch } from "./IfMatch.ts"
import { FlagParameter, IntParameter } from "./parameters.ts"
import { JsonBody, Validation } from "./Validation.ts"

/** The longest that GET /instances/{id}/wait holds a request. */
export const waitMaxMs = 600_000
export const waitDefaultMs = 60_000
/** The most old lines that one request for logs may ask for. */
export const tailMaxLines = 100_000

/** The request that the documentation shows; it works as it stands once an image `img-nginx` is ready. */
export const createInstanceExample: typeof CreateInstance.Encoded = {
  id: "my-instance",
  name: "My Workload",
  image: "img-nginx",
  memory_mb: 2048,
  memory_max_mb: 4096,
  vcpus: 2,
  env: { NODE_ENV: "production" }
}

const removed = Schema.Void.annotate({ description: "Deleted." }).pipe(HttpApiSchema.status(204))
const id = { id: InstanceId }

const LabelSelector = Schema.String.check(
  Schema.isPattern(/^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?=[^\0]{0,256}$/u, {
    expected: "a label as name=value"
  })
).annotate({
  description: "A label as name=value; may be given again, and all must match.",
  examples: ["tier=web"]
})

const listQuery = {
  state: Schema.optionalKey(InstanceState),
  label: Schema.optionalKey(Schema.Array(LabelSelector).check(Schema.isMaxLength(64)))
}

const stopQuery = {
  discard_snapshot: Schema.optionalKey(
    FlagParameter({ description: "Gives up the snapshot of an instance in Standby.", default: false })
  )
}

const restoreQuery = {
  resume: Schema.optionalKey(
    FlagParameter({
      description: "`false` leaves an instance paused that was paused before standby.",
      default: true
    })
  ),
  restore_mode: Schema.optionalKey(
    RestoreMode.annotate({
      description:
        "How the memory comes back: `copy` reads and proves all of it first, `on_demand` brings each page when the guest needs it and is refused where the VMM cannot do it right. Default: auto, which is copy."
    })
  )
}

const waitQuery = {
  state: Schema.optionalKey(InstanceState),
  ready: Schema.optionalKey(
    FlagParameter({ description: "Waits until the guest's init has answered.", default: false })
  ),
  timeout_ms: Schema.optionalKey(
    IntParameter({
      minimum: 0,
      maximum: waitMaxMs,
      default: waitDefaultMs,
      description: "How long to wait, in milliseconds."
    })
  )
}

const cursorMax = Number.MAX_SAFE_INTEGER

const logsQuery = {
  follow: Schema.optionalKey(FlagParameter({ description: "Goes on with new lines.", default: false })),
  tail: Schema.optionalKey(
    IntParameter({
      minimum: 0,
      maximum: tailMaxLines,
      description: "The newest n lines only; ignored where Last-Event-ID is given."
    })
  ),
  source: Schema.optionalKey(
    Schema.Literals(["app", "vmm", "dataplane"]).annotate({
      description: "The guest's console, the VMM's own output, or what the dataplane did. Default: app."
    })
  )
}

const logsHeaders = {
  "last-event-id": Schema.optionalKey(
    IntParameter({
      minimum: 0,
      maximum: cursorMax,
      description: "Resumes behind the line with this id, without loss and without repetition."
    })
  )
}

/** `data` of a log event. */
export const LogEntry = Schema.Struct({ time: Timestamp, line: Schema.String }).annotate({
  identifier: "LogEntry",
  description: "One line of a log; `time` is when the dataplane saw it."
})
export type LogEntry = typeof LogEntry.Type

/** One event a line: `id` is the cursor that resumes behind it. Heartbeats are comments, which readers skip. */
const LogEventStream = HttpApiSchema.StreamSse({
  events: Schema.Struct({
    id: Schema.String.annotate({ description: "The byte offset behind the line." }),
    data: Schema.fromJsonString(LogEntry)
  })
})

export const verbProblems = [
  InstanceNotFound,
  InvalidState,
  PreconditionFailed,
  HostUnfit,
  VerbCancelled,
  VerbFailed,
  Busy
] as const

export const launchProblems = [...verbProblems, InsufficientMemory, Unprocessable] as const

export const createProblems = [
  InstanceExists,
  ImageNotFound,
  ImageNotReady,
  InsufficientMemory,
  NoAddressLeft,
  Unprocessable,
  VolumeNotFound,
  VolumeInUse,
  HostUnfit,
  VerbCancelled,
  VerbFailed,
  Busy
] as const

export const patchProblems = [
  InstanceNotFound,
  InvalidState,
  PreconditionFailed,
  InsufficientMemory,
  Unprocessable,
  VerbFailed,
  Busy
] as const

/** POST /instances/{id}/{verb}: 200 with the instance once its end state is reached and durable. */
const verb = <const Name extends string>(name: Name, summary: string) =>
  HttpApiEndpoint.post(name, `/:id/${name}`, {
    params: id,
    success: Instance,
    error: verbProblems
  })
    .middleware(IfMatch)
    .middleware(Idempotency)
    .annotateMerge(OpenApi.annotations({ summary }))

const start = HttpApiEndpoint.post("start", "/:id/start", {
  params: id,
  success: Instance,
  error: launchProblems
})
  .middleware(IfMatch)
  .middleware(Idempotency)
  .annotateMerge(OpenApi.annotations({ summary: "Boot the guest" }))

const stop = HttpApiEndpoint.post("stop", "/:id/stop", {
  params: id,
  query: stopQuery,
  success: Instance,
  error: verbProblems
})
  .middleware(IfMatch)
  .middleware(Idempotency)
  .annotateMerge(
    OpenApi.annotations({
      summary: "Turn the guest off, then end the VMM",
      description: "The guest is asked first, and forced after a grace period. Cancels a slower verb."
    })
  )

const restore = HttpApiEndpoint.post("restore", "/:id/restore", {
  params: id,
  query: restoreQuery,
  success: Instance,
  error: launchProblems
})
  .middleware(IfMatch)
  .middleware(Idempotency)
  .annotateMerge(OpenApi.annotations({ summary: "Bring a guest back from its snapshot" }))

const records = [
  HttpApiEndpoint.get("list", "/", { query: listQuery, success: Schema.Array(Instance) }).annotateMerge(
    OpenApi.annotations({ summary: "All instances, or those that match" })
  ),
  HttpApiEndpoint.post("create", "/", {
    payload: CreateInstance,
    success: Instance.pipe(HttpApiSchema.status(201)),
    error: [...createProblems, IdempotencyOutcomeUnknown]
  })
    .middleware(Idempotency)
    .annotate(TellsOutcome, true)
    .middleware(JsonBody)
    .annotateMerge(
      OpenApi.annotations({
        summary: "Create an instance",
        description: "Answers when it is Running, or Created with `start: false`."
      })
    ),
  HttpApiEndpoint.get("get", "/:id", {
    params: id,
    success: Instance,
    error: InstanceNotFound
  }).annotateMerge(
    OpenApi.annotations({ summary: "One instance", description: "The ETag is its generation." })
  ),
  HttpApiEndpoint.patch("patch", "/:id", {
    params: id,
    payload: PatchInstance,
    success: Instance,
    error: patchProblems
  })
    .middleware(IfMatch)
    .middleware(JsonBody)
    .annotateMerge(
      OpenApi.annotations({
        summary: "Change an instance",
        description:
          "Name, labels and restart policy in any state; memory within memory_max_mb, live while it is Running."
      })
    ),
  HttpApiEndpoint.delete("remove", "/:id", {
    params: id,
    success: removed,
    error: verbProblems
  })
    .middleware(IfMatch)
    .annotateMerge(
      OpenApi.annotations({
        summary: "Delete an instance",
        description: "Legal in every state, and cancels what is under way; nothing is left on the host."
      })
    )
] as const

const watching = [
  HttpApiEndpoint.get("wait", "/:id/wait", {
    params: id,
    query: waitQuery,
    success: Instance,
    error: [InstanceNotFound, WaitTimeout]
  }).annotateMerge(
    OpenApi.annotations({
      summary: "Wait for a state, for the guest to be ready, or both",
      description:
        "Answers with the instance as soon as it is so; 408 when it takes longer than `timeout_ms`."
    })
  ),
  HttpApiEndpoint.get("logs", "/:id/logs", {
    params: id,
    query: logsQuery,
    headers: logsHeaders,
    success: [
      LogEventStream,
      Schema.String.annotate({ description: "With `Accept: text/plain`: the lines alone." }).pipe(
        HttpApiSchema.asText({ contentType: "text/plain; charset=utf-8" })
      )
    ],
    error: InstanceNotFound
  }).annotateMerge(
    OpenApi.annotations({
      summary: "Log lines as server-sent events",
      description:
        "`id` is a cursor (the byte offset behind the line), `data` is `{time, line}`. A comment is sent as heartbeat while nothing happens."
    })
  )
] as const

export class InstancesGroup extends HttpApiGroup.make("instances")
  .add(
    ...records,
    start,
    verb("pause", "Freeze the guest in memory"),
    verb("resume", "Let a paused guest go on"),
    verb("shutdown", "Turn the guest off, keep the VMM"),
    stop,
    verb("standby", "Snapshot the guest to disk, then end the VMM"),
    restore,
    ...watching,
    ...execEndpoints,
    ...filesEndpoints
  )
  .middleware(Validation)
  .middleware(Authorization)
  .prefix("/instances")
  .annotateMerge(
    OpenApi.annotations({ title: "instances", description: "Virtual machines on this host." })
  ) {}
