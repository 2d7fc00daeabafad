/**
 * Many guests on one host: nothing of one is left when it is gone, and none can reach another, or the host's own
 * services, whatever its root does.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type { Instance } from "../../src/domain/Instance.ts"
import { createInstance, fetchPage, importImage } from "../support/guests.ts"
import { expectNoLeaks, ledger, surplus } from "../support/leaks.ts"
import { shared } from "../support/live.ts"
import { allLines, ask, guestImage, inGuest } from "../support/liveGuest.ts"
import { makeNamespace } from "../support/Namespace.ts"
import { fetched, serveHttp } from "../support/netns.ts"
import { startService } from "../support/Service.ts"

/** A service of the host's own that listens on every address, as many do. */
const hostPort = 9000

const ground = Effect.gen(function* () {
  const namespace = yield* makeNamespace
  yield* serveHttp({ name: namespace.name, prefix: [] }, hostPort)
  const service = yield* startService({ namespace })
  const image = yield* importImage(service, "img-guest", guestImage)
  return { service, image, before: yield* ledger(service) }
})

/** The least that the API takes. */
const smallest = { memory_mb: 128, vcpus: 1 }
const isEvents = (line: string) => line.startsWith("files: events/")

describe("guests on one host", { timeout: 180_000 }, () => {
  const common = shared(ground)

  it.live("twenty rounds of create and delete leave nothing behind", () =>
    Effect.gen(function* () {
      const { service, image, before } = yield* common
      const held = yield* Effect.forEach(
        Array.from({ length: 20 }, (_, round) => round),
        (round) =>
          Effect.gen(function* () {
            const instance = yield* createInstance(service, {
              ...smallest,
              id: `round-${round}`,
              name: `Round ${round}`,
              image: image.id,
              start: round % 4 !== 3
            })
            assert.strictEqual(instance.state, round % 4 === 3 ? "Created" : "Running")
            const now = surplus(before, yield* ledger(service))
            // Some are stopped first: from Created at once; one that boots hears nobody, and is forced after its grace.
            if (round === 1 || round % 8 === 3)
              yield* service.client.instances.stop({ params: { id: instance.id }, query: {} })
            yield* service.client.instances.remove({ params: { id: instance.id } })
            return now
          }),
        { concurrency: 2 }
      )
      for (const kind of [
        "processes: ",
        "links: ",
        "nftables: ",
        "neighbours: ",
        "files: instances/",
        "sockets: "
      ])
        assert.isTrue(
          held.every((now) => now.some((line) => line.startsWith(kind))),
          `${kind} is seen while an instance is there`
        )
      assert.strictEqual((yield* ask(service, "GET", "/instances")).text, "[]")
      yield* expectNoLeaks(service, before, isEvents)
    })
  )

  it.live(
    "five at once have five addresses, answer the host, and reach neither each other nor the host",
    () =>
      Effect.gen(function* () {
        const { service, image, before } = yield* common
        const guests = yield* Effect.forEach(
          ["a", "b", "c", "d", "e"],
          (name) =>
            createInstance(service, {
              ...smallest,
              id: `guest-${name}`,
              name,
              image: image.id,
              env: { TOKEN: name }
            }),
          { concurrency: 5 }
        )
        const addresses = guests.map(({ network }) => network.ip)
        assert.strictEqual(new Set(addresses).size, 5)
        assert.strictEqual(new Set(guests.map(({ network }) => network.mac)).size, 5)
        yield* Effect.forEach(
          guests,
          (guest) =>
            Effect.gen(function* () {
              assert.strictEqual(yield* fetchPage(service, guest), "a page\n")
              const seen = yield* inGuest(service, guest, "hostname; cat /proc/meminfo")
              assert.match(seen, new RegExp(`^${guest.id}\n`, "u"))
            }),
          { concurrency: 5, discard: true }
        )
        const gateway = guests[0]?.network.gateway ?? ""
        const { name } = service.namespace
        assert.strictEqual(
          yield* fetched({ name, prefix: ["ip", "netns", "exec", name] }, `http://${gateway}:${hostPort}/`),
          "hello",
          "the host's own service is there"
        )
        yield* Effect.forEach(guests, (guest) => expectAlone(guest, guests, gateway), {
          concurrency: 5,
          discard: true
        })
        yield* Effect.forEach(guests, ({ id }) => service.client.instances.remove({ params: { id } }), {
          concurrency: 5,
          discard: true
        })
        yield* expectNoLeaks(service, before, isEvents)
      })
  )

  /** What the guest's root tries reaches the gateway's echo and nothing else; the console says so as well. */
  const expectAlone = (guest: Instance, all: ReadonlyArray<Instance>, gateway: string) =>
    Effect.gen(function* () {
      const { service } = yield* common
      const neighbours = all.filter(({ id }) => id !== guest.id).map(({ network }) => network.ip ?? "")
      const tries = [
        ...neighbours.flatMap((ip) => [
          { what: `web ${ip}`, command: `wget -q -T 2 -O - http://${ip}/` },
          { what: `ping ${ip}`, command: `ping -c 1 -W 2 ${ip}` }
        ]),
        { what: "web host", command: `wget -q -T 2 -O - http://${gateway}:${hostPort}/` },
        { what: "web service", command: `wget -q -T 2 -O - http://${gateway}:8080/health` },
        { what: "ping gateway", command: `ping -c 1 -W 5 ${gateway}` }
      ]
      const script = tries
        .map(
          ({ what, command }) =>
            `(${command} >/dev/null 2>&1 && echo reached ${what} || echo kept from ${what}) &`
        )
        .join("\n")
      const said = yield* inGuest(service, guest, `(${script}\nwait) | tee /dev/console`)
      const reached = said.split("\n").filter((line) => line.startsWith("reached "))
      assert.deepStrictEqual(reached, ["reached ping gateway"])
      assert.strictEqual(
        said.split("\n").filter((line) => line.startsWith("kept from ")).length,
        tries.length - 1
      )
      const console = (yield* allLines(service, guest.id)).map(({ line }) => line)
      assert.include(console, "reached ping gateway")
      // Nor may it take a neighbour's address for its own.
      const [neighbour = ""] = neighbours
      const stolen = yield* inGuest(
        service,
        guest,
        `ip addr add ${neighbour}/24 dev eth0; ping -c 1 -W 2 -I ${neighbour} ${gateway} >/dev/null 2>&1 && echo taken || echo refused; ip addr del ${neighbour}/24 dev eth0`
      )
      assert.strictEqual(stolen, "refused\n")
    })
})
