/**
 * One gRPC connection to containerd, made when it is first used and again whenever it broke. Every call is bounded: a
 * plain one by a deadline, a stream by the time between two messages.
 *
 * A stream that breaks because containerd went away goes on where it was once containerd is back: content has an address,
 * so what comes then is what would have come.
 */
import { setTimeout } from "node:timers/promises"
import { Client, credentials, Metadata } from "@grpc/grpc-js"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { ContainerdFault, containerdFault } from "./ContainerdFault.ts"
import { type Method, methodOf, writeAction } from "./definitions.ts"

const callDeadlineMs = 10_000
/** Committing a large blob means an fsync of it. */
const messageDeadlineMs = 120_000
const messageMaxBytes = 16 * 1024 * 1024
const reconnectMinMs = 100
const reconnectMaxMs = 1_000
/** How long a broken stream waits for containerd altogether: long enough for its restart. */
const resumeTimes = 40
const resumePauseMs = 500
/** containerd refuses messages of more than 4 MiB. */
const writeChunkBytes = 1024 * 1024

/** Where a call happens: the namespace, and the lease that holds what it touches. */
export interface Where {
  readonly namespace: string
  readonly lease?: string
}

export interface ContentToWrite {
  readonly digest: string
  readonly size: number
  readonly labels: Readonly<Record<string, string>>
  /** Its bytes from an offset on. */
  readonly read: (offset: number) => AsyncIterable<Buffer>
}

const metadataOf = (where: Where | null): Metadata => {
  const metadata = new Metadata()
  if (where !== null) metadata.set("containerd-namespace", where.namespace)
  if (where?.lease !== undefined) metadata.set("containerd-lease", where.lease)
  return metadata
}

const ReadReply = Schema.Struct({ data: Schema.instanceOf(Buffer) })
const decodeRead = Schema.decodeUnknownSync(ReadReply)
const WriteReply = Schema.Struct({ offset: Schema.Int })
const decodeWrite = Schema.decodeUnknownSync(WriteReply)

/** Passes over the errors of a stream that nobody listens to any more. */
const ignoreError = () => undefined

/** Ends a stream that is silent for too long. */
const watchdog = (cancel: () => void) => {
  const timer = globalThis.setTimeout(cancel, messageDeadlineMs)
  return { heard: () => timer.refresh(), stop: () => clearTimeout(timer) }
}

const mayResume = (fault: ContainerdFault) => fault.code === "unavailable"

/** The blob's bytes, whole, over as many streams as it takes. */
async function* readContent(client: Client, where: Where, digest: string, size: number, from = 0) {
  const method = methodOf("content.v1.Content/Read")
  let offset = from
  let broken = 0
  while (offset < size) {
    const call = client.makeServerStreamRequest(
      method.path,
      method.requestSerialize,
      method.responseDeserialize,
      { digest, offset },
      metadataOf(where)
    )
    const watch = watchdog(() => call.cancel())
    try {
      for await (const message of call) {
        watch.heard()
        const { data } = decodeRead(message)
        offset += data.length
        broken = 0
        yield data
      }
      if (offset < size) throw new ContainerdFault({ code: "failed", detail: `${digest} ended early` })
    } catch (cause) {
      const fault = containerdFault(cause)
      if (!mayResume(fault) || ++broken > resumeTimes) throw fault
      await setTimeout(resumePauseMs)
    } finally {
      watch.stop()
      call.on("error", ignoreError).cancel()
    }
  }
}

async function* inChunks(source: AsyncIterable<Buffer>) {
  for await (const chunk of source) {
    for (let at = 0; at < chunk.length; at += writeChunkBytes) yield chunk.subarray(at, at + writeChunkBytes)
  }
}

