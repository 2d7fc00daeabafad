/**
 * An instance as users ask for it (CreateInstance), as its record keeps it (InstanceSpec) and as users see it
 * (Instance). The six state names are outward names only: `instance/Lifecycle.ts` holds the states that the rules
 * know, `instance/project.ts` is the one place that maps them.
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { Digest, Generation, ImageId, InstanceId, Timestamp } from "./Ids.ts"
import { InterfaceName, Ipv4, Mac } from "./Network.ts"
import { VolumeMount } from "./Volume.ts"

export const InstanceState = Schema.Literals([
  "Created",
  "Running",
  "Paused",
  "Shutdown",
  "Stopped",
  "Standby"
]).annotate({
  identifier: "InstanceState"
})
export type InstanceState = typeof InstanceState.Type

/** What a client may ask of an instance. */
export const Verb = Schema.Literals([
  "start",
  "pause",
  "resume",
  "shutdown",
  "stop",
  "standby",
  "restore",
  "delete"
]).annotate({ identifier: "Verb" })
export type Verb = typeof Verb.Type

/** What an instance is busy with: a verb, its own creation, a restart by policy, or a change of its memory. */
export const Transition = Schema.Literals(["create", "restart", "resize", ...Verb.literals]).annotate({
  identifier: "Transition"
})
export type Transition = typeof Transition.Type

export const RestartPolicy = Schema.Literals(["never", "on-failure", "always"]).annotate({
  identifier: "RestartPolicy"
})
export type RestartPolicy = typeof RestartPolicy.Type

/**
 * How the memory of a snapshot comes back: `copy` reads all of it before the guest goes on, `on_demand` brings each page
 * when the guest first needs it, `auto` is the safest one that the VMM has.
 */
export const RestoreMode = Schema.Literals(["auto", "copy", "on_demand"]).annotate({
  identifier: "RestoreMode"
})
export type RestoreMode = typeof RestoreMode.Type

export const VmmKind = Schema.Literals(["cloud-hypervisor", "qemu", "simulated"]).annotate({
  identifier: "VmmKind"
})
export type VmmKind = typeof VmmKind.Type

export const Accelerator = Schema.Literals(["kvm", "tcg", "none"]).annotate({ identifier: "Accelerator" })
export type Accelerator = typeof Accelerator.Type

/**
 * Why a guest went off.
 * - `exited`: the image's process ended (`code` or `signal`), and init powered off.
 * - `stopped`, `shutdown`: a client asked for it.
 * - `guest-poweroff`, `guest-reset`: the guest did it from inside.
 * - `guest-panic`: the guest kernel panicked.
 * - `boot-failed`: init or the VMM could not bring the guest up; `message` says why.
 * - `vmm-died`: the VMM process ended unasked (`code` or `signal`).
 */
export const ExitReason = Schema.Literals([
  "exited",
  "stopped",
  "shutdown",
  "guest-poweroff",
  "guest-reset",
  "guest-panic",
  "boot-failed",
  "vmm-died"
]).annotate({ identifier: "ExitReason" })
export type ExitReason = typeof ExitReason.Type

export const InstanceExit = Schema.Struct({
  reason: ExitReason,
  code: Schema.optionalKey(Schema.Int),
  signal: Schema.optionalKey(Schema.String),
  message: Schema.optionalKey(Schema.String),
  at: Timestamp
}).annotate({ identifier: "InstanceExit" })
export type InstanceExit = typeof InstanceExit.Type

const Mb = (minimum: number) => Schema.Int.check(Schema.isBetween({ minimum, maximum: 16 * 1024 * 1024 }))
/** A NUL ends a string for the guest's kernel, so no argument, name or value may hold one. */
const Text = Schema.String.check(
  Schema.isPattern(/^[^\0]*$/u, { expected: "text without NUL" }),
  Schema.isMaxCodePoints(32_768)
)
const EnvName = Schema.String.check(
  Schema.isPattern(/^[^=\0]{1,256}$/u, { expected: "an environment name without = and NUL" })
)
const Argv = Schema.Array(Text).check(Schema.isMaxLength(1024))
const LabelKey = Schema.String.check(
  Schema.isPattern(/^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$/u, {
    expected: "a label name of at most 63 characters"
  })
)
const LabelValue = Schema.String.check(Schema.isMaxCodePoints(256))
const orDefault = <S extends Schema.Top>(schema: S, value: S["Encoded"]) =>
  schema.pipe(Schema.withDecodingDefaultKey(Effect.succeed(value)))

export const NetworkRequest = Schema.Struct({ enabled: orDefault(Schema.Boolean, true) })

export const vcpusMax = 254
const overlayMinMb = 64
const memoryMinMb = 128

