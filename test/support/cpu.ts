/** What this machine's CPU can do. */
import { readFileSync } from "node:fs"

/** Whether it runs guests itself: Intel's vmx or AMD's svm, as the kernel shows them to this machine. */
export const cpuVirtualizes = (): boolean =>
  /^flags\s*:.*\b(vmx|svm)\b/mu.test(readFileSync("/proc/cpuinfo", "utf8"))
