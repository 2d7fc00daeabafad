/** Tokens for a service with JWT_SECRET, signed here: the secret never leaves this process. */
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { Scope } from "../../domain/Scope.ts"
import { failure } from "../Failure.ts"
import { print } from "../results.ts"

/** As the service asks for it. */
const secretMinBytes = 32
const unitSeconds: Readonly<Record<string, number>> = { s: 1, m: 60, h: 3600, d: 86_400 }
/** Ten years: a token without an end is none. */
const longestS = 10 * 365 * 86_400

export const token = Command.make(
  "token",
  {
    scope: Flag.Literals("scope", Scope.literals).pipe(
      Flag.withDescription("How far it reaches; each scope includes those before it"),
      Flag.withDefault("read")
    ),
    expires: Flag.String("expires").pipe(
      Flag.withMetavar("TIME"),
      Flag.withDescription("How long it is good for: 90s, 30m, 12h, 7d"),
      Flag.withDefault("1h")
    )
  },
  Effect.fnUntraced(function* ({ scope, expires }) {
    const [, digits, unit = ""] = /^(\d{1,9})([smhd])$/u.exec(expires) ?? []
    const expiresInS = Number(digits) * (unitSeconds[unit] ?? Number.NaN)
    if (!(expiresInS >= 1 && expiresInS <= longestS))
      return yield* failure(
        `--expires takes a time such as 90s, 30m, 12h or 7d, ten years at most; not "${expires}".`,
        "usage"
      )
    const secret = process.env["JWT_SECRET"] ?? ""
    if (Buffer.byteLength(secret) < secretMinBytes)
      return yield* failure(
        `JWT_SECRET has to hold the service's secret, at least ${secretMinBytes} bytes; \`openssl rand -base64 48\` makes one.`,
        "usage"
      )
    const { signToken } = yield* Effect.promise(() => import("../../api/Token.ts"))
    const signed = yield* signToken({ secret: Redacted.make(secret), scope, expiresInS })
    yield* print({ token: signed, scope, expires_in_s: expiresInS }, () => `${signed}\n`)
  })
).pipe(Command.withDescription("Sign a token with JWT_SECRET"))
