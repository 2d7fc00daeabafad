/**
 * A guest that does what a test tells it: its image's process evaluates the lines that it is given, and a web server
 * beside it runs commands and answers with their output. Both as an image of anybody's could, over the TAP and with no
 * help of the agent.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import { busyboxLayer } from "../../scripts/demoImage.ts"
import type { ArchiveSource } from "../../scripts/imageArchive.ts"
import type { Instance } from "../../src/domain/Instance.ts"
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
echo "Content-Type: text/plain"
echo
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
const looksAtMost = 600
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

export interface LogLine {
  readonly cursor: number
  readonly time: string
  readonly line: string
}

export interface LogOptions {
  readonly source?: "app" | "vmm" | "dataplane"
  readonly follow?: boolean
  readonly tail?: number
  /** Sent as Last-Event-ID. */
  readonly after?: number
}

/** Server-sent events as they come: blocks of fields, comments and the reconnection time left out. */
export const eventsAt = (service: Service, path: string, after?: number) =>
  Stream.unwrap(
    Effect.map(
      service.api.execute(
        HttpClientRequest.get(path).pipe(
          HttpClientRequest.accept("text/event-stream"),
          HttpClientRequest.setHeaders(after === undefined ? {} : { "last-event-id": `${after}` })
        )
      ),
      (response) => response.stream
    )
  ).pipe(
    Stream.decodeText(),
    Stream.splitLines,
    Stream.filterMap((line) => {
      const field = /^(id|data): (.*)$/su.exec(line)
      return field === null ? Option.none() : Option.some([field[1], field[2] ?? ""] as const)
    }),
    Stream.grouped(2),
    Stream.map(([id, data]) => ({ id: Number(id?.[1]), data: data?.[1] ?? "" }))
  )
