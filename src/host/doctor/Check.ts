/**
 * One thing that VMs need from the host, as the doctor found it, and how it is told: to a person at a terminal, with
 * the remedy, and to clients of GET /health, without any path of the host.
 */
import type { HealthCheck } from "../../domain/Health.ts"

export interface Check {
  readonly name: string
  readonly ok: boolean
  /** What was found; a sentence without paths of the host. */
  readonly detail: string
  /** What an operator does about it, paths included; null where there is nothing to do. */
  readonly fix: string | null
}

export const passed = (name: string, detail: string): Check => ({ name, ok: true, detail, fix: null })
export const failed = (name: string, detail: string, fix: string): Check => ({ name, ok: false, detail, fix })

/** The host can run VMs. */
export const isFit = (checks: ReadonlyArray<Check>): boolean => checks.every((check) => check.ok)

/** 0 where the host can run VMs, else 1. */
export const exitCode = (checks: ReadonlyArray<Check>): 0 | 1 => (isFit(checks) ? 0 : 1)

export const healthCheck = ({ name, ok, detail }: Check): HealthCheck => ({ name, ok, detail })

const line = (mark: string, name: string, width: number, text: string): string =>
  `${mark.padEnd(5)}${name.padEnd(width)}  ${text}`

/** The checks as lines for a terminal, the remedy under each failure, and a verdict at the end. */
export const formatChecks = (checks: ReadonlyArray<Check>): string => {
  const width = Math.max(0, ...checks.map((check) => check.name.length))
  const failures = checks.filter((check) => !check.ok).length
  const lines = checks.flatMap(({ name, ok, detail, fix }) => [
    line(ok ? "ok" : "FAIL", name, width, detail),
    ...(fix === null ? [] : [line("", "", width, `fix: ${fix}`)])
  ])
  const verdict =
    failures === 0 ? "This host can run VMs." : `This host cannot run VMs yet: ${failures} to fix.`
  return [...lines, verdict, ""].join("\n")
}
