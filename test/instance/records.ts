/** Records for tests that need one and do not care what is in it. */
import { Digest, ImageId, type InstanceId, timestamp } from "../../src/domain/Ids.ts"
import type { RestartPolicy } from "../../src/domain/Instance.ts"
import type { Lease } from "../../src/domain/Network.ts"
import * as Record from "../../src/instance/Record.ts"

/** The record of an instance that is being launched. */
export const recordOf = (
  id: InstanceId,
  lease: Lease | null,
  policy: RestartPolicy = "never"
): Record.Record =>
  Record.begin(
    {
      id,
      name: id,
      image: ImageId.make("img-demo"),
      image_digest: Digest.make(`sha256:${"0".repeat(64)}`),
      memory_mb: 128,
      memory_max_mb: 256,
      vcpus: 1,
      env: { NAME: "v\u00e4lue\n\u0001" },
      overlay_mb: 64,
      network: { enabled: true },
      command: ["a", ""],
      entrypoint: null,
      working_dir: null,
      user: null,
      hostname: id,
      labels: {},
      restart_policy: policy,
      vmm: "simulated"
    },
    lease,
    [],
    true,
    "1",
    timestamp(0)
  )
