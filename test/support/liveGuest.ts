/**
 * A guest that does what a test tells it: its image's process evaluates the lines that it is given, and a web server
 * beside it runs commands and answers with their output. Both as an image of anybody's could, over the TAP and with no
 * help of the agent.
 */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import * as HttpClientResponse from "effect/http/HttpClientResponse"
import { busyboxLayer } from "../../scripts/demoImage.ts"
import type { ArchiveSource } from "../../scripts/imageArchive.ts"
import { LogEntry } from "../../src/api/Instances.ts"
import { InstanceEvent } from "../../src/domain/Event.ts"
import type { ImageId } from "../../src/domain/Ids.ts"
import type { Instance, Transition } from "../../src/domain/Instance.ts"
import type { Service } from "./Service.ts"

/** Counts at this pace where COUNT is set: many lines a second, so that one that is lost or told twice shows. */
const countIntervalS = 0.1

/**
 * The image's process. `/tmp` is in the overlay, so what was there before a restart is there again; only the FIFO must
 * be new. A count names the guest's own clock beside it.
 */
const process1 = `#!/bin/sh
echo "guest: $(hostname) boots, greeting '$GREETING', token '$TOKEN'"
[ -e /tmp/kept ] && echo "guest: kept $(cat /tmp/kept)"
rm -f /tmp/orders
mkfifo /tmp/orders
httpd -p 80 -h /www
if [ -n "$COUNT" ]; then
  (n=0; while :; do n=$((n + 1)); echo "count $n at $(date +%s)"; sleep ${countIntervalS}; done) &
fi
echo "guest: up"
exec 3<>/tmp/orders
while read -r order <&3; do eval "$order"; done
`

/** POST a command, get what it says. */
const run = `#!/bin/sh
printf 'Content-Type: text/plain\\r\\n\\r\\n'
head -c "$CONTENT_LENGTH" | sh 2>&1
`

export const guestImage = {
  layers: [
    busyboxLayer(),
    [
      { kind: "directory", path: "www" },
      { kind: "directory", path: "www/cgi-bin" },
      { kind: "file", path: "www/index.html", content: "a page\n" },
      { kind: "file", path: "www/cgi-bin/run", content: run, mode: 0o755 },
      { kind: "file", path: "process1", content: process1, mode: 0o755 }
    ]
  ],
  entrypoint: ["/process1"],
  env: { PATH: "/bin", GREETING: "from the image", TOKEN: "image" },
  name: "guest:latest"
} satisfies ArchiveSource

/** A guest's server has no event for its start. */
const lookAgainEveryMs = 100
const looksAtMost = 300
const answerMaxMs = 20_000

/** Runs a command line in the guest and gives its output. Waits for the guest's server where it is not there yet. */
export const inGuest = (service: Service, instance: Instance, command: string) =>
  service.namespace.http
    .execute(
      HttpClientRequest.post(`http://${instance.network.ip}/cgi-bin/run`).pipe(
        HttpClientRequest.bodyText(`${command}\n`)
      )
    )
    .pipe(
      Effect.flatMap((response) => response.text),
      Effect.timeout(answerMaxMs),
      Effect.retry({ schedule: Schedule.spaced(lookAgainEveryMs), times: looksAtMost })
    )

/** Has the image's process itself evaluate a line, `exit 7` for instance. Nobody answers. */
export const order = (service: Service, instance: Instance, line: string) =>
  inGuest(service, instance, `echo '${line}' > /tmp/orders`)

export interface LogOptions {
  readonly source?: "app" | "vmm" | "dataplane"
  readonly follow?: boolean
  readonly tail?: number
  /** Sent as Last-Event-ID. */
  readonly after?: number
}

/** Server-sent events as they come; comments and the reconnection time are left out. Ends with the response. */
const eventStream = (service: Service, path: string, after: number | undefined) =>
  HttpClientResponse.stream(
    service.api.execute(
      HttpClientRequest.get(path).pipe(
        HttpClientRequest.accept("text/event-stream"),
        HttpClientRequest.setHeaders(after === undefined ? {} : { "last-event-id": `${after}` })
      )
    )
  ).pipe(
    Stream.decodeText(),
    Stream.splitLines,
    Stream.filter((line) => /^(id|data): /u.test(line)),
    Stream.grouped(2),
    Stream.map(([id, data = ""]) => ({
      id: Number(id.slice("id: ".length)),
      data: data.slice("data: ".length)
    }))
  )

export interface LogLine extends LogEntry {
  /** The event's id: what resumes behind the line. */
  readonly cursor: number
}

const decodeEntry = Schema.decodeUnknownSync(Schema.fromJsonString(LogEntry))
const decodeEvent = Schema.decodeUnknownSync(Schema.fromJsonString(InstanceEvent))

