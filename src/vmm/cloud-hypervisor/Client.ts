/**
 * Cloud Hypervisor's API: HTTP/1.1 over a unix socket, under /api/v1, by way of micro-http, whose limits are these.
 *
 * - Ten connections; this client has one.
 * - One request at a time: while a snapshot is written, even a ping waits. So requests wait here, in order, and one that
 *   was sent is not taken back: whoever gives up waiting leaves it to the VMM, and the next one is sent after its answer.
 *   One that was given up before it was sent is never sent.
 * - A body has a length and no chunks, at most `bodyMaxBytes`; an order without a body has none at all.
 * - Errors are arrays of sentences, and their status says little: releases up to 52.0 answer 500 to nearly everything.
 *   `says` asks the sentences.
 *
 * The scope closes the connection; what was still waiting fails, and the VMM goes on as it is.
 */
import * as NodeHttpClient from "@effect/platform-node/NodeHttpClient"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as HttpClient from "effect/http/HttpClient"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import { parseExact } from "../exactJson.ts"
import { VmmFault } from "../Vmm.ts"
import { Counters, Overload, Ping, Refusal, VmInfo } from "./protocol.ts"

/** Calls are answered within milliseconds; a boot and a pause wait for disks and vCPUs on a busy host. */
const callBoundMs = 15_000
/** micro-http's own limit up to 53.0. */
export const bodyMaxBytes = 51_200
/** vm.info of a VM with 150 disks and its device tree has some 200 KiB. */
const answerMaxBytes = 4 * 1024 * 1024
/** A driver has a handful waiting; more means that the VMM has stopped to answer. */
const waitingMax = 64
const saidMaxChars = 600

export class ClientFault extends Schema.TaggedError<ClientFault>()("ClientFault", {
  call: Schema.String,
  /** `refused`: the VMM's own error. The others: it could not be asked, did not answer in time, or not in its API. */
  kind: Schema.Literals(["refused", "closed", "silent", "garbage"]),
  /** What the VMM said, outermost first; empty where it said nothing. */
  said: Schema.Array(Schema.String),
  reason: Schema.String
}) {
  override get message(): string {
    return `${this.call}: ${this.reason}`
  }
}

const fault = (
  call: string,
  kind: ClientFault["kind"],
  reason: string,
  said: ReadonlyArray<string> = []
): ClientFault => new ClientFault({ call, kind, said, reason })

/** Whether one of the sentences of an error holds this text. */
export const says = (cause: ClientFault, text: string): boolean =>
  cause.said.some((sentence) => sentence.includes(text))

/** A client's fault as the fault of an operation. */
export const asVmmFault =
  (operation: string) =>
  (cause: ClientFault): VmmFault =>
    new VmmFault({ operation, reason: cause.reason, cause })

export interface Client {
  readonly ping: Effect.Effect<typeof Ping.Type, ClientFault>
  readonly info: Effect.Effect<VmInfo, ClientFault>
  /** By device, then by name; every digit of 64 bits. */
  readonly counters: Effect.Effect<Readonly<Record<string, Readonly<Record<string, bigint>>>>, ClientFault>
  /**
   * PUT /api/v1/`call`, with a body or without. Fails where the VMM refuses, does not answer within the bound (15 s
   * unless told; null for none), or ends. An order that was given up may still be carried out.
   */
  readonly order: (call: string, body?: object, boundMs?: number | null) => Effect.Effect<void, ClientFault>
}

/** The sentences of an error, each one without the stack trace that may follow its first line. */
const sentencesOf = (text: string): ReadonlyArray<string> => {
  const parsed = Result.try(() => parseExact(text))
  if (Result.isFailure(parsed)) return []
  const refusal = Schema.decodeUnknownOption(Refusal)(parsed.success)
  if (Option.isSome(refusal)) return refusal.value.map((it) => it.split("\n")[0] ?? it)
  return Option.match(Schema.decodeUnknownOption(Overload)(parsed.success), {
    onNone: () => [],
    onSome: (it) => [it.error]
  })
}

const refusalOf = (call: string, status: number, text: string): ClientFault => {
  const said = sentencesOf(text)
  const told = said.filter((it) => it !== "Error from API").join(": ")
  return fault(call, "refused", told === "" ? `status ${status}` : told.slice(0, saidMaxChars), said)
}

interface Answer {
  readonly status: number
  readonly text: string
}

const decoded =
  <A>(call: string, schema: Schema.Decoder<A>) =>
  ({ text }: Answer): Effect.Effect<A, ClientFault> =>
    Effect.try({
      try: () => parseExact(text),
      catch: () => fault(call, "garbage", "what came is not JSON")
    }).pipe(
      Effect.flatMap((value) =>
        Schema.decodeUnknownEffect(schema)(value).pipe(
          Effect.mapError((cause) => fault(call, "garbage", `an answer of another shape: ${cause.message}`))
        )
      )
    )

