/** Dotted versions, compared by number: 10.0 is above 7.2. */

/**
 * The oldest Cloud Hypervisor that is taken. Below it: disk format disclosure and a use-after-free in virtio-block
 * (GHSA-jmr4-g2hv-mjj6, CVE-2026-45782).
 */
export const cloudHypervisorMinimum = "51.2"

const numbers = (version: string): ReadonlyArray<number> => version.split(".").map(Number)

/** Negative where the left version is the older one; absent parts count as 0. */
export const compareVersions = (left: string, right: string): number => {
  const [a, b] = [numbers(left), numbers(right)]
  for (let at = 0; at < Math.max(a.length, b.length); at++) {
    const difference = (a[at] ?? 0) - (b[at] ?? 0)
    if (difference !== 0) return difference
  }
  return 0
}
