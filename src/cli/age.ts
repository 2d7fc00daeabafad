/** How long ago something was, in the largest unit that says enough. */

const steps: ReadonlyArray<readonly [unit: string, seconds: number]> = [
  ["d", 86_400],
  ["h", 3600],
  ["min", 60],
  ["s", 1]
]

/** `time` is RFC 3339; a time ahead, by another clock, is now. */
export const ageText = (nowMs: number, time: string): string => {
  const seconds = Math.max(0, Math.floor((nowMs - Date.parse(time)) / 1000))
  const [unit, size] = steps.find(([, size]) => seconds >= 2 * size) ?? ["s", 1]
  return `${Math.floor(seconds / size)} ${unit} ago`
}
