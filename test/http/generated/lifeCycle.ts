/**
 * What a user of a generated client writes: a whole life of an instance, with nothing but the types that openapi-typescript
 * made of /spec.json (`schema.ts`, made by the test). Prints each state, and the problem of what is not allowed.
 *
 *   node lifeCycle.ts URL TOKEN
 */
import createClient from "openapi-fetch"
import type { components, paths } from "./schema.ts"

type Instance = components["schemas"]["Instance"]

const [, , baseUrl = "", token = ""] = process.argv
const client = createClient<paths>({ baseUrl, headers: { authorization: `Bearer ${token}` } })
const id = "generated"
const at = { params: { path: { id } } }

const say = (line: string): void => void process.stdout.write(`${line}\n`)
const shown = ({ state, generation }: Instance): void => say(`${state} ${generation > 0}`)
const must = <A>(answer: { readonly data?: A; readonly error?: unknown }): A => {
  if (answer.data === undefined) throw new Error(JSON.stringify(answer.error))
  return answer.data
}

const health = must(await client.GET("/health"))
say(`health ${health.status} ${health.vmm.kind}`)

const body = { id, name: "Generated", image: "img-demo", memory_mb: 256, vcpus: 1, labels: { tier: "web" } }
shown(must(await client.POST("/instances", { body })))
shown(must(await client.POST("/instances/{id}/pause", at)))
shown(must(await client.POST("/instances/{id}/resume", at)))
shown(must(await client.POST("/instances/{id}/standby", at)))
shown(
  must(await client.POST("/instances/{id}/restore", { params: { path: { id }, query: { resume: true } } }))
)
shown(must(await client.POST("/instances/{id}/shutdown", at)))
shown(must(await client.POST("/instances/{id}/start", at)))
shown(must(await client.PATCH("/instances/{id}", { ...at, body: { labels: { tier: "db" } } })))
shown(
  must(await client.GET("/instances/{id}/wait", { params: { path: { id }, query: { state: "Running" } } }))
)

const listed = must(await client.GET("/instances", { params: { query: { label: ["tier=db"] } } }))
say(`listed ${listed.map((it) => it.id).join(" ")}`)
const { instances } = must(await client.GET("/resources"))
say(`resources ${instances.map((it) => `${it.instance_id} ${it.memory_mb}`).join(" ")}`)

const refused = await client.POST("/instances/{id}/resume", { params: { path: { id: "nobody" } } })
if (refused.error === undefined) throw new Error("an instance that is not there was resumed")
say(`refused ${refused.response.status} ${refused.error.title}`)
shown(must(await client.POST("/instances/{id}/stop", at)))
const illegal = await client.POST("/instances/{id}/pause", at)
say(`illegal ${illegal.response.status}`)
const gone = await client.DELETE("/instances/{id}", at)
say(`deleted ${gone.response.status}`)
