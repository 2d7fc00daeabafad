/** Why this host cannot start VMs now, as a sentence for whoever asks for one; null where it can. */
import * as Context from "effect/Context"

export const Fitness = Context.Reference<string | null>("dataplane/vmm/Fitness", { defaultValue: () => null })
