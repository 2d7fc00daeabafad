/**
 * The configuration (contract §3), decoded once at the start. Everything else takes it from here; nothing reads the
 * environment again. An empty variable counts as one that is not set. The first wrong value refuses the start with one
 * line that names the variable, the value (never that of a secret) and what would be right.
 */
import { isIP } from "node:net"
import * as path from "node:path"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import * as Runtime from "effect/Runtime"
import * as Schema from "effect/Schema"
import * as SchemaTransformation from "effect/SchemaTransformation"
import { VmmKind } from "../domain/Instance.ts"
import { Cidr, InterfaceName, Ipv4, Subnet } from "../domain/Network.ts"
import { layout, socketPathMaxBytes } from "./Paths.ts"

export const jwtSecretMinBytes = 32
/** Releases of Cloud Hypervisor side by side: each major one gets three months of fixes. */
const cloudHypervisorsMax = 16
/** Longer values are cut in the refusal, so that it stays one readable line. */
const shownValueMaxChars = 120

const ImageSource = Schema.Literals(["auto", "containerd", "registry"])
const VmmChoice = Schema.Literals(["auto", ...VmmKind.literals])
const QemuAccel = Schema.Literals(["auto", "kvm", "tcg"])
const LogLevelName = Schema.Literals(["debug", "info", "warn", "error"])
const LogFormat = Schema.Literals(["json", "pretty"])

export const SettingsValues = Schema.Struct({
  /** 0 takes any free port. */
  port: Schema.Int,
  host: Schema.String,
  dataDir: Schema.String,
  subnet: Subnet,
  containerdSocket: Schema.String,
  imageSource: ImageSource,
  jwtSecret: Schema.NullOr(Schema.Redacted(Schema.String)),
  vmm: VmmChoice,
  /** Versions side by side; the first one starts new VMs, each restores what it wrote. */
  cloudHypervisorBin: Schema.NonEmptyArray(Schema.String),
  qemuBin: Schema.String,
  qemuAccel: QemuAccel,
  kernelPath: Schema.String,
  initrdPath: Schema.String,
  logLevel: LogLevelName,
  logFormat: LogFormat,
  otlpEndpoint: Schema.NullOr(Schema.String)
})
export type SettingsValues = typeof SettingsValues.Type

/** A wrong value. `message` is the one line; a runtime that ends with this error exits with code 2. */
export class SettingsRefused extends Data.TaggedError("SettingsRefused")<{
  readonly variable: string
  readonly shown: string
  readonly right: string
}> {
  override readonly [Runtime.errorExitCode] = 2
  override get message(): string {
    return `${this.variable}=${this.shown}: ${this.right}`
  }
}

/** The environment, as process.env has it. */
export type Environment = Readonly<Record<string, string | undefined>>

/** Secrets never reach the refusal, nor do the credentials that a URL may carry. */
const shown = (name: string, value: string): string => {
  if (name === "JWT_SECRET") return "(hidden)"
  const printable = value.replace(/\/\/[^/@]*@/gu, "//(hidden)@").replace(/[^\x20-\x7e]/gu, "?")
  return printable.length > shownValueMaxChars ? `${printable.slice(0, shownValueMaxChars)}...` : printable
}

const refuse = (variable: string, value: string, right: string) =>
  new SettingsRefused({ variable, shown: shown(variable, value), right })

const given = (env: Environment, name: string): Option.Option<string> =>
  Option.filter(Option.fromNullishOr(env[name]), (value) => value !== "")

type Read<A> = (env: Environment) => Result.Result<A, SettingsRefused>

/** One variable: its schema over the raw text, its default, and the sentence that says what would be right. */
const variable =
  <A, I>(name: string, schema: Schema.Codec<A, I>, fallback: () => A, right: string): Read<A> =>
  (env) =>
    Option.match(given(env, name), {
      onNone: () => Result.succeed(fallback()),
      onSome: (value) =>
        Result.mapError(Schema.decodeUnknownResult(schema)(value), () => refuse(name, value, right))
    })

const oneOf = <const L extends ReadonlyArray<string>>(
  name: string,
  schema: Schema.Literals<L>,
  fallback: () => L[number]
): Read<L[number]> =>
  variable<L[number], L[number]>(name, schema, fallback, `one of ${schema.literals.join(", ")}`)

