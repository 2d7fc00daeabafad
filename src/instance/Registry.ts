/**
 * The published views of all instances, and who waits for one of them to change. Everything that reads instances reads
 * here; no read touches a VMM. Each view is encoded once for each change of it, the whole list once for each change of any.
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type { InstanceId } from "../domain/Ids.ts"
import { Instance } from "../domain/Instance.ts"
import type { Actor } from "./Actor.ts"
import type { ListFilter } from "./Instances.ts"

const encode = Schema.encodeSync(Schema.fromJsonString(Instance))

interface Watch {
  readonly condition: (view: Instance) => boolean
  readonly met: Deferred.Deferred<Instance | null>
}

interface Entry {
  actor: Actor
  view: Instance
  json: string | null
  readonly watches: Set<Watch>
}

export const matches = (filter: ListFilter, view: Instance): boolean =>
  (filter.state === undefined || view.state === filter.state) &&
  Object.entries(filter.labels ?? {}).every(([name, value]) => view.labels[name] === value)

export const make = () => {
  const entries = new Map<InstanceId, Entry>()
  let listJson: string | null = null

  const json = (entry: Entry): string => (entry.json ??= encode(entry.view))
  const selected = (filter: ListFilter) =>
    [...entries.values()].filter((entry) => matches(filter, entry.view))
  const isWhole = (filter: ListFilter) => filter.state === undefined && filter.labels === undefined

  return {
    /** Puts an actor in, or another one in its place; its view is what it shows. */
    put: (id: InstanceId, actor: Actor): void => {
      const present = entries.get(id)
      if (present === undefined)
        entries.set(id, { actor, view: actor.view(), json: null, watches: new Set() })
      else present.actor = actor
      listJson = null
    },
    publish: (view: Instance): void => {
      const entry = entries.get(view.id)
      if (entry === undefined) return
      entry.view = view
      entry.json = null
      listJson = null
      for (const watch of entry.watches) {
        if (!watch.condition(view)) continue
        entry.watches.delete(watch)
        Deferred.doneUnsafe(watch.met, Effect.succeed(view))
      }
    },
    remove: (id: InstanceId): void => {
      const entry = entries.get(id)
      if (entry === undefined) return
      entries.delete(id)
      listJson = null
      for (const watch of entry.watches) Deferred.doneUnsafe(watch.met, Effect.succeed(null))
    },
    actor: (id: InstanceId): Actor | undefined => entries.get(id)?.actor,
    view: (id: InstanceId): Instance | undefined => entries.get(id)?.view,
    json: (id: InstanceId): string | undefined => {
      const entry = entries.get(id)
      return entry === undefined ? undefined : json(entry)
    },
    list: (filter: ListFilter): ReadonlyArray<Instance> => selected(filter).map((entry) => entry.view),
    listJson: (filter: ListFilter): string => {
      if (!isWhole(filter)) return `[${selected(filter).map(json).join(",")}]`
      return (listJson ??= `[${selected(filter).map(json).join(",")}]`)
    },
    /** Waits for a view that meets the condition; null where the instance goes away first, or is not there. */
    when: (id: InstanceId, condition: (view: Instance) => boolean): Effect.Effect<Instance | null> =>
      Effect.gen(function* () {
        const entry = entries.get(id)
        if (entry === undefined) return null
        if (condition(entry.view)) return entry.view
        const watch = { condition, met: yield* Deferred.make<Instance | null>() }
        entry.watches.add(watch)
        return yield* Deferred.await(watch.met).pipe(
          Effect.ensuring(Effect.sync(() => entry.watches.delete(watch)))
        )
      })
  }
}

export type Registry = ReturnType<typeof make>
