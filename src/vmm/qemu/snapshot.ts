/**
 * A snapshot is a migration to nobody: QEMU connects to a socket of ours and sends the guest's memory and devices, we
 * write them (stateFile.ts). The other way round for a restore. `unix:` works with the full sandbox, and every error is
 * one that we see; `exec:` hides the exit code of its child.
 *
 *   paused ──migrate──► finish-migrate ──completed──► postmigrate      (counts as paused; `cont` takes the disks back)
 *                            └── failed, cancelled ──► paused
 *   inmigrate ──stream──► paused
 *
 * There is no bound on the whole, which depends on memory and disk: there is one on standing still.
 */
import * as fs from "node:fs/promises"
import * as net from "node:net"
import { crc32 } from "node:zlib"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type { SnapshotFile } from "../../domain/Snapshot.ts"
import type { Files } from "../../host/Files.ts"
import { VmmFault } from "../Vmm.ts"
import { migrationSocket, type QemuHost } from "./args.ts"
import { occupiedPorts } from "./disks.ts"
import { asVmmFault, awaitStatus, rawStatus } from "./machine.ts"
import { memoryBytes } from "./memory.ts"
import { commandBoundMs, type Qmp, type QmpEvent } from "./Qmp.ts"
import { headOf, type StateFile, stateName, statePath, tailOf } from "./stateFile.ts"

/** A stream that has not moved for so long has broken somewhere. */
const stallBoundMs = 30_000
const stallPollMs = 500
/** QEMU's default of 128 MiB/s would make memory wait for nothing; the disk is the limit. */
const bandwidthMax = 1_000_000_000_000
/** Devices, disk caches and page headers beside the memory itself. */
const spaceMarginBytes = 64 * 1024 * 1024
/** CRC-32 (zlib) takes a third of the time of SHA-256: a guest's memory is hashed while its user waits for it. */
class Sum {
  #value = 0

  add(bytes: Buffer): this {
    this.#value = crc32(bytes, this.#value)
    return this
  }

  get checksum(): string {
    return `crc32:${this.#value.toString(16).padStart(8, "0")}`
  }
}

const writeBatchBytes = 1024 * 1024
const syncBytes = 16 * 1024 * 1024
const readChunkBytes = 1024 * 1024
const fileMode = 0o600

const fault = (operation: string, reason: string, cause?: unknown) =>
  new VmmFault({ operation, reason, cause })

/** How a migration ended, where an event says so. */
const migrationEnd = (event: QmpEvent): Option.Option<"completed" | "failed"> => {
  if (event.name !== "MIGRATION") return Option.none()
  const { status } = event.data
  if (status === "completed") return Option.some("completed")
  return status === "failed" || status === "cancelled" ? Option.some("failed") : Option.none()
}

const MigrationInfo = Schema.Struct({ "error-desc": Schema.optionalKey(Schema.String) })

const whyFailed = (qmp: Qmp) =>
  qmp.execute("query-migrate", {}, MigrationInfo).pipe(
    Effect.map((info) => info["error-desc"] ?? "QEMU does not say why"),
    Effect.orElseSucceed(() => "QEMU does not answer")
  )

/** Events are off by default (capability `events`, QEMU 2.4), and so is the full bandwidth. */
export const prepareMigration = (qmp: Qmp) =>
  Effect.all(
    [
      qmp.order("migrate-set-capabilities", { capabilities: [{ capability: "events", state: true }] }),
      qmp.order("migrate-set-parameters", { "max-bandwidth": bandwidthMax })
    ],
    { discard: true }
  )

/** Moved bytes, for the watch on standing still. */
interface Progress {
  bytes: number
}

/** Fails when nothing has moved for `stallBoundMs`; never ends otherwise. */
const stalled = (operation: string, progress: Progress): Effect.Effect<never, VmmFault> =>
  Effect.gen(function* () {
    let [seen, stillMs] = [-1, 0]
    while (stillMs < stallBoundMs) {
      stillMs = progress.bytes === seen ? stillMs + stallPollMs : 0
      seen = progress.bytes
      yield* Effect.sleep(stallPollMs)
    }
    return yield* fault(operation, `the guest's state has not moved for ${stallBoundMs} ms`)
  })

