/** The theatre of real guests under QEMU, each case in a network namespace of its own. */
import type { Theatre } from "./Matrix.ts"

export const qemuTheatre = (_directory: string): Promise<Theatre> => Promise.reject(new Error("not yet"))
