/** Run states against a model of QEMU that answers as 7.2 does, with the firmware that resets a used machine once more. */
import type * as net from "node:net"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { boot, pause, powerOff, resume, statusOf, vmmEventOf } from "../../../src/vmm/qemu/machine.ts"
import { connect } from "../../../src/vmm/qemu/Qmp.ts"
import { type Command, fakeQmp, reply } from "../../support/vmmFakeQmp.ts"

type State =
  | "prelaunch"
  | "running"
  | "paused"
  | "postmigrate"
  | "shutdown"
  | "guest-panicked"
  | "io-error"
  | "inmigrate"

interface Model {
  state: State
  action: "reset" | "shutdown"
  /** The firmware's own traces are in memory: it will put itself right and reset. */
  used: boolean
  /** Times that the guest's kernel began. */
  boots: number
  readonly firmwareResets: boolean
}

/** Recorded behaviour, command by command. */
const qemu = (model: Model) => {
  const event = (client: net.Socket, name: string, data: object = {}) =>
    client.write(`${JSON.stringify({ event: name, data })}\n`)
  const powerOn = (client: net.Socket) => {
    if (!model.used || !model.firmwareResets) {
      model.boots++
      model.used = true
      return
    }
    model.used = false
    setImmediate(() => {
      event(client, "SHUTDOWN", { guest: true, reason: "guest-reset" })
      model.state = "shutdown"
      event(client, "STOP")
      event(client, "SHUTDOWN", { guest: true, reason: "guest-reset" })
    })
  }
  const reset = (client: net.Socket) => {
    if (model.action === "shutdown") {
      event(client, "SHUTDOWN", { guest: false, reason: "host-qmp-system-reset" })
      if (model.state === "running") model.state = "shutdown"
      return
    }
    event(client, "RESET", { guest: false, reason: "host-qmp-system-reset" })
    model.state = "prelaunch"
  }
  const orders: Readonly<Record<string, (client: net.Socket, command: Command) => void>> = {
    "set-action": (_, command) => {
      model.action = JSON.stringify(command.arguments).includes('"reset"') ? "reset" : "shutdown"
    },
    system_reset: reset,
    stop: () => {
      if (model.state === "running") model.state = "paused"
    },
    cont: (client) => {
      const fresh = model.state === "prelaunch"
      model.state = "running"
      event(client, "RESUME")
      if (fresh) powerOn(client)
    }
  }
  return (command: Command, client: net.Socket) => {
    if (command.execute === "cont" && (model.state === "shutdown" || model.state === "guest-panicked"))
      return void client.write(
        `${JSON.stringify({ id: command.id, error: { class: "GenericError", desc: "Resetting the Virtual Machine is required" } })}\n`
      )
    orders[command.execute]?.(client, command)
    reply(client, command.id, command.execute === "query-status" ? { status: model.state } : {})
  }
}

const machine = (change: Partial<Model> = {}) =>
  Effect.gen(function* () {
    const model: Model = {
      state: "prelaunch",
      action: "shutdown",
      used: false,
      boots: 0,
      firmwareResets: true,
      ...change
    }
    const server = yield* fakeQmp(qemu(model))
    const qmp = yield* connect(server.path)
    const own = { muted: false }
    const told: Array<string> = []
    yield* qmp.listen((event) => {
      const seen = vmmEventOf(event)
      if (Option.isSome(seen) && !own.muted) told.push(seen.value._tag)
    })
    return { model, qmp, own, told, heard: server.heard }
  })