/** A server for one connection of QEMU; the effect inside waits for it. The scope ends both. */
const listen = (socketPath: string) =>
  Effect.gen(function* () {
    const connected = Deferred.makeUnsafe<net.Socket>()
    let connection: net.Socket | undefined
    yield* Effect.acquireRelease(
      Effect.callback<net.Server, VmmFault>((resume) => {
        const server = net.createServer((socket) => {
          server.close()
          connection = socket
          // Seen by whoever reads it; where nobody does, there is nothing to lose.
          socket.on("error", () => undefined)
          Deferred.doneUnsafe(connected, Effect.succeed(socket))
        })
        server
          .once("error", (cause) => resume(Effect.fail(fault("snapshot", "no socket for the state", cause))))
          .listen(socketPath, () => resume(Effect.succeed(server)))
      }),
      (server) =>
        Effect.promise(async () => {
          server.close()
          connection?.destroy()
          await fs.rm(socketPath, { force: true })
        })
    )
    return Deferred.await(connected)
  })

/** Puts buffers at a place of the file, all of them. */
const writeAt = async (handle: fs.FileHandle, buffers: ReadonlyArray<Buffer>, position: number) => {
  const wanted = buffers.reduce((sum, it) => sum + it.length, 0)
  const { bytesWritten } = await handle.writev([...buffers], position)
  // A regular file takes less than all only where its file system is full (write(2)).
  if (bytesWritten !== wanted) throw new Error("the file system is full")
}

/**
 * Writes what QEMU sends, one batch while the next one comes; a disk that is slower than QEMU makes QEMU wait. Ends with
 * the connection, and without the tail: that is written when QEMU has said that all was sent.
 */
const receive = async (
  handle: fs.FileHandle,
  offset: number,
  socket: net.Socket,
  sum: Sum,
  progress: Progress
): Promise<number> => {
  let batch: Array<Buffer> = []
  let [batched, written] = [0, 0]
  let [writing, syncing] = [Promise.resolve(), Promise.resolve()]
  let [unsynced, busy] = [0, false]
  /** Begun early, the disk works while QEMU still sends. A failure is told once by the kernel, so it is kept. */
  const sync = () => {
    if (unsynced < syncBytes || busy) return
    unsynced = 0
    busy = true
    syncing = syncing.then(() => handle.datasync()).finally(() => (busy = false))
    syncing.catch(() => undefined)
  }
  const flush = async () => {
    await writing
    sync()
    writing = writeAt(handle, batch, offset + written)
    // Seen at the next flush, which may come late.
    writing.catch(() => undefined)
    written += batched
    unsynced += batched
    batch = []
    batched = 0
  }
  for await (const chunk of socket) {
    if (!Buffer.isBuffer(chunk)) continue
    sum.add(chunk)
    batch.push(chunk)
    batched += chunk.length
    progress.bytes += chunk.length
    if (batched >= writeBatchBytes) await flush()
  }
  await flush()
  await writing
  await syncing
  return written
}

const createState = (file: string) =>
  Effect.acquireRelease(
    Effect.tryPromise({
      try: () => fs.open(file, "wx", fileMode),
      catch: (cause) => fault("snapshot", "the snapshot's state cannot be created", cause)
    }),
    (handle) => Effect.promise(() => handle.close())
  )

const checkSpace = Effect.fnUntraced(function* (qmp: Qmp, files: Files["Service"], directory: string) {
  const needed = (yield* memoryBytes(qmp)) + spaceMarginBytes
  const free = yield* files
    .freeBytes(directory)
    .pipe(Effect.mapError((cause) => fault("snapshot", "the snapshot's directory cannot be used", cause)))
  if (free < needed)
    return yield* fault("snapshot", `a snapshot needs up to ${needed} bytes of disk, ${free} are free`)
})

/** A machine that was saved once refuses a second time until it has run: it runs for the time of two commands. */
const leavePostmigrate = (qmp: Qmp) =>
  qmp.order("cont").pipe(Effect.andThen(qmp.order("stop")), Effect.uninterruptible)