/** Sends one request and reads its answer; an answer above 299 is a fault. */
const sendWith =
  (http: HttpClient.HttpClient) =>
  (call: string, request: HttpClientRequest.HttpClientRequest): Effect.Effect<Answer, ClientFault> =>
    http.execute(request).pipe(
      Effect.flatMap((response) => Effect.map(response.text, (text) => ({ status: response.status, text }))),
      Effect.mapError((cause) => fault(call, "closed", `the VMM closed the connection: ${cause.message}`)),
      Effect.flatMap((answer) =>
        answer.status < 300
          ? Effect.succeed(answer)
          : Effect.fail(refusalOf(call, answer.status, answer.text))
      ),
      // The VMM knows no traces, and every header is one that micro-http has to like.
      Effect.provideService(HttpClient.TracerDisabledWhen, () => true),
      Effect.provideService(HttpClient.TracerPropagationEnabled, false)
    )

const request = (call: string, method: "GET" | "PUT", body: string | undefined) => {
  const url = `http://localhost/api/v1/${call}`
  const plain = method === "GET" ? HttpClientRequest.get(url) : HttpClientRequest.put(url)
  return body === undefined ? plain : HttpClientRequest.bodyText(plain, body, "application/json")
}

/** One after the other: what is sent runs to its answer in a fiber of its own, what still waits can be given up. */
const inTurn = Effect.fnUntraced(function* (fibers: Scope.Scope) {
  const turn = yield* Semaphore.make(1)
  let waiting = 0
  return <A>(call: string, boundMs: number | null, send: Effect.Effect<A, ClientFault>) =>
    Effect.gen(function* () {
      if (waiting >= waitingMax) return yield* fault(call, "silent", `the VMM owes ${waiting} answers`)
      waiting++
      const fiber = yield* turn.withPermit(Effect.uninterruptible(send)).pipe(Effect.forkIn(fibers))
      // Of the fiber and not of its effect: one whose session ends before it begins has an end all the same.
      const answer = Effect.flatMap(Fiber.await(fiber), (exit) =>
        Exit.hasInterrupts(exit) ? Effect.fail(fault(call, "closed", "the session is over")) : exit
      )
      const bounded =
        boundMs === null
          ? answer
          : answer.pipe(
              Effect.timeoutOrElse({
                duration: boundMs,
                orElse: () => Effect.fail(fault(call, "silent", `no answer within ${boundMs} ms`))
              })
            )
      return yield* bounded.pipe(
        Effect.ensuring(
          Effect.sync(() => {
            waiting--
            fiber.interruptUnsafe()
          })
        )
      )
    })
})

/** Connects when the first request is made; the scope closes the connection. */
export const connect = Effect.fnUntraced(function* (socketPath: string) {
  // Closed after the connection, whose end fails what is under way.
  const fibers = yield* Scope.fork(yield* Effect.scope)
  const dispatcher = yield* NodeHttpClient.makeDispatcherOptions({
    connect: { socketPath },
    connections: 1,
    pipelining: 1,
    maxResponseSize: answerMaxBytes
  })
  const http = yield* NodeHttpClient.makeUndici.pipe(
    Effect.provideService(NodeHttpClient.Dispatcher, dispatcher)
  )
  const turn = yield* inTurn(fibers)
  const send = sendWith(http)
  const get = <A>(call: string, schema: Schema.Decoder<A>) =>
    turn(call, callBoundMs, send(call, request(call, "GET", undefined))).pipe(
      Effect.flatMap(decoded(call, schema))
    )
  const client: Client = {
    ping: get("vmm.ping", Ping),
    info: get("vm.info", VmInfo),
    counters: get("vm.counters", Counters).pipe(
      Effect.map((devices) =>
        Object.fromEntries(
          Object.entries(devices).map(([device, counters]) => [
            device,
            Object.fromEntries(Object.entries(counters).map(([name, value]) => [name, BigInt(value)]))
          ])
        )
      )
    ),
    order: Effect.fnUntraced(function* (call, body, boundMs = callBoundMs) {
      const text = body === undefined ? undefined : JSON.stringify(body)
      if (text !== undefined && Buffer.byteLength(text) > bodyMaxBytes)
        return yield* fault(
          call,
          "refused",
          `the request is longer than the ${bodyMaxBytes} bytes that a VMM takes`
        )
      yield* turn(call, boundMs, send(call, request(call, "PUT", text)))
    })
  }
  return client
})
