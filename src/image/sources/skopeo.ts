/** skopeo, run to its end: its output as bytes, its errors as sentences. Killed when the fiber is interrupted. */
import * as Effect from "effect/Effect"
import { CommandFault } from "../../host/Fault.ts"
import { commandFault, spawnPiped } from "../../host/Command.ts"
import {
  corrupt,
  hostFault,
  ImageFault,
  noSpace,
  timedOut,
  unknownImage,
  unsupported
} from "../ImageFault.ts"

const stderrKeptBytes = 4000
/**
 * setpriv(1): the kernel kills skopeo when the service dies, however it dies, so that no transfer goes on without an
 * owner and none writes where the next service's does.
 */
const endWithService = ["--pdeathsig", "KILL"]

interface Rule {
  readonly pattern: RegExp
  readonly fault: (image: string, registry: string, cause: CommandFault) => ImageFault
}

const fault = (reason: ImageFault["reason"], detail: string, cause: CommandFault) =>
  new ImageFault({ reason, detail, cause })

/** What skopeo and the registries behind it say, most telling first. */
const rules: ReadonlyArray<Rule> = [
  {
    pattern: /no space left on device|disk quota exceeded/iu,
    fault: (_image, _registry, cause) => noSpace("The disk of the data directory is full.", cause)
  },
  {
    pattern: /toomanyrequests|too many requests|\b429\b/iu,
    fault: (_image, registry, cause) =>
      fault(
        "rate-limited",
        `The registry ${registry} allows no more requests now. Try later, or log in.`,
        cause
      )
  },
  {
    pattern:
      /manifest unknown|name unknown|name_unknown|not known to registry|repository .*not found|status(?: code)?:? 404/iu,
    fault: (image, registry, cause) => unknownImage(`The registry ${registry} has no image ${image}.`, cause)
  },
  {
    pattern:
      /unauthorized|authentication required|requested access to the resource is denied|\bdenied\b|forbidden|invalid username\/password|\b40[13]\b/iu,
    fault: (image, registry, cause) =>
      fault(
        "unauthorized",
        `The registry ${registry} does not give ${image} to this host: the image does not exist, or needs credentials (skopeo login ${registry}).`,
        cause
      )
  },
  {
    pattern:
      /x509|certificate|server gave http response to https client|first record does not look like a tls/iu,
    fault: (_image, registry, cause) =>
      unsupported(`The registry ${registry} does not speak TLS that this host trusts.`, cause)
  },
  {
    pattern:
      /connection refused|no such host|network is unreachable|no route to host|i\/o timeout|handshake timeout|connection reset|broken pipe|server misbehaving|timeout awaiting|unexpected eof|: eof/iu,
    fault: (_image, registry, cause) =>
      fault("unreachable", `The registry ${registry} cannot be reached.`, cause)
  },
  {
    pattern: /\b50[0-9]\b|internal server error|bad gateway|service unavailable/iu,
    fault: (_image, registry, cause) =>
      fault("unreachable", `The registry ${registry} fails at the moment.`, cause)
  },
  {
    pattern:
      /digest.*(?:mismatch|did not match|does not match)|does not match.*digest|verification failed|invalid checksum/iu,
    fault: (image, registry, cause) =>
      corrupt(
        `The registry ${registry} sent bytes for ${image} that do not have the digest that they should have.`,
        cause
      )
  },
  {
    pattern:
      /manifest (?:invalid|type)|unsupported (?:manifest|schema|mime)|invalid character .* looking for|cannot unmarshal/iu,
    fault: (image, registry, cause) =>
      unsupported(`What the registry ${registry} has as ${image} is not an image that can run.`, cause)
  }
]

/** The sentence for a run of skopeo that failed. */
export const classify = (image: string, registry: string, cause: CommandFault): ImageFault => {
  if (cause.outcome === "missing" || /failed to execute skopeo/u.test(cause.stderr)) {
    return hostFault("skopeo is not installed on this host.", cause)
  }
  const rule = rules.find((it) => it.pattern.test(cause.stderr))
  return rule?.fault(image, registry, cause) ?? hostFault(`Pulling ${image} failed on this host.`, cause)
}

export interface SkopeoRun {
  readonly args: ReadonlyArray<string>
  readonly cwd?: string
  /** For sentences. */
  readonly image: string
  readonly registry: string
  readonly timeoutMs: number
  readonly outputMaxBytes: number
}

/** Runs skopeo and gives what it printed, byte for byte. */
export const skopeo = (request: SkopeoRun): Effect.Effect<Buffer, ImageFault> =>
  Effect.gen(function* () {
    const child = yield* spawnPiped(
      "setpriv",
      [...endWithService, "skopeo", ...request.args],
      request.cwd === undefined ? {} : { cwd: request.cwd }
    )
    child.stdin.end()
    let stderr = ""
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      stderr = `${stderr}${text}`.slice(-stderrKeptBytes)
    })
    return yield* Effect.tryPromise({
      try: async () => {
        const chunks: Array<Buffer> = []
        let bytes = 0
        for await (const chunk of child.stdout) {
          const part: Buffer = chunk
          bytes += part.length
          if (bytes > request.outputMaxBytes) {
            throw corrupt(
              `What the registry ${request.registry} says about ${request.image} is longer than it may be.`
            )
          }
          chunks.push(part)
        }
        await child
        return Buffer.concat(chunks)
      },
      catch: (cause) => {
        if (cause instanceof ImageFault) return cause
        const told = commandFault("skopeo", request.args, cause)
        const { command, args, outcome, exitCode } = told
        const fault = new CommandFault({ command, args, outcome, exitCode, stderr, cause })
        return classify(request.image, request.registry, fault)
      }
    })
  }).pipe(
    Effect.scoped,
    Effect.timeoutOrElse({
      duration: request.timeoutMs,
      orElse: () => Effect.fail(timedOut(`The registry ${request.registry} did not answer in time.`))
    })
  )