/** Takes a migration back that is not over; the guest is paused again, with its disks. */
const cancel = (qmp: Qmp) =>
  qmp.order("migrate_cancel").pipe(Effect.andThen(awaitStatus(qmp, ["paused", "postmigrate"])), Effect.ignore)

const transfer = Effect.fnUntraced(function* (qmp: Qmp, socketPath: string, file: string, head: Buffer) {
  const progress: Progress = { bytes: 0 }
  const handle = yield* createState(file)
  const write = (body: () => Promise<unknown>) =>
    Effect.tryPromise({
      try: body,
      catch: (cause) => fault("snapshot", `the guest's state could not be written: ${String(cause)}`, cause)
    })
  const sum = new Sum().add(head)
  yield* write(() => writeAt(handle, [head], 0))
  const connection = yield* listen(socketPath)
  const over = yield* qmp.first(migrationEnd)
  yield* qmp.order("migrate", { uri: `unix:${socketPath}` })
  const stream = connection.pipe(
    Effect.flatMap((socket) =>
      Effect.tryPromise({
        try: () => receive(handle, head.length, socket, sum, progress),
        catch: (cause) => fault("snapshot", `the guest's state could not be written: ${String(cause)}`, cause)
      })
    )
  )
  const outcome = over.pipe(
    Effect.mapError(asVmmFault("snapshot")),
    Effect.flatMap((end) =>
      end === "completed"
        ? Effect.void
        : Effect.flatMap(whyFailed(qmp), (why) => Effect.fail(fault("snapshot", `QEMU gave up: ${why}`)))
    )
  )
  const [bytes] = yield* Effect.all([stream, outcome], { concurrency: 2 }).pipe(
    Effect.raceFirst(stalled("snapshot", progress))
  )
  const tail = tailOf(bytes)
  yield* write(async () => {
    await writeAt(handle, [tail], head.length + bytes)
    await handle.sync()
  })
  const written: SnapshotFile = {
    name: stateName,
    bytes: head.length + bytes + tail.length,
    checksum: sum.add(tail).checksum
  }
  return written
})

/**
 * Writes `<directory>/state`, synced with its name. The guest must be paused and is so afterwards, whatever happens: a
 * failure or an interruption takes the migration back and removes the file.
 */
export const snapshot = (
  host: QemuHost,
  files: Files["Service"],
  qmp: Qmp,
  runDirectory: string,
  directory: string
): Effect.Effect<ReadonlyArray<SnapshotFile>, VmmFault> =>
  Effect.gen(function* () {
    const status = yield* rawStatus(qmp)
    if (status !== "paused" && status !== "postmigrate")
      return yield* fault("snapshot", `the guest is not paused but ${status}`)
    yield* checkSpace(qmp, files, directory)
    const ports = yield* occupiedPorts(qmp)
    if (status === "postmigrate") yield* leavePostmigrate(qmp)
    const head = headOf({ qemu: host.version, machine: host.machine, ports: Object.fromEntries(ports) })
    const socketPath = migrationSocket(runDirectory)
    const file = statePath(directory)
    yield* Effect.promise(() => fs.rm(socketPath, { force: true }))
    yield* prepareMigration(qmp)
    const written = yield* transfer(qmp, socketPath, file, head).pipe(
      Effect.scoped,
      Effect.onError(() =>
        cancel(qmp).pipe(Effect.andThen(Effect.promise(() => fs.rm(file, { force: true }))))
      )
    )
    yield* files
      .sync(directory)
      .pipe(Effect.mapError((cause) => fault("snapshot", "the snapshot's directory cannot be synced", cause)))
    return [written]
  }).pipe(Effect.catchTag("QmpFault", (cause) => Effect.fail(asVmmFault("snapshot")(cause))))

/** What becomes of a file that is sent: all of it read, in pieces, two buffers for all of them. */
interface Reading {
  readonly handle: fs.FileHandle
  readonly sum: Sum
  position: number
}

