/** The theatre of simulated guests: no hypervisor, no root, no network but loopback. */
import * as fs from "node:fs"
import * as path from "node:path"
import { layout } from "../../src/host/Paths.ts"
import { demoImage } from "../demoImage.ts"
import { ociArchive } from "../imageArchive.ts"
import { bundleService } from "./bundle.ts"
import { surveySimulated } from "./ground.ts"
import type { Theatre } from "./Matrix.ts"
import { loopbackDoor, type Stage, startVictim } from "./Victim.ts"
import { sleep } from "./within.ts"

export const image = "img-demo"
const readyEveryMs = 50
const readyLooksMax = 1_200

/** A DATA_DIR that holds the demo image, made by a service of its own. */
export const makeTemplate = async (
  command: ReadonlyArray<string>,
  env: Readonly<Record<string, string>>,
  directory: string,
  stage: Stage
): Promise<string> => {
  const template = path.join(directory, "template")
  fs.mkdirSync(template)
  const victim = await startVictim(command, { ...env, DATA_DIR: template }, directory, stage)
  try {
    await victim.request("POST", `/images/import?id=${image}`, new Uint8Array(await ociArchive(demoImage())))
    for (let look = 0; ; look++) {
      const { body } = await victim.request("GET", `/images/${image}`)
      if (JSON.stringify(body).includes('"status":"ready"')) break
      if (look === readyLooksMax || JSON.stringify(body).includes('"status":"failed"'))
        throw new Error(`the image does not become ready: ${JSON.stringify(body)}`)
      await sleep(readyEveryMs)
    }
  } finally {
    await victim.signal("SIGTERM")
  }
  fs.rmSync(layout(template).run, { recursive: true, force: true })
  return template
}

const here: Stage = { command: (argv) => argv, door: loopbackDoor, survey: surveySimulated }

/** Bundles the service and makes the template in the directory, which is the caller's to remove. */
export const simulatedTheatre = async (directory: string): Promise<Theatre> => {
  const command = [process.execPath, await bundleService(path.join(directory, "bundle")), "serve"]
  const env = {
    PATH: process.env["PATH"] ?? "",
    VMM: "simulated",
    SIMULATED_LATENCY: "none",
    HOST: "127.0.0.1",
    PORT: "0",
    LOG_FORMAT: "json",
    IMAGE_SOURCE: "registry",
    NODE_COMPILE_CACHE: path.join(directory, "compiled")
  }
  return {
    command,
    env,
    template: await makeTemplate(command, env, directory, here),
    guest: {
      image,
      idle: {},
      failing: { env: { SIMULATED_EXIT_AFTER_MS: "1500", SIMULATED_EXIT_CODE: "1" } }
    },
    stage: () => Promise.resolve([here, () => Promise.resolve()])
  }
}
