/**
 * What a person calls a thing: its id, its name, or the beginning of its id. An id goes before a name, a name before a
 * beginning; what fits several is told with all that it fits.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { ImageId, InstanceId, VolumeId } from "../domain/Ids.ts"
import { failure, type Failure } from "./Failure.ts"
import type { Remote } from "./Remote.ts"
import { printable } from "./text.ts"

interface Named {
  readonly id: string
  readonly name: string
}

/** Of a great many candidates, so many are told. */
const toldAtMost = 10

const several = (what: string, reference: string, found: ReadonlyArray<Named>): Failure => {
  const told = found.slice(0, toldAtMost).map(({ id, name }) => (name === id ? id : `${id} (${name})`))
  const more = found.length - told.length
  const list = [...told, ...(more > 0 ? [`${more} more`] : [])].join(", ")
  return failure(printable(`"${reference}" fits several ${what}s: ${list}; say more of the id.`), "usage")
}

const none = (what: string, command: string, reference: string): Failure =>
  failure(
    printable(
      `No ${what} has the id, the name or an id beginning with "${reference}"; see \`dataplane ${command}\`.`
    ),
    "notFound"
  )

/** The one thing that is meant. */
export const choose = <A extends Named>(
  what: string,
  command: string,
  reference: string,
  candidates: ReadonlyArray<A>
): Effect.Effect<A, Failure> => {
  const same = candidates.filter(({ id }) => id === reference)
  const called = candidates.filter(({ name }) => name === reference)
  const beginning = reference === "" ? [] : candidates.filter(({ id }) => id.startsWith(reference))
  const found = [same, called, beginning].find((it) => it.length > 0) ?? []
  const [only] = found
  if (only === undefined) return Effect.fail(none(what, command, reference))
  return found.length > 1 ? Effect.fail(several(what, reference, found)) : Effect.succeed(only)
}

const asInstanceId = Schema.decodeUnknownOption(InstanceId)
const asImageId = Schema.decodeUnknownOption(ImageId)
const asVolumeId = Schema.decodeUnknownOption(VolumeId)

/** An id is asked for alone first: a list of a thousand is not fetched for it. */
export const findInstance = ({ api }: Pick<Remote, "api">, reference: string) => {
  const among = Effect.flatMap(api.instances.list({ query: {} }), (all) =>
    choose("instance", "ps", reference, all)
  )
  return Option.match(asInstanceId(reference), {
    onNone: () => among,
    onSome: (id) => Effect.catchTag(api.instances.get({ params: { id } }), "InstanceNotFound", () => among)
  })
}

export const findImage = ({ api }: Pick<Remote, "api">, reference: string) => {
  const among = Effect.flatMap(api.images.list(), (all) => choose("image", "image ls", reference, all))
  return Option.match(asImageId(reference), {
    onNone: () => among,
    onSome: (id) => Effect.catchTag(api.images.get({ params: { id } }), "ImageNotFound", () => among)
  })
}

/** Volumes are few: the list is asked at once. */
export const findVolume = ({ guest }: Pick<Remote, "guest">, reference: string) =>
  Effect.flatMap(guest.volumes.list(), (all) => choose("volume", "volume ls", reference, all))

/** An id that a person wishes for a new thing. */
export const wishedId = { instance: asInstanceId, image: asImageId, volume: asVolumeId }
