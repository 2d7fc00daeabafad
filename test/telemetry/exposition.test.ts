/** The reader that the metrics are judged by refuses what Prometheus refuses. */
import { expect, it } from "@effect/vitest"
import { parseExposition } from "../support/exposition.ts"

const head = "# HELP a_total Help.\n# TYPE a_total counter\n"
const histogram = "# HELP h_seconds Help.\n# TYPE h_seconds histogram\n"

it("reads labels, escapes and special values", () => {
  const families = parseExposition(`${head}a_total{x="1\\"\\n\\\\",y=""} 1e3\na_total +Inf\n`)
  expect(families.get("a_total")?.samples).toEqual([
    { name: "a_total", labels: { x: '1"\n\\', y: "" }, value: 1000 },
    { name: "a_total", labels: {}, value: Number.POSITIVE_INFINITY }
  ])
})

const wrong: ReadonlyArray<readonly [string, string]> = [
  ["no end of line", `${head}a_total 1`],
  ["a name that is none", "# HELP 1a Help.\n1a 1\n"],
  ["no value", `${head}a_total\n`],
  ["a value that is none", `${head}a_total one\n`],
  ["a label without quotes", `${head}a_total{x=1} 1\n`],
  ["a label twice", `${head}a_total{x="1",x="2"} 1\n`],
  ["the same series twice", `${head}a_total{x="1",y="2"} 1\na_total{y="2",x="1"} 1\n`],
  ["an escape that is none", `${head}a_total{x="\\d"} 1\n`],
  ["a type after samples", `${head}a_total 1\n# TYPE a_total counter\n`],
  ["a type that is none", "# HELP a_total H\n# TYPE a_total number\na_total 1\n"],
  ["a family in two places", `${head}a_total 1\n# HELP b H\n# TYPE b gauge\nb 1\na_total{x="1"} 1\n`],
  ["a counter without _total", "# HELP a H\n# TYPE a counter\na 1\n"],
  ["no help", "# TYPE a gauge\na 1\n"],
  ["a negative counter", `${head}a_total -1\n`],
  [
    "a histogram without +Inf",
    `${histogram}h_seconds_bucket{le="1"} 1\nh_seconds_sum 1\nh_seconds_count 1\n`
  ],
  [
    "buckets that are not cumulative",
    `${histogram}h_seconds_bucket{le="1"} 2\nh_seconds_bucket{le="+Inf"} 1\nh_seconds_sum 1\nh_seconds_count 1\n`
  ],
  [
    "a count that is another",
    `${histogram}h_seconds_bucket{le="+Inf"} 1\nh_seconds_sum 1\nh_seconds_count 2\n`
  ]
]
it.each(wrong)("refuses %s", (_, text) => {
  expect(() => parseExposition(text)).toThrow()
})