/** The next piece, summed up; empty at the end of the file. */
const readPiece = async (reading: Reading, buffer: Buffer): Promise<Buffer> => {
  const { bytesRead } = await reading.handle.read(buffer, 0, buffer.length, reading.position)
  const piece = buffer.subarray(0, bytesRead)
  reading.position += bytesRead
  reading.sum.add(piece)
  return piece
}

/** Ends when the bytes have left their buffer, or when QEMU has closed: it may have all it needs before the end. */
const sendPiece = (socket: net.Socket, piece: Buffer): Promise<void> =>
  new Promise((resolve) => {
    if (!socket.writable) return resolve()
    socket.write(piece, () => resolve())
  })

/**
 * Sends the stream as far as QEMU takes it, one piece while the next one is read, and gives the checksum of the whole
 * file.
 */
const send = async (state: StateFile, socket: net.Socket, progress: Progress, signal: AbortSignal) => {
  const reading: Reading = { handle: await fs.open(state.path), sum: new Sum(), position: 0 }
  const [begin, end] = [state.offset, state.offset + state.bytes]
  try {
    let [next, spare] = [Buffer.allocUnsafe(readChunkBytes), Buffer.allocUnsafe(readChunkBytes)]
    let sent: Promise<void> = Promise.resolve()
    for (;;) {
      signal.throwIfAborted()
      const { position } = reading
      const piece = await readPiece(reading, next)
      if (piece.length === 0) break
      progress.bytes += piece.length
      await sent
      sent = sendPiece(
        socket,
        piece.subarray(Math.max(0, begin - position), Math.max(0, Math.min(piece.length, end - position)))
      )
      ;[next, spare] = [spare, next]
    }
    await sent
    socket.end()
    return reading.sum.checksum
  } finally {
    await reading.handle.close()
  }
}

const connectSocket = (socketPath: string) =>
  Effect.acquireRelease(
    Effect.callback<net.Socket, VmmFault>((resume) => {
      const socket = net.createConnection({ path: socketPath })
      socket.on("error", (cause) =>
        resume(Effect.fail(fault("restore", "QEMU takes no snapshot on its socket", cause)))
      )
      socket.once("connect", () => resume(Effect.succeed(socket)))
    }),
    (socket) => Effect.sync(() => socket.destroy())
  )

/**
 * Fills a QEMU that waits with `-incoming defer`, and ends when its guest stands paused. Fails where the file is not
 * the one that was written: then QEMU holds a wrong guest that has not run, and must be ended.
 */
export const load = (
  qmp: Qmp,
  runDirectory: string,
  state: StateFile,
  files: ReadonlyArray<SnapshotFile>
): Effect.Effect<void, VmmFault> =>
  Effect.gen(function* () {
    const progress: Progress = { bytes: 0 }
    const socketPath = migrationSocket(runDirectory)
    yield* prepareMigration(qmp)
    const over = yield* qmp.first(migrationEnd)
    yield* qmp.order("migrate-incoming", { uri: `unix:${socketPath}` })
    const socket = yield* connectSocket(socketPath)
    const sent = Effect.tryPromise({
      try: (signal) => send(state, socket, progress, signal),
      catch: (cause) => fault("restore", "the snapshot's state cannot be read", cause)
    })
    const [checksum, end] = yield* Effect.all([sent, Effect.mapError(over, asVmmFault("restore"))], {
      concurrency: 2
    }).pipe(Effect.raceFirst(stalled("restore", progress)))
    if (end === "failed") return yield* fault("restore", `QEMU gave up: ${yield* whyFailed(qmp)}`)
    if (!files.some((file) => file.name === stateName && file.checksum === checksum))
      return yield* fault("restore", "the snapshot's state is damaged")
    if (Option.isNone(yield* awaitStatus(qmp, ["paused", "postmigrate"], commandBoundMs)))
      return yield* fault("restore", `the guest does not stand but is ${yield* rawStatus(qmp)}`)
  }).pipe(
    Effect.scoped,
    Effect.catchTag("QmpFault", (cause) => Effect.fail(asVmmFault("restore")(cause)))
  )
