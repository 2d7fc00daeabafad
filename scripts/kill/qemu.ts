/**
 * The theatre of real guests under QEMU (software emulation where there is no KVM): each case in a network namespace of
 * its own, so that the host's network stays as it is. Needs root, QEMU and the guest system (scripts/build-initrd.sh).
 */
import * as path from "node:path"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import * as HttpClient from "effect/http/HttpClient"
import * as HttpClientRequest from "effect/http/HttpClientRequest"
import { layout } from "../../src/host/Paths.ts"
import { processes } from "../../src/host/Proc.ts"
import { guestSystem, liveObstacle } from "../../test/support/liveHost.ts"
import { makeNamespace, type Namespace } from "../../test/support/Namespace.ts"
import { bundleService } from "./bundle.ts"
import type { Ground } from "./ground.ts"
import type { Theatre } from "./Matrix.ts"
import { image, makeTemplate } from "./simulated.ts"
import { type Door, parse, requestTimeoutMs, type Stage } from "./Victim.ts"

const doorOf =
  ({ http }: Namespace): Door =>
  (port, method, route, body) => {
    const url = `http://127.0.0.1:${port}${route}`
    const plain = method === "DELETE" ? HttpClientRequest.delete(url) : HttpClientRequest.get(url)
    const posted = HttpClientRequest.post(url)
    const request =
      method !== "POST"
        ? plain
        : body === undefined
          ? posted
          : typeof body === "string"
            ? HttpClientRequest.bodyText(posted, body, "application/json")
            : HttpClientRequest.bodyUint8Array(posted, body, "application/x-tar")
    return Effect.runPromise(
      HttpClient.execute(request).pipe(
        Effect.flatMap((answer) =>
          Effect.map(answer.text, (text) => ({ status: answer.status, body: parse(text) }))
        ),
        Effect.timeout(requestTimeoutMs),
        Effect.provideService(HttpClient.HttpClient, http)
      )
    )
  }

/** VMMs by their command lines, which name their run directories; TAPs by the namespace's own word. */
const surveyIn =
  (namespace: Namespace) =>
  (dataDir: string): Promise<Ground> =>
    Effect.runPromise(
      Effect.gen(function* () {
        const run = `${layout(dataDir).run}/`
        const named = (argv: ReadonlyArray<string>) => {
          const text = argv.find((it) => it.includes(run))
          return text === undefined
            ? []
            : [text.slice(text.indexOf(run) + run.length).replace(/[/,].*$/su, "")]
        }
        const vmms = (yield* processes).flatMap(({ pid, argv }) =>
          argv[0]?.includes("qemu-system") === true
            ? named(argv).map((id) => ({ id, pid, run: `${pid}`, ranMs: null, volumes: null }))
            : []
        )
        const links = yield* namespace.run("ip", ["-o", "link", "show", "type", "tun"])
        const taps = [...links.matchAll(/^\d+: ([^:@]+)/gmu)].map((it) => it[1] ?? "")
        return { vmms, taps }
      })
    )

const enter = async (): Promise<readonly [Stage, () => Promise<void>]> => {
  const scope = await Effect.runPromise(Scope.make())
  const namespace = await Effect.runPromise(Scope.provide(makeNamespace, scope))
  const stage: Stage = {
    command: (argv) => ["ip", "netns", "exec", namespace.name, ...argv],
    door: doorOf(namespace),
    survey: surveyIn(namespace)
  }
  return [stage, () => Effect.runPromise(Scope.close(scope, Exit.void))]
}

/** Bundles the service and makes the template in the directory, which is the caller's to remove. */
export const qemuTheatre = async (directory: string): Promise<Theatre> => {
  const obstacle = liveObstacle()
  if (obstacle !== null) throw new Error(`real guests cannot run here: ${obstacle}`)
  const { kernel, initrd } = guestSystem()
  const command = [process.execPath, await bundleService(path.join(directory, "bundle")), "serve"]
  const env = {
    PATH: process.env["PATH"] ?? "",
    VMM: "qemu",
    QEMU_ACCEL: process.env["QEMU_ACCEL"] ?? "auto",
    HOST: "127.0.0.1",
    PORT: "8080",
    LOG_FORMAT: "json",
    IMAGE_SOURCE: "registry",
    KERNEL_PATH: kernel,
    INITRD_PATH: initrd
  }
  const [stage, leave] = await enter()
  const template = await makeTemplate(command, env, directory, stage).finally(leave)
  return {
    command,
    env,
    template,
    guest: {
      image,
      idle: { memory_mb: 256, overlay_mb: 128 },
      failing: { entrypoint: ["/bin/sh", "-c", "sleep 3; exit 1"] }
    },
    stage: enter
  }
}
