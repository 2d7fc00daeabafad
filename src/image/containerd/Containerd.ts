/**
 * containerd in the terms of images: what it has, and what we keep there. Everything of ours is in one namespace, named
 * after the data directory, so that two services on one containerd never meet.
 *
 * Leases: content that a pull works with is held by the pull's lease, so containerd's garbage collection takes nothing of
 * it. A lease also ends by itself, a day after a service that died left it behind.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { Digest, timestamp } from "../../domain/Ids.ts"
import type { Channel, ContentToWrite, Where } from "./Channel.ts"
import type { ContainerdFault } from "./ContainerdFault.ts"

const leaseLifeMs = 24 * 3_600_000
const answerTimeoutMs = 2_000
const expireLabel = "containerd.io/gc.expire"

const Nothing = Schema.Struct({})
const Version = Schema.Struct({ version: Schema.String })
const Namespaces = Schema.Struct({ namespaces: Schema.Array(Schema.Struct({ name: Schema.String })) })
const Target = Schema.Struct({ digest: Digest, size: Schema.Int })
const Image = Schema.Struct({ name: Schema.String, target: Target })
const ImageReply = Schema.Struct({ image: Image })
const Names = Schema.Struct({ images: Schema.Array(Schema.Struct({ name: Schema.String })) })
const Leases = Schema.Struct({ leases: Schema.Array(Schema.Struct({ id: Schema.String })) })
const InfoReply = Schema.Struct({ info: Target })

export interface Target {
  readonly digest: Digest
  readonly size: number
}

const orNone = <A>(effect: Effect.Effect<A, ContainerdFault>) =>
  effect.pipe(
    Effect.asSome,
    Effect.catchIf(
      (fault) => fault.code === "not-found",
      () => Effect.succeed(Option.none<A>())
    )
  )

const unless = (code: ContainerdFault["code"], effect: Effect.Effect<unknown, ContainerdFault>) =>
  effect.pipe(
    Effect.asVoid,
    Effect.catchIf(
      (fault) => fault.code === code,
      () => Effect.void
    )
  )

const imagesOf = (channel: Channel, own: Where) => ({
  /** What a name means in a namespace. */
  image: (namespace: string, name: string) =>
    channel.call("images.v1.Images/Get", ImageReply, { namespace }, { name }).pipe(
      Effect.map((it): Target => it.image.target),
      orNone
    ),
  /** Names of our images. */
  images: channel
    .call("images.v1.Images/List", Names, own, {})
    .pipe(Effect.map((it) => it.images.map(({ name }) => name))),
  /** Gives a name of ours a meaning, or another one. */
  putImage: (name: string, target: Target & { readonly media_type: string }) =>
    channel.call("images.v1.Images/Create", Nothing, own, { image: { name, target } }).pipe(
      Effect.catchIf(
        (fault) => fault.code === "exists",
        () => channel.call("images.v1.Images/Update", Nothing, own, { image: { name, target } })
      ),
      Effect.asVoid
    ),
  removeImage: (name: string) =>
    unless("not-found", channel.call("images.v1.Images/Delete", Nothing, own, { name }))
})

const leasesOf = (channel: Channel, own: Where) => ({
  leases: channel
    .call("leases.v1.Leases/List", Leases, own, {})
    .pipe(Effect.map((it) => it.leases.map(({ id }) => id))),
  removeLease: (id: string) =>
    unless("not-found", channel.call("leases.v1.Leases/Delete", Nothing, own, { id })),
  /** A lease that is there until it is removed, or for a day. */
  makeLease: (id: string, now: number) =>
    unless(
      "exists",
      channel.call("leases.v1.Leases/Create", Nothing, own, {
        id,
        labels: { [expireLabel]: timestamp(now + leaseLifeMs) }
      })
    )
})

/** `namespace`: ours. */
export const makeContainerd = (channel: Channel, namespace: string) => {
  const own: Where = { namespace }
  return {
    namespace,
    /** Its version, or why it does not answer; within two seconds. */
    version: channel.call("version.v1.Version/Version", Version, null, {}).pipe(
      Effect.map((it) => it.version),
      Effect.timeoutOption(answerTimeoutMs)
    ),
    namespaces: channel
      .call("namespaces.v1.Namespaces/List", Namespaces, null, {})
      .pipe(Effect.map((it) => it.namespaces.map(({ name }) => name))),
    /** Makes our namespace where it is not there. */
    makeNamespace: unless(
      "exists",
      channel.call("namespaces.v1.Namespaces/Create", Nothing, own, { namespace: { name: namespace } })
    ),
    ...imagesOf(channel, own),
    ...leasesOf(channel, own),
    /** The size of a blob that a namespace has. */
    size: (namespace: string, digest: Digest) =>
      channel.call("content.v1.Content/Info", InfoReply, { namespace }, { digest }).pipe(
        Effect.map((it) => it.info.size),
        orNone
      ),
    read: (namespace: string, digest: Digest, size: number, offset = 0) =>
      channel.read({ namespace }, digest, size, offset),
    /** Puts a blob into our namespace, held by a lease. Bytes that another namespace has already need not be read. */
    write: (lease: string, content: ContentToWrite) => channel.write({ namespace, lease }, content)
  }
}

export type Containerd = ReturnType<typeof makeContainerd>