describe("run states", () => {
  it("are ours by name, and what is unknown is broken", () => {
    assert.deepStrictEqual(
      [
        "prelaunch",
        "running",
        "paused",
        "postmigrate",
        "finish-migrate",
        "save-vm",
        "shutdown",
        "guest-panicked"
      ].map((status) => statusOf(status)._tag),
      ["Prelaunch", "Running", "Paused", "Paused", "Paused", "Paused", "Off", "Panicked"]
    )
    for (const status of ["io-error", "internal-error", "watchdog", "inmigrate", "suspended", "of-tomorrow"])
      assert.deepStrictEqual(statusOf(status), { _tag: "Broken", status })
  })

  it("change by the guest only where QEMU says that it was the guest", () => {
    const told = (name: string, data: Readonly<Record<string, unknown>>) =>
      Option.getOrNull(vmmEventOf({ name, data }))
    assert.deepStrictEqual(told("SHUTDOWN", { guest: true, reason: "guest-shutdown" }), {
      _tag: "GuestOff",
      cause: "poweroff"
    })
    assert.deepStrictEqual(told("SHUTDOWN", { guest: true, reason: "guest-reset" }), {
      _tag: "GuestOff",
      cause: "reset"
    })
    assert.deepStrictEqual(told("GUEST_PANICKED", { action: "pause" }), { _tag: "GuestPanicked" })
    for (const reason of ["host-qmp-quit", "host-qmp-system-reset", "host-signal"])
      assert.isNull(told("SHUTDOWN", { guest: false, reason }))
    assert.isNull(told("RESET", { guest: true, reason: "guest-reset" }))
  })
})

describe("a second boot", () => {
  it.live("is one boot, whatever the firmware does, and no doing of the guest's", () =>
    Effect.scoped(
      Effect.gen(function* () {
        for (const state of ["shutdown", "guest-panicked"] as const) {
          const { model, qmp, own, told } = yield* machine({ state, used: true })
          yield* boot(qmp, own)
          assert.deepStrictEqual(
            [model.state, model.action, model.boots, told],
            ["running", "shutdown", 1, []]
          )
          assert.isFalse(own.muted)
        }
        const honest = yield* machine({ state: "shutdown", used: true, firmwareResets: false })
        yield* boot(honest.qmp, honest.own)
        assert.deepStrictEqual(
          [honest.model.state, honest.model.boots, honest.model.action],
          ["running", 1, "shutdown"]
        )
      })
    )
  )

  it.live("starts from prelaunch at once, and leaves a running guest alone", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { model, qmp, own, heard } = yield* machine()
        yield* boot(qmp, own)
        yield* boot(qmp, own)
        assert.strictEqual(model.boots, 1)
        assert.notInclude(
          heard.map((it) => it.execute),
          "system_reset"
        )
        const loading = yield* machine({ state: "inmigrate" })
        assert.include((yield* Effect.flip(boot(loading.qmp, loading.own))).reason, "inmigrate")
      })
    )
  )
})

describe("a guest", () => {
  it.live("goes off from any state without an event of its own", () =>
    Effect.scoped(
      Effect.gen(function* () {
        for (const state of [
          "running",
          "paused",
          "postmigrate",
          "io-error",
          "guest-panicked",
          "prelaunch",
          "shutdown"
        ] as const) {
          const { model, qmp, own, told } = yield* machine({ state, used: true })
          yield* powerOff(qmp, own)
          assert.deepStrictEqual(
            [model.state, model.action, model.boots, told],
            ["shutdown", "shutdown", 0, []],
            state
          )
        }
      })
    )
  )

  it.live("is paused and resumed from where that is possible only", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { model, qmp } = yield* machine({ state: "running" })
        yield* pause(qmp)
        yield* pause(qmp)
        assert.strictEqual(model.state, "paused")
        yield* resume(qmp)
        yield* resume(qmp)
        assert.strictEqual(model.state, "running")
        for (const state of ["prelaunch", "shutdown", "guest-panicked", "inmigrate"] as const) {
          const other = yield* machine({ state })
          assert.include((yield* Effect.flip(pause(other.qmp))).reason, state)
          assert.include((yield* Effect.flip(resume(other.qmp))).reason, state)
        }
        const full = yield* machine({ state: "io-error" })
        yield* resume(full.qmp)
        assert.strictEqual(full.model.state, "running")
      })
    )
  )
})
