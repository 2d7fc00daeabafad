/** Handlers of instances: thin, since `Instances` holds the rules. Reads send text that was encoded once. */
import * as Effect from "effect/Effect"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as HttpApiBuilder from "effect/http-api/HttpApiBuilder"
import { Api } from "../api/Api.ts"
import { Precondition } from "../api/IfMatch.ts"
import type { InstanceId } from "../domain/Ids.ts"
import type { Instance, Verb } from "../domain/Instance.ts"
import { Instances, type ListFilter, type VerbOptions } from "../instance/Instances.ts"
import { HttpBounds } from "./Bounds.ts"
import { createOnce } from "./createOnce.ts"
import { Drain } from "./Drain.ts"
import { execResponse } from "./exec.ts"
import { execSocketResponse } from "./execSocket.ts"
import { readFilesResponse, writeFiles } from "./files.ts"
import { logsResponse } from "./logs.ts"
import { neverLaunches, waitFor } from "./verbs.ts"

const json = (body: string, headers: Record<string, string> = {}, status = 200) =>
  HttpServerResponse.text(body, { status, contentType: "application/json", headers })

/**
 * Sends a list whose text is that of the last one without encoding it to UTF-8 again: most lists are asked for many times
 * between two changes. Holds one list.
 */
const listResponse = () => {
  let last = { text: "[]", bytes: Buffer.from("[]") }
  return (text: string) => {
    if (last.text !== text) last = { text, bytes: Buffer.from(text) }
    return HttpServerResponse.uint8Array(last.bytes, { contentType: "application/json" })
  }
}

/** An instance is its own wire form: text, numbers and flags only. Its generation is its ETag. */
export const instanceResponse = (instance: Instance, status = 200) =>
  json(
    JSON.stringify(instance),
    {
      etag: `"${instance.generation}"`,
      ...(status === 201 ? { location: `/instances/${instance.id}` } : {})
    },
    status
  )

/** `k=v` again and again, all of which must match; null where one name has two values, since no instance has both. */
const labelsOf = (selectors: ReadonlyArray<string>): Readonly<Record<string, string>> | null => {
  const labels = new Map<string, string>()
  for (const selector of selectors) {
    const at = selector.indexOf("=")
    const name = selector.slice(0, at)
    const value = selector.slice(at + 1)
    if ((labels.get(name) ?? value) !== value) return null
    labels.set(name, value)
  }
  return Object.fromEntries(labels)
}

const listed = (
  instances: Instances["Service"],
  query: { readonly state?: Instance["state"]; readonly label?: ReadonlyArray<string> }
): Effect.Effect<string> => {
  const labels = labelsOf(query.label ?? [])
  if (labels === null) return Effect.succeed("[]")
  const filter: ListFilter = {
    ...(query.state === undefined ? {} : { state: query.state }),
    ...(query.label === undefined ? {} : { labels })
  }
  return instances.listJson(filter)
}

export const layerInstances = HttpApiBuilder.group(
  Api,
  "instances",
  Effect.fnUntraced(function* (handlers) {
    const instances = yield* Instances
    const bounds = yield* HttpBounds
    const drain = yield* Drain
    const toList = listResponse()
    const launch = (id: InstanceId, verb: Exclude<Verb, "delete">, options: VerbOptions = {}) =>
      Effect.flatMap(Precondition, (condition) =>
        Effect.map(instances.command(id, verb, { ...options, ...condition }), (instance) =>
          instanceResponse(instance)
        )
      )
    const command = (...args: Parameters<typeof launch>) => neverLaunches(launch(...args))
    const guest = { instances, bounds, drain }
    return handlers
      .handleAll({
        list: ({ query }) => Effect.map(listed(instances, query), toList),
        create: ({ payload }) =>
          Effect.map(createOnce(instances, payload), (instance) => instanceResponse(instance, 201)),
        get: ({ params }) => Effect.map(instances.get(params.id), (instance) => instanceResponse(instance)),
        patch: ({ params, payload }) =>
          Effect.flatMap(Precondition, (condition) =>
            Effect.map(instances.patch(params.id, payload, condition), (instance) =>
              instanceResponse(instance)
            )
          ),
        remove: ({ params }) =>
          Effect.flatMap(Precondition, (condition) => neverLaunches(instances.remove(params.id, condition))),
        start: ({ params }) => launch(params.id, "start"),
        pause: ({ params }) => command(params.id, "pause"),
        resume: ({ params }) => command(params.id, "resume"),
        shutdown: ({ params }) => command(params.id, "shutdown"),
        stop: ({ params, query }) =>
          command(params.id, "stop", { discardSnapshot: query.discard_snapshot ?? false }),
        standby: ({ params }) => command(params.id, "standby"),
        restore: ({ params, query }) =>
          launch(params.id, "restore", {
            resume: query.resume ?? true,
            ...(query.restore_mode === undefined ? {} : { restoreMode: query.restore_mode })
          }),
        wait: ({ params, query }) =>
          Effect.map(waitFor(instances, params.id, query), (instance) => instanceResponse(instance)),
        logs: ({ params, query, headers, request }) =>
          logsResponse(guest, params.id, query, headers["last-event-id"], request),
        exec: ({ params, payload, request }) => execResponse(guest, params.id, payload, request),
        execSocket: ({ params, request }) => execSocketResponse(guest, params.id, request),
        readFiles: ({ params, query, request }) => readFilesResponse(guest, params.id, query.path, request)
      })
      .handleRaw("writeFiles", ({ params, query, request }) =>
        writeFiles(guest, params.id, query.path, request)
      )
  })
)
