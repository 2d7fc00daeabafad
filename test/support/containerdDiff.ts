/**
 * containerd's diff service, which applies a layer to a directory by containerd's own rules. Asked directly: `ctr` applies
 * to overlay snapshots only, where containerd refuses layers that it unpacks elsewhere.
 */
import { Client, credentials, Metadata } from "@grpc/grpc-js"
import { fromJSON } from "@grpc/proto-loader"
import * as Effect from "effect/Effect"
import type { TestImage } from "./layers.ts"

const message = (fields: Readonly<Record<string, { type: string; id: number; rule?: "repeated" }>>) => ({
  fields
})

const definitions = fromJSON({
  nested: {
    containerd: {
      nested: {
        types: {
          nested: {
            Descriptor: message({
              media_type: { type: "string", id: 1 },
              digest: { type: "string", id: 2 },
              size: { type: "int64", id: 3 }
            }),
            Mount: message({
              type: { type: "string", id: 1 },
              source: { type: "string", id: 2 },
              options: { type: "string", id: 4, rule: "repeated" }
            })
          }
        },
        diff: {
          nested: {
            Diff: {
              methods: { Apply: { comment: "", requestType: "ApplyRequest", responseType: "ApplyResponse" } }
            },
            ApplyRequest: message({
              diff: { type: ".containerd.types.Descriptor", id: 1 },
              mounts: { type: ".containerd.types.Mount", id: 2, rule: "repeated" }
            }),
            ApplyResponse: message({})
          }
        }
      }
    }
  }
})

const methodOf = () => {
  const service = definitions["containerd.diff.Diff"]
  const method = service === undefined || "format" in service ? undefined : service["Apply"]
  if (method === undefined || typeof method === "string") throw new Error("no such method")
  return method
}

/** Applies the layers of an image, whose blobs the namespace has, to an empty directory. */
export const applyLayers = (socket: string, namespace: string, image: TestImage, directory: string) =>
  Effect.acquireUseRelease(
    Effect.sync(() => new Client(`unix://${socket}`, credentials.createInsecure())),
    (client) =>
      Effect.forEach(
        image.layers,
        (layer) =>
          Effect.callback<void>((resume) => {
            const metadata = new Metadata()
            metadata.set("containerd-namespace", namespace)
            const { requestSerialize, responseDeserialize } = methodOf()
            client.makeUnaryRequest(
              "/containerd.services.diff.v1.Diff/Apply",
              requestSerialize,
              responseDeserialize,
              {
                diff: { media_type: layer.mediaType, digest: layer.digest, size: layer.blob.length },
                mounts: [{ type: "bind", source: directory, options: ["rbind", "rw"] }]
              },
              metadata,
              (error) => resume(error === null ? Effect.void : Effect.die(error))
            )
          }),
        { discard: true }
      ),
    (client) => Effect.sync(() => client.close())
  )
