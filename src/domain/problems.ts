/**
 * Every problem that a client can meet, with its status beside it (RFC 9457). `detail` is a sentence that a person can
 * act on: it names what was asked, what is in the way, and what to do. It never holds a path of the host, the value of
 * an environment variable or a stack.
 */
import * as Schema from "effect/Schema"
import * as HttpApiError from "effect/http-api/HttpApiError"
import { Generation, ImageId, InstanceId, VolumeId } from "./Ids.ts"
import { HealthCheck } from "./Health.ts"
import { InstanceState, Transition, Verb } from "./Instance.ts"
import { Scope } from "./Scope.ts"
import { MountHolder } from "./Volume.ts"

/** The base of every problem type: a stable URI, not necessarily one that resolves. */
export const problemBase = "https://cloud-hypervisor-dataplane.dev/problems/"
const type = <const Name extends string>(name: Name) => `${problemBase}${name}` as const
const detail = Schema.String

export class InvalidRequest extends HttpApiError.Problem<InvalidRequest>()(
  "InvalidRequest",
  { type: type("invalid-request"), status: 400, title: "The request is not valid" },
  {
    detail,
    /** One entry for each value that was refused; the first segment is params, query, headers or payload. */
    errors: Schema.optionalKey(
      Schema.Array(
        Schema.Struct({
          path: Schema.Array(Schema.Union([Schema.String, Schema.Int])),
          message: Schema.String
        })
      )
    )
  }
) {}

export class Unauthorized extends HttpApiError.Problem<Unauthorized>()(
  "Unauthorized",
  { type: type("unauthorized"), status: 401, title: "A valid token is needed" },
  { detail }
) {}

export class Forbidden extends HttpApiError.Problem<Forbidden>()(
  "Forbidden",
  { type: type("forbidden"), status: 403, title: "Not allowed" },
  {
    detail,
    /** The least scope of a token that would do. */
    scope: Schema.optionalKey(Scope)
  }
) {}

export class RouteNotFound extends HttpApiError.Problem<RouteNotFound>()(
  "RouteNotFound",
  { type: type("route-not-found"), status: 404, title: "No such route" },
  { detail }
) {}

export class MethodNotAllowed extends HttpApiError.Problem<MethodNotAllowed>()(
  "MethodNotAllowed",
  { type: type("method-not-allowed"), status: 405, title: "The route does not take this method" },
  { detail, allowed: Schema.Array(Schema.String) }
) {}

export class RequestTimeout extends HttpApiError.Problem<RequestTimeout>()(
  "RequestTimeout",
  { type: type("request-timeout"), status: 408, title: "The request did not arrive in time" },
  { detail }
) {}

export class InstanceNotFound extends HttpApiError.Problem<InstanceNotFound>()(
  "InstanceNotFound",
  { type: type("instance-not-found"), status: 404, title: "Instance not found" },
  { detail, instance_id: Schema.String }
) {}

export class ImageNotFound extends HttpApiError.Problem<ImageNotFound>()(
  "ImageNotFound",
  { type: type("image-not-found"), status: 404, title: "Image not found" },
  { detail, image: Schema.String }
) {}

export class VolumeNotFound extends HttpApiError.Problem<VolumeNotFound>()(
  "VolumeNotFound",
  { type: type("volume-not-found"), status: 404, title: "Volume not found" },
  { detail, volume_id: Schema.String }
) {}

export class WaitTimeout extends HttpApiError.Problem<WaitTimeout>()(
  "WaitTimeout",
  { type: type("wait-timeout"), status: 408, title: "The state was not reached in time" },
  { detail, state: InstanceState, transition: Schema.NullOr(Transition) }
) {}

export class InstanceExists extends HttpApiError.Problem<InstanceExists>()(
  "InstanceExists",
  { type: type("instance-exists"), status: 409, title: "An instance with this id exists" },
  { detail, instance_id: InstanceId }
) {}

export class InvalidState extends HttpApiError.Problem<InvalidState>()(
  "InvalidState",
  { type: type("invalid-state"), status: 409, title: "The verb is not legal in this state" },
  {
    detail,
    instance_id: InstanceId,
    state: InstanceState,
    transition: Schema.NullOr(Transition),
    verb: Schema.Literals([...Verb.literals, "attach", "detach", "exec", "read_files", "write_files"]),
    allowed: Schema.Array(Verb)
  }
) {}

/** A verb gave way to one that ends the instance's run, or to its opposite. */
export class VerbCancelled extends HttpApiError.Problem<VerbCancelled>()(
  "VerbCancelled",
  { type: type("verb-cancelled"), status: 409, title: "The verb was cancelled by another one" },
  { detail, instance_id: InstanceId, verb: Transition, by: Schema.String }
) {}

/** A step of the verb failed; the instance is in the state that the problem says. */
export class VerbFailed extends HttpApiError.Problem<VerbFailed>()(
  "VerbFailed",
  { type: type("verb-failed"), status: 500, title: "The verb failed on this host" },
  { detail, instance_id: InstanceId, verb: Transition, step: Schema.String }
) {}

export class ImageExists extends HttpApiError.Problem<ImageExists>()(
  "ImageExists",
  { type: type("image-exists"), status: 409, title: "Another image has this id" },
  { detail, image_id: ImageId }
) {}

