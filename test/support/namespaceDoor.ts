/**
 * Runs inside a network namespace and opens it to a test outside, through a unix socket: a connection says
 * `HOST PORT\n`, is answered `ok\n` or `refused CODE\n`, and from then on carries what HOST:PORT says. Ends when its
 * standard input does, so it never outlives the test that started it, however that ends.
 *
 *   ip netns exec NS node namespaceDoor.ts SOCKET      prints "open" once it listens
 */
import * as net from "node:net"

/** `HOST PORT\n` of an IPv4 address or short name fits many times over. */
const requestMaxBytes = 256
/** A guest that is not there yet answers no ARP; the kernel gives up after about 3 s. */
const connectTimeoutMs = 5_000

const connect = (client: net.Socket, host: string, port: number): void => {
  const target = net.connect({ host, port, allowHalfOpen: true, timeout: connectTimeoutMs })
  const refuse = (code: string) => {
    client.end(`refused ${code}\n`)
    target.destroy()
  }
  target.once("timeout", () => refuse("ETIMEDOUT"))
  target.once("error", (error: NodeJS.ErrnoException) => refuse(error.code ?? "UNKNOWN"))
  target.once("connect", () => {
    target.setTimeout(0)
    target.removeAllListeners("error")
    target.on("error", () => client.destroy())
    client.on("error", () => target.destroy())
    client.on("close", () => target.destroy())
    target.on("close", () => client.destroy())
    client.write("ok\n")
    client.pipe(target)
    target.pipe(client)
  })
}

const greet = (client: net.Socket): void => {
  let said = ""
  const listen = (chunk: Buffer) => {
    said += chunk.toString("latin1")
    const end = said.indexOf("\n")
    if (end === -1) {
      if (said.length > requestMaxBytes) client.destroy()
      return
    }
    client.off("data", listen)
    client.pause()
    const [host, port] = said.slice(0, end).split(" ")
    client.unshift(Buffer.from(said.slice(end + 1), "latin1"))
    if (host === undefined || port === undefined) client.end("refused EINVAL\n")
    else connect(client, host, Number(port))
  }
  client.on("data", listen)
  client.on("error", () => client.destroy())
}

const [socket] = process.argv.slice(2)
net.createServer({ allowHalfOpen: true }, greet).listen(socket, () => {
  process.stdout.write("open\n")
})
process.stdin.resume().on("end", () => process.exit(0))