/** POST /instances. */
export const CreateInstance = Schema.Struct({
  id: Schema.optionalKey(InstanceId),
  name: Schema.String.check(Schema.isBetweenCodePoints(1, 100)).annotate({
    description: "Free text for people."
  }),
  image: Schema.String.check(Schema.isBetweenCodePoints(1, 512)).annotate({
    description: "The id or the reference of a ready image."
  }),
  memory_mb: orDefault(Mb(memoryMinMb).annotate({ description: "Memory at boot, in MiB." }), 1024),
  memory_max_mb: Schema.optionalKey(
    Mb(memoryMinMb).annotate({
      description:
        "How far the memory can grow while the guest runs, in MiB; memory_mb where it is not given."
    })
  ),
  vcpus: orDefault(Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: vcpusMax })), 2),
  env: orDefault(
    Schema.Record(EnvName, Text)
      .check(Schema.isMaxProperties(1024))
      .annotate({ description: "Added to the image's environment, or put in its place." }),
    {}
  ),
  overlay_mb: orDefault(
    Mb(overlayMinMb).annotate({
      description:
        "Size of the writable disk over the image's layers, in MiB; takes only what the guest writes."
    }),
    10_240
  ),
  volumes: orDefault(Schema.Array(VolumeMount).check(Schema.isMaxLength(16)), []),
  network: orDefault(NetworkRequest, {}),
  command: Schema.optionalKey(Argv.annotate({ description: "In place of the image's cmd." })),
  entrypoint: Schema.optionalKey(
    Argv.annotate({
      description: "In place of the image's entrypoint, and of its cmd where no command is given."
    })
  ),
  working_dir: Schema.optionalKey(
    Schema.String.check(Schema.isPattern(/^\/[^\0]{0,4094}$/u, { expected: "an absolute path" }))
  ),
  user: Schema.optionalKey(
    Schema.String.check(
      Schema.isPattern(/^[^\0:\s]{1,64}(:[^\0:\s]{1,64})?$/u, { expected: "user or user:group" })
    )
  ),
  hostname: Schema.optionalKey(
    Schema.String.check(
      Schema.isPattern(/^[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?$/u, { expected: "a host name" })
    )
  ),
  labels: orDefault(Schema.Record(LabelKey, LabelValue).check(Schema.isMaxProperties(64)), {}),
  restart_policy: orDefault(RestartPolicy, "never"),
  start: orDefault(Schema.Boolean.annotate({ description: "`false` leaves it Created, not booted." }), true),
  vmm: Schema.optionalKey(VmmKind)
}).annotate({ identifier: "CreateInstance" })
export type CreateInstance = typeof CreateInstance.Type

/** PATCH /instances/{id}: what can be changed of an instance that is there. */
export const PatchInstance = Schema.Struct({
  name: Schema.optionalKey(CreateInstance.fields.name),
  labels: Schema.optionalKey(Schema.Record(LabelKey, LabelValue).check(Schema.isMaxProperties(64))),
  restart_policy: Schema.optionalKey(RestartPolicy),
  memory_mb: Schema.optionalKey(
    Mb(memoryMinMb).annotate({
      description: "Within memory_max_mb; live on a running instance, at the next start on a stopped one."
    })
  )
}).annotate({ identifier: "PatchInstance" })
export type PatchInstance = typeof PatchInstance.Type

/** What the record keeps: the request with its defaults, its image pinned by digest. */
export const InstanceSpec = Schema.Struct({
  id: InstanceId,
  name: Schema.String,
  image: ImageId,
  image_digest: Digest,
  memory_mb: Schema.Int,
  memory_max_mb: Schema.Int,
  vcpus: Schema.Int,
  env: Schema.Record(Schema.String, Schema.String),
  overlay_mb: Schema.Int,
  volumes: Schema.Array(VolumeMount),
  network: Schema.Struct({ enabled: Schema.Boolean }),
  command: Schema.NullOr(Schema.Array(Schema.String)),
  entrypoint: Schema.NullOr(Schema.Array(Schema.String)),
  working_dir: Schema.NullOr(Schema.String),
  user: Schema.NullOr(Schema.String),
  hostname: Schema.String,
  labels: Schema.Record(Schema.String, Schema.String),
  restart_policy: RestartPolicy,
  vmm: VmmKind
})
export type InstanceSpec = typeof InstanceSpec.Type

/** GET /instances/{id}. */
export const Instance = Schema.Struct({
  ...InstanceSpec.fields,
  network: Schema.Struct({
    enabled: Schema.Boolean,
    ip: Schema.NullOr(Ipv4),
    mac: Schema.NullOr(Mac),
    gateway: Schema.NullOr(Ipv4),
    dns: Schema.NullOr(Ipv4),
    tap: Schema.NullOr(InterfaceName)
  }),
  vmm: Schema.Struct({ kind: VmmKind, version: Schema.String, pid: Schema.NullOr(Schema.Int) }),
  state: InstanceState,
  transition: Schema.NullOr(Transition),
  generation: Generation,
  ready: Schema.Boolean.annotate({
    description: "The guest's init has answered since the last boot or restore."
  }),
  memory_actual_mb: Schema.NullOr(Schema.Int),
  has_snapshot: Schema.Boolean,
  exit: Schema.NullOr(InstanceExit),
  restarts: Schema.Int,
  created_at: Timestamp,
  started_at: Schema.NullOr(Timestamp),
  stopped_at: Schema.NullOr(Timestamp),
  standby_at: Schema.NullOr(Timestamp)
}).annotate({ identifier: "Instance", description: "A virtual machine on this host." })
export type Instance = typeof Instance.Type
