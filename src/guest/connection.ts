/**
 * The socket of an agent channel. On QEMU the channel is a virtio-serial port behind a socket that serves one client at a
 * time: a second one, and one that comes before the guest has opened its port, connects and waits for its hello. On Cloud
 * Hypervisor it is a vsock port behind one socket for all ports (the Firecracker convention: `CONNECT <port>\n`, answered
 * by `OK <number>\n`), which turns a client away while the guest does not listen.
 */
import * as net from "node:net"
import * as Effect from "effect/Effect"
import { AgentFault, type Endpoint } from "./AgentSession.ts"

/** Until the socket, and on vsock the port behind it, takes us. */
const connectTimeoutMs = 5_000
/** The longest answer of a vsock multiplexer, `OK <u32>\n`. */
const vsockAnswerMaxBytes = 32

const failed = (reason: string, cause?: unknown) => new AgentFault({ operation: "connect", reason, cause })

const ignoreError = (): void => undefined

/** A socket that is destroyed with its scope. */
const dial = (path: string) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const socket = net.connect({ path })
      // An error that comes when nobody listens any more is no defect of the service.
      return socket.on("error", ignoreError)
    }),
    (socket) => Effect.sync(() => socket.destroy())
  ).pipe(Effect.tap(untilConnected))

const untilConnected = (socket: net.Socket) =>
  Effect.callback<void, AgentFault>((resume) => {
    const finish = (result: Effect.Effect<void, AgentFault>): void => {
      socket.off("connect", onConnect).off("error", onError)
      resume(result)
    }
    const onConnect = () => finish(Effect.void)
    const onError = (cause: Error) => finish(Effect.fail(failed(cause.message, cause)))
    socket.on("connect", onConnect).on("error", onError)
    return Effect.sync(() => socket.off("connect", onConnect).off("error", onError))
  })

/**
 * Asks a vsock multiplexer for a port of the guest. Reads its answer byte by byte: what comes behind it is the guest's,
 * and stays in the socket.
 */
const openVsockPort = (socket: net.Socket, port: number) =>
  Effect.callback<void, AgentFault>((resume) => {
    const stop = () => socket.off("readable", onReadable).off("close", onClose)
    const finish = (result: Effect.Effect<void, AgentFault>): void => {
      stop()
      resume(result)
    }
    const refuse = (reason: string) => finish(Effect.fail(failed(reason)))
    let answer = ""
    const onReadable = () => {
      for (let byte: unknown = socket.read(1); Buffer.isBuffer(byte); byte = socket.read(1)) {
        answer += byte.toString("latin1")
        if (answer.endsWith("\n")) {
          return answer.startsWith("OK ") ? finish(Effect.void) : refuse(`vsock port ${port} was refused`)
        }
        if (answer.length > vsockAnswerMaxBytes) return refuse("the vsock socket does not speak its protocol")
      }
    }
    const onClose = () => refuse(`nobody listens on the guest's vsock port ${port}`)
    socket.on("readable", onReadable).on("close", onClose)
    socket.write(`CONNECT ${port}\n`)
    return Effect.sync(stop)
  })

/** A connected socket whose bytes are the guest's. The scope owns it. */
export const openConnection = (endpoint: Endpoint) =>
  dial(endpoint.path).pipe(
    Effect.tap((socket) =>
      endpoint._tag === "HybridVsock" ? openVsockPort(socket, endpoint.port) : Effect.void
    ),
    Effect.timeoutOrElse({
      duration: connectTimeoutMs,
      orElse: () => Effect.fail(failed(`no answer in ${connectTimeoutMs} ms`))
    })
  )