const Port = Schema.String.check(Schema.isPattern(/^\d{1,5}$/u)).pipe(
  Schema.decodeTo(
    Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 65_535 })),
    SchemaTransformation.numberFromString
  )
)
const HostName = Schema.String.check(
  Schema.makeFilter(
    (value) => isIP(value) !== 0 || (/^[A-Za-z][A-Za-z0-9.-]{0,252}$/u.test(value) && !value.endsWith("-"))
  )
)
const FilePath = Schema.String.check(Schema.isPattern(/^[^\0]{1,4095}$/u))
const AbsolutePath = Schema.String.check(Schema.isPattern(/^\/[^\0]{0,4094}$/u))
const SocketPath = AbsolutePath.check(
  Schema.makeFilter((value) => Buffer.byteLength(value) <= socketPathMaxBytes)
)
/** A name to be found in PATH, or an absolute path. */
const Executable = Schema.String.check(
  Schema.isPattern(/^(\/[^\0]{1,4094}|[A-Za-z0-9][A-Za-z0-9._+-]{0,254})$/u)
)
const HttpUrl = Schema.String.check(
  Schema.makeFilter((value) => /^https?:\/\//u.test(value) && URL.canParse(value))
)
const Secret = Schema.String.check(
  Schema.makeFilter((value) => Buffer.byteLength(value) >= jwtSecretMinBytes)
)

const octets = (ip: string): number => ip.split(".").reduce((sum, octet) => sum * 256 + Number(octet), 0)
const address = (value: number): Ipv4 =>
  Ipv4.make([24, 16, 8, 0].map((shift) => Math.floor(value / 2 ** shift) % 256).join("."))
const range = (cidr: string): { readonly first: number; readonly last: number } => {
  const [ip = "", prefix = ""] = cidr.split("/")
  return { first: octets(ip), last: octets(ip) + 2 ** (32 - Number(prefix)) - 1 }
}
const Network = Cidr.check(
  Schema.makeFilter((cidr) => {
    const [ip = ""] = cidr.split("/")
    const { first, last } = range(cidr)
    return isIP(ip) === 4 && first % (last - first + 1) === 0
  })
)

const absolutePath = "an absolute path"
const port = variable("PORT", Port, () => 8080, "a port number from 0 to 65535 (0 takes any free one)")
const host = variable("HOST", HostName, () => "", "an IP address or a host name to listen on")
const dataDir = variable(
  "DATA_DIR",
  FilePath,
  () => "/var/lib/cloud-hypervisor-dataplane",
  "a directory's path of at most 4095 characters"
)
const bridge = variable(
  "BRIDGE_NAME",
  InterfaceName,
  () => InterfaceName.make("vmbr0"),
  "an interface name: a lower-case letter, then at most 14 of a-z, 0-9 and -"
)
const cidr = variable(
  "SUBNET_CIDR",
  Network,
  () => Cidr.make("192.168.100.0/24"),
  "an IPv4 network, /16 to /30, without host bits, such as 192.168.100.0/24"
)
/** `isIP` refuses what tools read in different ways, such as leading zeros. */
const Address = Ipv4.check(Schema.makeFilter((value) => isIP(value) === 4))
const dns = variable("DNS_SERVER", Address, () => Ipv4.make("1.1.1.1"), "an IPv4 address")
const jwtSecret = variable(
  "JWT_SECRET",
  Schema.NullOr(Secret),
  () => null,
  `at least ${jwtSecretMinBytes} bytes, as \`openssl rand -base64 48\` makes them`
)
const containerdSocket = variable(
  "CONTAINERD_SOCKET",
  SocketPath,
  () => "/run/containerd/containerd.sock",
  `an absolute path of at most ${socketPathMaxBytes} bytes`
)
const executable = "a program's name or its absolute path"
/** As PATH is written; no program has a colon in its path. */
const Executables = Schema.String.pipe(
  Schema.decodeTo(
    Schema.NonEmptyArray(Executable).check(Schema.isMaxLength(cloudHypervisorsMax)),
    SchemaTransformation.transform({
      decode: (text) => {
        const [first = "", ...others] = text.split(":")
        return [first, ...others] as const
      },
      encode: (programs) => programs.join(":")
    })
  )
)
const cloudHypervisorBin = variable<readonly [string, ...ReadonlyArray<string>], string>(
  "CLOUD_HYPERVISOR_BIN",
  Executables,
  () => ["cloud-hypervisor"],
  `${executable}, or up to ${cloudHypervisorsMax} of them with colons between`
)
const qemuBin = variable("QEMU_BIN", Executable, () => "qemu-system-x86_64", executable)
const otlpEndpoint = variable(
  "OTEL_EXPORTER_OTLP_ENDPOINT",
  Schema.NullOr(HttpUrl),
  () => null,
  "an http or https URL, such as http://127.0.0.1:4318"
)

/** The gateway is the bridge's own address: a host address of the subnet. Its default is the subnet's first one. */
const gateway =
  (network: Cidr): Read<Ipv4> =>
  (env) => {
    const { first, last } = range(network)
    const right = `a host address of SUBNET_CIDR ${network}, ${address(first + 1)} to ${address(last - 1)}`
    const Gateway = Address.check(Schema.makeFilter((value) => octets(value) > first && octets(value) < last))
    return variable("SUBNET_GATEWAY", Gateway, () => address(first + 1), right)(env)
  }

/** An address that only this host can reach. */
export const isLoopback = (host: string): boolean =>
  host === "localhost" || host === "::1" || (isIP(host) === 4 && host.startsWith("127."))

/** Whether the port can be reached from other hosts and asks nobody for a token: only by an explicit `HOST`. */
export const isOpen = (settings: Pick<SettingsValues, "host" | "jwtSecret">): boolean =>
  settings.jwtSecret === null && !isLoopback(settings.host)

/**
 * Decodes the whole environment. `terminal` says whether stdout is one: it decides the default of LOG_FORMAT only.
 * Without JWT_SECRET and without HOST, the service listens on loopback: an open port without a token takes an explicit
 * HOST.
 */
export const decodeSettings = (
  env: Environment,
  terminal: boolean
): Result.Result<SettingsValues, SettingsRefused> =>
  Result.gen(function* () {
    const secret = yield* jwtSecret(env)
    const listen = yield* host(env)
    const root = path.resolve(yield* dataDir(env))
    const network = yield* cidr(env)
    const paths = layout(root)
    return {
      port: yield* port(env),
      host: listen === "" ? (secret === null ? "127.0.0.1" : "0.0.0.0") : listen,
      dataDir: root,
      subnet: {
        bridge: yield* bridge(env),
        cidr: network,
        gateway: yield* gateway(network)(env),
        dns: yield* dns(env)
      },
      containerdSocket: yield* containerdSocket(env),
      imageSource: yield* oneOf("IMAGE_SOURCE", ImageSource, () => "auto")(env),
      jwtSecret: secret === null ? null : Redacted.make(secret, { label: "JWT_SECRET" }),
      vmm: yield* oneOf("VMM", VmmChoice, () => "auto")(env),
      cloudHypervisorBin: yield* cloudHypervisorBin(env),
      qemuBin: yield* qemuBin(env),
      qemuAccel: yield* oneOf("QEMU_ACCEL", QemuAccel, () => "auto")(env),
      kernelPath: yield* variable("KERNEL_PATH", AbsolutePath, () => paths.kernel, absolutePath)(env),
      initrdPath: yield* variable("INITRD_PATH", AbsolutePath, () => paths.initrd, absolutePath)(env),
      logLevel: yield* oneOf("LOG_LEVEL", LogLevelName, () => "info")(env),
      logFormat: yield* oneOf("LOG_FORMAT", LogFormat, () => (terminal ? "pretty" : "json"))(env),
      otlpEndpoint: yield* otlpEndpoint(env)
    }
  })

export class Settings extends Context.Service<Settings, SettingsValues>()("dataplane/host/Settings") {
  /** From the process's own environment; fails with the one line. */
  static readonly layer: Layer.Layer<Settings, SettingsRefused> = Layer.effect(
    Settings,
    Effect.suspend(() => Effect.fromResult(decodeSettings(process.env, process.stdout.isTTY)))
  )
}
