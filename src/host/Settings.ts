/**
 * The configuration (contract §3), decoded once at the start. Everything else takes it from here; nothing reads the
 * environment again.
 */
import * as Context from "effect/Context"
import * as Schema from "effect/Schema"
import { VmmKind } from "../domain/Instance.ts"
import { Subnet } from "../domain/Network.ts"

export const Settings_ = Schema.Struct({
  port: Schema.Int,
  host: Schema.String,
  dataDir: Schema.String,
  subnet: Subnet,
  containerdSocket: Schema.String,
  imageSource: Schema.Literals(["auto", "registry", "containerd"]),
  jwtSecret: Schema.NullOr(Schema.Redacted(Schema.String)),
  vmm: Schema.Literals(["auto", ...VmmKind.literals]),
  cloudHypervisorBin: Schema.String,
  qemuBin: Schema.String,
  qemuAccel: Schema.Literals(["auto", "kvm", "tcg"]),
  kernelPath: Schema.String,
  initrdPath: Schema.String,
  logLevel: Schema.Literals(["debug", "info", "warn", "error"]),
  logFormat: Schema.Literals(["json", "pretty"]),
  otlpEndpoint: Schema.NullOr(Schema.String)
})

export class Settings extends Context.Service<Settings, typeof Settings_.Type>()("dataplane/host/Settings") {}
