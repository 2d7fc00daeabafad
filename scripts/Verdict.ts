/**
 * A vitest reporter that says at the end, in words for a person, what was skipped and why, and leaves the counts in the
 * file that VERDICT names, as `passed failed skipped` on one line, for scripts/test.sh. Everything that went wrong is a
 * failure: a file that cannot be loaded and an error that no test caught count as one each.
 */
import { writeFileSync } from "node:fs"
import type { Reporter, SerializedError, TestCase, TestModule } from "vitest/node"

interface Counts {
  readonly passed: number
  readonly failed: number
  readonly skipped: number
}

/** Hooks and imports that fail take their tests with them; the module or suite says so, its tests do not. */
const failedOutsideTests = (module: TestModule): number =>
  module.errors().length + [...module.children.allSuites()].flatMap((suite) => suite.errors()).length

const count = (tests: ReadonlyArray<TestCase>, besides: number): Counts => {
  const having = (state: string) => tests.filter((test) => test.result().state === state).length
  return {
    passed: having("passed"),
    // A test that never came to a result was killed together with its worker.
    failed: having("failed") + having("pending") + besides,
    skipped: having("skipped")
  }
}

const reasonOf = (test: TestCase): string => {
  const result = test.result()
  return (result.state === "skipped" ? result.note : undefined) ?? `marked ${test.options.mode}`
}

export default class Verdict implements Reporter {
  onTestRunEnd(modules: ReadonlyArray<TestModule>, unhandled: ReadonlyArray<SerializedError>): void {
    const tests = modules.flatMap((module) => [...module.children.allTests()])
    const skipped = tests.filter((test) => test.result().state === "skipped")
    for (const test of skipped) {
      process.stdout.write(`skipped: ${test.module.relativeModuleId} > ${test.fullName}: ${reasonOf(test)}\n`)
    }
    const besides = unhandled.length + modules.reduce((sum, module) => sum + failedOutsideTests(module), 0)
    const { passed, failed, skipped: skips } = count(tests, besides)
    const target = process.env["VERDICT"]
    if (target !== undefined) writeFileSync(target, `${passed} ${failed} ${skips}\n`)
  }
}
