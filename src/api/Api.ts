/**
 * The REST API as a value: groups of endpoints with their schemas and problems, importable by clients without any server
 * code. A group is part of it once its handlers are. The OpenAPI document is derived from it (`document.ts`).
 */
import * as HttpApi from "effect/http-api/HttpApi"
import * as OpenApi from "effect/http-api/OpenApi"
import { version } from "../domain/Version.ts"
import { EventsGroup } from "./Events.ts"
import { ImagesGroup } from "./Images.ts"
import { InstancesGroup } from "./Instances.ts"
import { SystemGroup } from "./System.ts"
import { AttachmentsGroup, VolumesGroup } from "./Volumes.ts"

/** Fields that no schema knows are refused, and every refusal is told at once. */
const strict = { onExcessProperty: "error", errors: "all" } as const

export class Api extends HttpApi.make("dataplane")
  .add(SystemGroup)
  .add(ImagesGroup)
  .add(InstancesGroup)
  .add(VolumesGroup)
  .add(AttachmentsGroup)
  .add(EventsGroup)
  .annotate(HttpApi.PayloadParseOptions, strict)
  .annotate(HttpApi.QueryParseOptions, strict)
  .annotate(HttpApi.ParamsParseOptions, { errors: "all" })
  .annotateMerge(
    OpenApi.annotations({
      title: "Cloud Hypervisor dataplane",
      version,
      summary: "Runs OCI images as virtual machines on one Linux host.",
      description:
        "JSON in snake_case, times as RFC 3339 in UTC. Unknown fields are refused. Every error is an RFC 9457 problem, `application/problem+json`, whose `detail` says what to do. A verb answers when its end state is reached and durable; a client that goes away does not cancel it.",
      license: { name: "Apache-2.0", url: "https://www.apache.org/licenses/LICENSE-2.0" },
      servers: [{ url: "/" }]
    })
  ) {}