export class ImageInUse extends HttpApiError.Problem<ImageInUse>()(
  "ImageInUse",
  { type: type("image-in-use"), status: 409, title: "The image is in use" },
  { detail, image_id: ImageId, instances: Schema.Array(InstanceId) }
) {}

export class ImageNotReady extends HttpApiError.Problem<ImageNotReady>()(
  "ImageNotReady",
  { type: type("image-not-ready"), status: 409, title: "The image is not ready" },
  { detail, image_id: ImageId, image_status: Schema.String }
) {}

export class VolumeInUse extends HttpApiError.Problem<VolumeInUse>()(
  "VolumeInUse",
  { type: type("volume-in-use"), status: 409, title: "The volume is in use" },
  { detail, volume_id: VolumeId, instances: Schema.Array(InstanceId) }
) {}

export class VolumeExists extends HttpApiError.Problem<VolumeExists>()(
  "VolumeExists",
  { type: type("volume-exists"), status: 409, title: "A volume with this id exists" },
  { detail, volume_id: VolumeId }
) {}

/** The guest's processes keep the mount in use; `holders` are told by the guest, and by nobody else. */
export class VolumeBusy extends HttpApiError.Problem<VolumeBusy>()(
  "VolumeBusy",
  { type: type("volume-busy"), status: 409, title: "The guest uses the volume" },
  { detail, volume_id: VolumeId, instance_id: InstanceId, holders: Schema.Array(MountHolder) }
) {}

/** `If-Match` names a generation that the instance has no more: somebody else changed it first. */
export class PreconditionFailed extends HttpApiError.Problem<PreconditionFailed>()(
  "PreconditionFailed",
  { type: type("precondition-failed"), status: 412, title: "The instance has moved on" },
  {
    detail,
    instance_id: InstanceId,
    /** The generation now. */
    generation: Generation
  }
) {}

export class PayloadTooLarge extends HttpApiError.Problem<PayloadTooLarge>()(
  "PayloadTooLarge",
  { type: type("payload-too-large"), status: 413, title: "The body is too large" },
  { detail }
) {}

export class UnsupportedMediaType extends HttpApiError.Problem<UnsupportedMediaType>()(
  "UnsupportedMediaType",
  { type: type("unsupported-media-type"), status: 415, title: "The body has the wrong content type" },
  { detail, supported: Schema.Array(Schema.String) }
) {}

/** Well formed, but impossible: a reference that cannot be parsed, a value out of this host's reach. */
export class Unprocessable extends HttpApiError.Problem<Unprocessable>()(
  "Unprocessable",
  { type: type("unprocessable"), status: 422, title: "This host cannot do that" },
  { detail }
) {}

export class InsufficientMemory extends HttpApiError.Problem<InsufficientMemory>()(
  "InsufficientMemory",
  { type: type("insufficient-memory"), status: 422, title: "The host has not enough memory" },
  { detail, requested_mb: Schema.Int, available_mb: Schema.Int }
) {}

export class NoAddressLeft extends HttpApiError.Problem<NoAddressLeft>()(
  "NoAddressLeft",
  { type: type("no-address-left"), status: 422, title: "The subnet has no free address" },
  { detail, cidr: Schema.String, leased: Schema.Int }
) {}

/** The host lacks something that every VM needs: QEMU, KVM, the kernel, the bridge. */
export class HostUnfit extends HttpApiError.Problem<HostUnfit>()(
  "HostUnfit",
  { type: type("host-unfit"), status: 503, title: "The host cannot run this now" },
  { detail }
) {}

export class Busy extends HttpApiError.Problem<Busy>()(
  "Busy",
  { type: type("busy"), status: 503, title: "Busy or draining" },
  { detail }
) {}

/** GET /health where the host cannot run VMs: `checks` says what is missing. */
export class Unhealthy extends HttpApiError.Problem<Unhealthy>()(
  "Unhealthy",
  { type: type("unhealthy"), status: 503, title: "The host cannot run VMs" },
  { detail, checks: Schema.Array(HealthCheck) }
) {}

/** The key was used for another request. */
export class IdempotencyKeyReused extends HttpApiError.Problem<IdempotencyKeyReused>()(
  "IdempotencyKeyReused",
  {
    type: type("idempotency-key-reused"),
    status: 422,
    title: "The idempotency key belongs to another request"
  },
  { detail }
) {}

/** The first request with the key is still under way. */
export class IdempotencyKeyInUse extends HttpApiError.Problem<IdempotencyKeyInUse>()(
  "IdempotencyKeyInUse",
  { type: type("idempotency-key-in-use"), status: 409, title: "The request with this key is under way" },
  { detail }
) {}

/** The service was interrupted during the first request with the key, and does not guess what it came to. */
export class IdempotencyOutcomeUnknown extends HttpApiError.Problem<IdempotencyOutcomeUnknown>()(
  "IdempotencyOutcomeUnknown",
  {
    type: type("idempotency-outcome-unknown"),
    status: 409,
    title: "What the request with this key came to is not known"
  },
  { detail }
) {}

/** A defect; its cause is in the log only. */
export class InternalError extends HttpApiError.Problem<InternalError>()(
  "InternalError",
  { type: type("internal-error"), status: 500, title: "The dataplane failed" },
  { detail }
) {}
