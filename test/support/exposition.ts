/**
 * Reads the Prometheus text format (version 0.0.4) by its rules, as promtool does: every violation is an error with its
 * line. https://prometheus.io/docs/instrumenting/exposition_formats/
 */

export interface Sample {
  readonly name: string
  readonly labels: Readonly<Record<string, string>>
  readonly value: number
}

export interface MetricFamily {
  readonly name: string
  readonly type: string
  readonly help: string
  readonly samples: ReadonlyArray<Sample>
}

const metricName = /^[a-zA-Z_:][a-zA-Z0-9_:]*$/u
const labelName = /^[a-zA-Z_][a-zA-Z0-9_]*$/u
const types = new Set(["counter", "gauge", "histogram", "summary", "untyped"])

class Reader {
  #at = 0
  readonly #text: string
  constructor(text: string) {
    this.#text = text
  }
  get rest(): string {
    return this.#text.slice(this.#at)
  }
  take(pattern: RegExp, what: string): string {
    const found = new RegExp(pattern.source, "uy")
    found.lastIndex = this.#at
    const match = found.exec(this.#text)
    if (match === null) throw new Error(`expected ${what} at: ${this.rest.slice(0, 60)}`)
    this.#at = found.lastIndex
    return match[0]
  }
  has(text: string): boolean {
    if (!this.rest.startsWith(text)) return false
    this.#at += text.length
    return true
  }
}

const unescaped = (text: string): string =>
  text.replace(/\\(.)/gu, (_, char: string) => {
    if (char === "n") return "\n"
    if (char === "\\" || char === '"') return char
    throw new Error(`\\${char} is no escape`)
  })

const readLabels = (reader: Reader): Record<string, string> => {
  const labels: Record<string, string> = {}
  if (!reader.has("{")) return labels
  while (!reader.has("}")) {
    const name = reader.take(/[a-zA-Z_][a-zA-Z0-9_]*/u, "a label name")
    reader.take(/="/u, '="')
    if (name in labels) throw new Error(`label ${name} twice`)
    labels[name] = unescaped(reader.take(/(?:[^"\\\n]|\\.)*/u, "a label value"))
    reader.take(/"/u, "the end of a label value")
    if (!reader.has(",") && !reader.rest.startsWith("}")) throw new Error("labels need a comma between them")
  }
  return labels
}

const readValue = (text: string): number => {
  if (text === "+Inf") return Number.POSITIVE_INFINITY
  if (text === "-Inf") return Number.NEGATIVE_INFINITY
  if (text === "NaN") return Number.NaN
  if (!/^[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?$/iu.test(text)) throw new Error(`${text} is no number`)
  return Number(text)
}

const readSample = (line: string): Sample => {
  const reader = new Reader(line)
  const name = reader.take(/[a-zA-Z_:][a-zA-Z0-9_:]*/u, "a metric name")
  const labels = readLabels(reader)
  reader.take(/[ \t]+/u, "a blank before the value")
  const value = readValue(reader.take(/\S+/u, "a value"))
  if (reader.rest.trim() !== "" && !/^\s+-?\d+$/u.test(reader.rest))
    throw new Error(`trailing ${reader.rest}`)
  return { name, labels, value }
}

/** The family that a sample belongs to: histograms have three suffixes. */
const baseName = (name: string, type: string): string =>
  type === "histogram" || type === "summary" ? name.replace(/_(bucket|sum|count)$/u, "") : name

const seriesKey = ({ name, labels }: Sample): string =>
  `${name}{${Object.entries(labels)
    .toSorted(([left], [right]) => (left < right ? -1 : 1))
    .map(([label, value]) => `${label}=${JSON.stringify(value)}`)
    .join(",")}}`

/** Buckets of one series: ascending bounds, cumulative counts, the last one +Inf and equal to the count. */
const checkHistogram = (family: MetricFamily): void => {
  const groups = Map.groupBy(family.samples, ({ labels: { le: _, ...rest } }) => JSON.stringify(rest))
  for (const [labels, samples] of groups) {
    const of = (suffix: string) => samples.filter((it) => it.name === `${family.name}_${suffix}`)
    const buckets = of("bucket").map(({ labels: { le }, value }) => ({ le: readValue(le ?? ""), value }))
    const [count] = of("count")
    if (of("sum").length !== 1 || count === undefined)
      throw new Error(`${family.name}${labels}: sum and count`)
    if (buckets.at(-1)?.le !== Number.POSITIVE_INFINITY) throw new Error(`${family.name}${labels}: no +Inf`)
    if (buckets.at(-1)?.value !== count.value)
      throw new Error(`${family.name}${labels}: +Inf is not the count`)
    for (const [index, bucket] of buckets.entries()) {
      const before = buckets[index - 1]
      if (before !== undefined && (before.le >= bucket.le || before.value > bucket.value))
        throw new Error(`${family.name}${labels}: buckets are not cumulative`)
    }
  }
}

/** Conventions that promtool's linter has beside the grammar. */
const checkConventions = ({ name, type, help, samples }: MetricFamily): void => {
  if (help === "") throw new Error(`${name}: no help text`)
  if (type === "counter" && !name.endsWith("_total")) throw new Error(`${name}: a counter ends in _total`)
  if (type !== "counter" && name.endsWith("_total")) throw new Error(`${name}: only a counter ends in _total`)
  if (/_(milliseconds|ms|minutes|mb|kilobytes)$/u.test(name)) throw new Error(`${name}: not a base unit`)
  for (const { value, labels } of samples) {
    if (type === "counter" && !(value >= 0)) throw new Error(`${name}: a counter is never negative`)
    for (const label of Object.keys(labels))
      if (!labelName.test(label) || label.startsWith("__")) throw new Error(`${name}: label ${label}`)
  }
}

/** Every family of the text. Throws at the first violation. */
export const parseExposition = (text: string): ReadonlyMap<string, MetricFamily> => {
  if (text !== "" && !text.endsWith("\n")) throw new Error("the last line has no end")
  const families = new Map<string, { name: string; type: string; help: string; samples: Array<Sample> }>()
  const seen = new Set<string>()
  const closed = new Set<string>()
  let current = ""
  const enter = (name: string) => {
    if (!metricName.test(name)) throw new Error(`${name} is no metric name`)
    if (name !== current && closed.has(name)) throw new Error(`${name}: its lines are not together`)
    if (current !== "" && name !== current) closed.add(current)
    current = name
    const present = families.get(name)
    if (present !== undefined) return present
    const made = { name, type: "untyped", help: "", samples: new Array<Sample>() }
    families.set(name, made)
    return made
  }
  for (const line of text.split("\n").slice(0, -1)) {
    if (line.trim() === "") continue
    const comment = /^# (HELP|TYPE) (\S+)(?: (.*))?$/u.exec(line)
    if (comment !== null) {
      const [, kind, name = "", rest = ""] = comment
      const family = enter(name)
      if (family.samples.length > 0) throw new Error(`${name}: ${kind} after its samples`)
      if (kind === "HELP") family.help = rest
      else if (types.has(rest) && family.type === "untyped") family.type = rest
      else throw new Error(`${name}: type ${rest}`)
      continue
    }
    if (line.startsWith("#")) continue
    const sample = readSample(line)
    const family = enter(baseName(sample.name, families.get(current)?.type ?? "untyped"))
    const key = seriesKey(sample)
    if (seen.has(key)) throw new Error(`${key} twice`)
    seen.add(key)
    family.samples.push(sample)
  }
  for (const family of families.values()) {
    checkConventions(family)
    if (family.type === "histogram") checkHistogram(family)
  }
  return families
}
