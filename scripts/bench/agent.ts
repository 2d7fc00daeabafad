/**
 * Processes and files in a guest through the agent, beside the same done over the guest's own network: a web server in
 * the image (busybox httpd) that runs commands and takes and gives files. Both are asked through the same door into the
 * service's namespace, in turns, on one guest.
 *
 *   agent     client ──► service ──► virtio-serial ──► init's agent
 *   network   client ──► TAP ──► virtio-net ──► httpd, which starts a process for each request
 */
import { randomFillSync } from "node:crypto"
import * as Effect from "effect/Effect"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import * as Stream from "effect/Stream"
import * as tar from "tar-stream"
import { buffer } from "node:stream/consumers"
import type { Instance } from "../../src/domain/Instance.ts"
import { createInstance, importImage } from "../../test/support/guests.ts"
import { readFiles, run, sh, writeFiles } from "../../test/support/liveExec.ts"
import { guestImage, inGuest, untilReady } from "../../test/support/liveGuest.ts"
import { type Service, startService } from "../../test/support/Service.ts"
import { type Row, spread } from "./table.ts"

export interface AgentOptions {
  /** Round trips on each side. */
  readonly trips?: number
  /** Copies each way on each side. */
  readonly copies?: number
  readonly copyMb?: number
}

const id = "bench-agent"
const baseline = "busybox httpd in the guest, over its TAP"

const timed = <A>(effect: Effect.Effect<A, unknown>): Effect.Effect<number, unknown> =>
  Effect.suspend(() => {
    const startedAt = performance.now()
    return Effect.map(effect, () => performance.now() - startedAt)
  })

interface Taken {
  readonly ours: Array<number>
  readonly theirs: Array<number>
}

/** Who is first alternates, so that what grows over the run counts against both. */
const inTurns = (
  rounds: number,
  ours: Effect.Effect<unknown, unknown>,
  theirs: Effect.Effect<unknown, unknown>,
  shown: (ms: number) => number
) =>
  Effect.gen(function* () {
    const taken: Taken = { ours: [], theirs: [] }
    // The first of each warms up.
    for (let round = -1; round < rounds; round += 1) {
      const measure = [
        Effect.map(timed(ours), (ms) => round >= 0 && taken.ours.push(shown(ms))),
        Effect.map(timed(theirs), (ms) => round >= 0 && taken.theirs.push(shown(ms)))
      ]
      yield* Effect.all(round % 2 === 0 ? measure : measure.toReversed())
    }
    return taken
  })

const archiveOf = (content: Buffer) =>
  Effect.promise(async () => {
    const pack = tar.pack()
    pack.entry({ name: "blob", mode: 0o644 }, content)
    pack.finalize()
    return new Uint8Array(await buffer(pack))
  })

const mustBe = (what: string, found: unknown, wanted: unknown): Effect.Effect<void> =>
  found === wanted ? Effect.void : Effect.die(new Error(`${what}: ${String(found)}, not ${String(wanted)}`))

/** What is compared: one process, a copy in, a copy out. */
const works = (service: Service, instance: Instance, archive: Uint8Array, bytes: number) => {
  const web = `http://${instance.network.ip}`
  const over = service.namespace.http
  return {
    trip: Effect.flatMap(run(service, id, { command: ["true"] }), ({ end }) =>
      mustBe("true", JSON.stringify(end), '{"code":0}')
    ),
    tripOver: inGuest(service, instance, "true"),
    copyIn: Effect.flatMap(writeFiles(service, id, "/tmp/in", Stream.make(archive)), ({ status }) =>
      mustBe("copy in", status, 204)
    ),
    copyInOver: over
      .execute(
        HttpClientRequest.post(`${web}/cgi-bin/take`).pipe(
          HttpClientRequest.bodyUint8Array(archive, "application/octet-stream")
        )
      )
      .pipe(Effect.flatMap((response) => response.text)),
    copyOut: Effect.flatMap(readFiles(service, id, "/www/blob"), ({ status, body }) =>
      mustBe("copy out", status === 200 && body.length > bytes, true)
    ),
    copyOutOver: over.get(`${web}/blob`).pipe(
      Effect.flatMap((response) => response.arrayBuffer),
      Effect.flatMap((body) => mustBe("copy out, over the TAP", body.byteLength, bytes))
    )
  }
}

const row = (what: string, unit: Row["unit"], taken: Taken): Row => ({
  part: "agent",
  what,
  unit,
  ours: spread(taken.ours),
  baseline: { name: baseline, spread: spread(taken.theirs) },
  aim: "",
  met: null
})

/** Takes its input to a file. */
const take = `printf 'Content-Type: text/plain\\r\\n\\r\\n'; head -c "$CONTENT_LENGTH" > /tmp/taken; echo done`

/** About 30 s under software emulation. */
export const benchAgent = (options: AgentOptions = {}): Promise<ReadonlyArray<Row>> => {
  const { trips = 40, copies = 4, copyMb = 32 } = options
  const measured = Effect.gen(function* () {
    const service = yield* startService({
      env: { VMM: "qemu", QEMU_ACCEL: process.env["QEMU_ACCEL"] ?? "tcg" }
    })
    const image = yield* importImage(service, "img-guest", guestImage)
    const instance = yield* createInstance(service, {
      id,
      name: id,
      image: image.id,
      memory_mb: 512,
      overlay_mb: 512
    })
    yield* untilReady(service, instance)
    yield* inGuest(service, instance, "true")
    const bytes = copyMb * 1e6
    const content = randomFillSync(Buffer.alloc(bytes))
    const archive = yield* archiveOf(content)
    yield* writeFiles(service, id, "/www", Stream.make(archive))
    yield* sh(
      service,
      id,
      `cat > /www/cgi-bin/take <<'END'\n#!/bin/sh\n${take}\nEND\nchmod 755 /www/cgi-bin/take`
    )
    const work = works(service, instance, archive, bytes)
    const rate = (ms: number) => bytes / 1e3 / ms
    const same = (ms: number) => ms
    return [
      row("POST exec of true to its exit", "ms", yield* inTurns(trips, work.trip, work.tripOver, same)),
      row(`PUT files, ${copyMb} MB`, "MB/s", yield* inTurns(copies, work.copyIn, work.copyInOver, rate)),
      row(`GET files, ${copyMb} MB`, "MB/s", yield* inTurns(copies, work.copyOut, work.copyOutOver, rate))
    ]
  })
  return Effect.runPromise(Effect.scoped(measured))
}
