/**
 * The parts of containerd's gRPC API that images need, as protobuf definitions: names and field numbers of
 * containerd.services.{version,namespaces,images,leases,content}.v1, which containerd 1.6 to 2 serve alike. Fields that
 * nobody reads here are left out; protobuf passes over them.
 */
import { fromJSON, type MethodDefinition } from "@grpc/proto-loader"

type Fields = Readonly<Record<string, readonly [type: string, id: number, rule?: "repeated" | "map"]>>

const message = (fields: Fields) => ({
  fields: Object.fromEntries(
    Object.entries(fields).map(([name, [type, id, rule]]) => [
      name,
      rule === "map" ? { keyType: "string", type, id } : { type, id, ...(rule === undefined ? {} : { rule }) }
    ])
  )
})

const method = (
  requestType: string,
  responseType: string,
  streams: { readonly requestStream?: true; readonly responseStream?: true } = {}
) => ({ comment: "", requestType, responseType, ...streams })

const labels = ["string", 3, "map"] as const
const empty = ".containerd.types.Empty"

const types = {
  Empty: message({}),
  Descriptor: message({ media_type: ["string", 1], digest: ["string", 2], size: ["int64", 3] })
}

const version = {
  Version: { methods: { Version: method(empty, "VersionResponse") } },
  VersionResponse: message({ version: ["string", 1] })
}

const namespaces = {
  Namespaces: {
    methods: {
      List: method("ListNamespacesRequest", "ListNamespacesResponse"),
      Create: method("CreateNamespaceRequest", "CreateNamespaceResponse")
    }
  },
  Namespace: message({ name: ["string", 1] }),
  ListNamespacesRequest: message({}),
  ListNamespacesResponse: message({ namespaces: ["Namespace", 1, "repeated"] }),
  CreateNamespaceRequest: message({ namespace: ["Namespace", 1] }),
  CreateNamespaceResponse: message({ namespace: ["Namespace", 1] })
}

const images = {
  Images: {
    methods: {
      Get: method("GetImageRequest", "GetImageResponse"),
      List: method("ListImagesRequest", "ListImagesResponse"),
      Create: method("CreateImageRequest", "CreateImageResponse"),
      Update: method("UpdateImageRequest", "UpdateImageResponse"),
      Delete: method("DeleteImageRequest", empty)
    }
  },
  Image: message({
    name: ["string", 1],
    labels: ["string", 2, "map"],
    target: [".containerd.types.Descriptor", 3]
  }),
  GetImageRequest: message({ name: ["string", 1] }),
  GetImageResponse: message({ image: ["Image", 1] }),
  ListImagesRequest: message({ filters: ["string", 1, "repeated"] }),
  ListImagesResponse: message({ images: ["Image", 1, "repeated"] }),
  CreateImageRequest: message({ image: ["Image", 1] }),
  CreateImageResponse: message({ image: ["Image", 1] }),
  UpdateImageRequest: message({ image: ["Image", 1] }),
  UpdateImageResponse: message({ image: ["Image", 1] }),
  DeleteImageRequest: message({ name: ["string", 1], sync: ["bool", 2] })
}

const leases = {
  Leases: {
    methods: {
      Create: method("CreateRequest", "CreateResponse"),
      Delete: method("DeleteRequest", empty),
      List: method("ListRequest", "ListResponse")
    }
  },
  Lease: message({ id: ["string", 1], labels }),
  CreateRequest: message({ id: ["string", 1], labels }),
  CreateResponse: message({ lease: ["Lease", 1] }),
  DeleteRequest: message({ id: ["string", 1], sync: ["bool", 2] }),
  ListRequest: message({ filters: ["string", 1, "repeated"] }),
  ListResponse: message({ leases: ["Lease", 1, "repeated"] })
}

const content = {
  Content: {
    methods: {
      Info: method("InfoRequest", "InfoResponse"),
      Read: method("ReadContentRequest", "ReadContentResponse", { responseStream: true }),
      Write: method("WriteContentRequest", "WriteContentResponse", {
        requestStream: true,
        responseStream: true
      }),
      Abort: method("AbortRequest", empty)
    }
  },
  Info: message({ digest: ["string", 1], size: ["int64", 2] }),
  InfoRequest: message({ digest: ["string", 1] }),
  InfoResponse: message({ info: ["Info", 1] }),
  ReadContentRequest: message({ digest: ["string", 1], offset: ["int64", 2], size: ["int64", 3] }),
  ReadContentResponse: message({ offset: ["int64", 1], data: ["bytes", 2] }),
  WriteContentRequest: message({
    action: ["int32", 1],
    ref: ["string", 2],
    total: ["int64", 3],
    expected: ["string", 4],
    offset: ["int64", 5],
    data: ["bytes", 6],
    labels: ["string", 7, "map"]
  }),
  WriteContentResponse: message({ action: ["int32", 1], offset: ["int64", 4], digest: ["string", 6] }),
  AbortRequest: message({ ref: ["string", 1] })
}

/** `WriteContentRequest.action`: an enumeration, which is an integer on the wire. */
export const writeAction = { stat: 0, write: 1, commit: 2 }

const service = <T>(nested: T) => ({ nested: { v1: { nested } } })

const definitions = fromJSON(
  {
    nested: {
      containerd: {
        nested: {
          types: { nested: types },
          services: {
            nested: {
              version: service(version),
              namespaces: service(namespaces),
              images: service(images),
              leases: service(leases),
              content: service(content)
            }
          }
        }
      }
    }
  },
  { longs: Number, defaults: true, arrays: true }
)

export type Method = MethodDefinition<object, object>

/** A method by its name, such as `content.v1.Content/Read`. Throws for one that is not defined above. */
export const methodOf = (name: string): Method => {
  const [service = "", method = ""] = name.split("/")
  const definition = definitions[`containerd.services.${service}`]
  const found = definition === undefined || "format" in definition ? undefined : definition[method]
  if (found === undefined || typeof found === "string") throw new Error(`containerd has no method ${name}`)
  return found
}