/** One attempt to write what is lacking of a blob, a message at a time, and to commit it. */
const writeOnce = async (client: Client, where: Where, content: ContentToWrite, signal: AbortSignal) => {
  const method = methodOf("content.v1.Content/Write")
  const call = client.makeBidiStreamRequest(
    method.path,
    method.requestSerialize,
    method.responseDeserialize,
    metadataOf(where)
  )
  const cancel = () => call.cancel()
  signal.addEventListener("abort", cancel)
  const watch = watchdog(cancel)
  const replies = call[Symbol.asyncIterator]()
  const target = { ref: `chd-${content.digest}`, total: content.size, expected: content.digest }
  const ask = async (request: object) => {
    call.write({ ...target, ...request })
    const reply = await replies.next()
    watch.heard()
    if (reply.done === true) throw new ContainerdFault({ code: "unavailable", detail: "a write ended early" })
    return decodeWrite(reply.value)
  }
  try {
    let { offset } = await ask({ action: writeAction.stat })
    if (offset < content.size) {
      for await (const data of inChunks(content.read(offset))) {
        offset = (await ask({ action: writeAction.write, offset, data })).offset
      }
    }
    await ask({ action: writeAction.commit, offset, labels: content.labels })
    call.end()
  } finally {
    watch.stop()
    signal.removeEventListener("abort", cancel)
    call.on("error", ignoreError).cancel()
  }
}

const writeContent = async (client: Client, where: Where, content: ContentToWrite, signal: AbortSignal) => {
  for (let broken = 0; ; broken++) {
    try {
      return await writeOnce(client, where, content, signal)
    } catch (cause) {
      const fault = containerdFault(cause)
      if (fault.code === "exists") return undefined
      if (!mayResume(fault) || broken >= resumeTimes) throw fault
      await setTimeout(resumePauseMs, undefined, { signal })
    }
  }
}

const call = (client: Client, method: Method, where: Where | null, request: object) =>
  Effect.callback<object, ContainerdFault>((resume) => {
    const running = client.makeUnaryRequest(
      method.path,
      method.requestSerialize,
      method.responseDeserialize,
      request,
      metadataOf(where),
      { deadline: Date.now() + callDeadlineMs },
      (error, value) =>
        resume(
          error === null && value !== undefined ? Effect.succeed(value) : Effect.fail(containerdFault(error))
        )
    )
    return Effect.sync(() => running.cancel())
  })

const makeChannel = (client: Client) => ({
  /** A call with one answer, by a schema. Fails with ContainerdFault, after 10 s at the latest. */
  call: <S extends Schema.ConstraintDecoder<unknown>>(
    name: string,
    schema: S,
    where: Where | null,
    request: object
  ): Effect.Effect<S["Type"], ContainerdFault> =>
    Effect.flatMap(call(client, methodOf(name), where, request), (answer) =>
      Effect.mapError(Schema.decodeUnknownEffect(schema)(answer), containerdFault)
    ),
  /** A blob's bytes from an offset on; `size` is the whole blob's. Throws ContainerdFault. */
  read: (where: Where, digest: string, size: number, offset = 0): AsyncIterable<Buffer> =>
    readContent(client, where, digest, size, offset),
  /** Writes a blob, or finds it written; what an earlier try wrote is kept. containerd checks size and digest. */
  write: (where: Where, content: ContentToWrite): Effect.Effect<void, ContainerdFault> =>
    Effect.tryPromise({
      try: (signal) => writeContent(client, where, content, signal),
      catch: containerdFault
    })
})

export type Channel = ReturnType<typeof makeChannel>

/** A connection to the socket at that absolute path, closed with the scope. Does not connect yet. */
export const openChannel = (socket: string): Effect.Effect<Channel, never, Scope.Scope> =>
  Effect.map(
    Effect.acquireRelease(
      Effect.sync(
        () =>
          new Client(`unix://${socket}`, credentials.createInsecure(), {
            "grpc.initial_reconnect_backoff_ms": reconnectMinMs,
            "grpc.max_reconnect_backoff_ms": reconnectMaxMs,
            "grpc.max_receive_message_length": messageMaxBytes
          })
      ),
      (client) => Effect.sync(() => client.close())
    ),
    makeChannel
  )