/** The lines of an instance's log. */
export const logLines = (service: Service, id: string, options: LogOptions = {}): Stream.Stream<LogLine> => {
  const query = new URLSearchParams({
    ...(options.source === undefined ? {} : { source: options.source }),
    ...(options.follow === undefined ? {} : { follow: `${options.follow}` }),
    ...(options.tail === undefined ? {} : { tail: `${options.tail}` })
  })
  return eventStream(service, `/instances/${id}/logs?${query.toString()}`, options.after).pipe(
    Stream.map((event) => ({ cursor: event.id, ...decodeEntry(event.data) })),
    Stream.orDie
  )
}

/** All lines until now. */
export const allLines = (service: Service, id: string, options: LogOptions = {}) =>
  Stream.runCollect(logLines(service, id, options))

/** A guest under software emulation, on a machine that does other things as well. */
const lineMaxMs = 60_000

/** Follows until a line matches, and gives all lines up to it. Dies where that takes too long. */
export const untilLine = (
  service: Service,
  id: string,
  matches: (line: LogLine) => boolean,
  options: LogOptions = {}
) =>
  Effect.suspend(() => {
    let found = false
    return logLines(service, id, { ...options, follow: true }).pipe(
      Stream.takeUntil((line) => (found = matches(line))),
      Stream.runCollect,
      Effect.timeoutOrElse({
        duration: lineMaxMs,
        orElse: () => Effect.die(new Error(`no such line of ${id} within ${lineMaxMs} ms`))
      }),
      Effect.filterOrElse(
        () => found,
        (seen) =>
          Effect.die(
            new Error(`the log of ${id} ended without such a line:\n${seen.map((it) => it.line).join("\n")}`)
          )
      )
    )
  })

/** GET /events behind a cursor. */
export const instanceEvents = (service: Service, after?: number) =>
  eventStream(service, "/events", after).pipe(
    Stream.map((event) => decodeEvent(event.data)),
    Stream.orDie
  )

/** Ends when an instance is busy with a verb, since its generation was the given one. */
export const untilTransition = (service: Service, id: string, transition: Transition, since: number) =>
  instanceEvents(service, 0).pipe(
    Stream.filter(
      (event) => event.instance_id === id && event.transition === transition && event.generation > since
    ),
    Stream.runHead
  )

/** The image, once it is ready or has failed. */
export const untilSettled = (service: Service, id: ImageId) =>
  service.client.images.get({ params: { id } }).pipe(
    Effect.repeat({
      schedule: Schedule.spaced(lookAgainEveryMs),
      times: looksAtMost,
      until: ({ status }) => status === "ready" || status === "failed"
    })
  )

/** The image, once it is ready. Dies where it fails. */
export const untilImage = (service: Service, id: ImageId) =>
  untilSettled(service, id).pipe(
    Effect.filterOrElse(
      ({ status }) => status === "ready",
      ({ status, error }) => Effect.die(new Error(`image ${id} is ${status}: ${error}`))
    )
  )

/** The state, once it is reached and nothing more is under way. */
export const untilState = (service: Service, instance: Pick<Instance, "id">, state: Instance["state"]) =>
  service.client.instances.wait({ params: { id: instance.id }, query: { state, timeout_ms: lineMaxMs } })

export const untilReady = (service: Service, instance: Pick<Instance, "id">) =>
  service.client.instances.wait({
    params: { id: instance.id },
    query: { ready: true, timeout_ms: lineMaxMs }
  })

const decodeJson = Schema.decodeEffect(Schema.fromJsonString(Schema.Unknown))
const Problem = Schema.Struct({
  type: Schema.String,
  title: Schema.String,
  status: Schema.Int,
  detail: Schema.String
})

const decodeProblem = Schema.decodeUnknownEffect(Problem)

/** A request as any client would send it; `body` is sent as it is where it is text, and as JSON otherwise. */
export const ask = (
  service: Service,
  method: "GET" | "POST" | "PATCH" | "DELETE",
  path: string,
  body?: unknown
) =>
  Effect.gen(function* () {
    const request = HttpClientRequest.make(method)(path)
    const text = typeof body === "string" ? body : JSON.stringify(body)
    const response = yield* service.api.execute(
      body === undefined ? request : HttpClientRequest.bodyText(request, text, "application/json")
    )
    const said = yield* response.text
    return { status: response.status, headers: response.headers, text: said }
  })

/**
 * A request that is refused: its problem, proven to be one (RFC 9457) that a person can act on and that holds no path of
 * this host.
 */
export const refused = (
  service: Service,
  method: "GET" | "POST" | "PATCH" | "DELETE",
  path: string,
  body?: unknown
) =>
  Effect.gen(function* () {
    const answer = yield* ask(service, method, path, body)
    assert.strictEqual(answer.headers["content-type"], "application/problem+json", answer.text)
    const members = yield* decodeJson(answer.text)
    const problem = yield* decodeProblem(members)
    assert.strictEqual(problem.status, answer.status)
    assert.match(problem.detail, /^[^\n]{10,600}[.:?]?$/u)
    for (const secret of [service.dataDir, service.runDirectory, "node_modules", "    at "])
      assert.notInclude(answer.text, secret)
    return { ...problem, name: problem.type.slice(problem.type.lastIndexOf("/") + 1), members }
  })
