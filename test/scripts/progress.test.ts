/** The scripts' way of speaking: short when all is well, everything when it is not, and the exit code right. */
import { spawn, spawnSync } from "node:child_process"
import { once } from "node:events"
import { mkdtempSync, rmSync } from "node:fs"
import { Socket } from "node:net"
import * as os from "node:os"
import * as path from "node:path"
import { afterAll, assert, beforeAll, describe, it } from "vitest"
import { repository } from "../../scripts/sources.ts"

describe("a step of a script", () => {
  let logs = ""
  beforeAll(() => {
    logs = mkdtempSync(path.join(os.tmpdir(), "chd-progress-"))
  })
  afterAll(() => rmSync(logs, { recursive: true, force: true }))

  const bash = (program: string) => {
    const prelude = `set -euo pipefail; . scripts/progress.sh; logDirectory=${logs}\n`
    const { status, stdout, stderr } = spawnSync("bash", ["-c", prelude + program], {
      cwd: repository,
      encoding: "utf8"
    })
    return { status, stdout, stderr }
  }

  it("is one line where it succeeds, whatever the command prints", () => {
    const { status, stdout, stderr } = bash(`step "doing it" sh -c 'echo noise; echo more >&2'`)
    assert.deepStrictEqual([status, stderr], [0, ""])
    assert.match(stdout, /^ {2}ok doing it( \d+ s| )?\n$/)
  })

  it("shows the command's words and passes its exit code on where it fails", () => {
    const { status, stdout, stderr } = bash(
      `step "doing it" sh -c 'echo noise; echo why >&2; exit 7'; echo unreached`
    )
    assert.strictEqual(status, 7)
    assert.notInclude(stdout, "unreached")
    assert.match(stderr, /FAILED doing it .*exit code 7/)
    assert.include(stderr, "    noise\n    why\n")
  })

  it("runs shell functions, with their arguments as they are", () => {
    const { stdout } = bash(
      `f() { printf '%s|' "$@" >${logs}/args; }; step f f 'a b' '*' ''; cat ${logs}/args`
    )
    assert.include(stdout, "a b|*||")
  })

  it("tells that it lives, with what the command says of itself", () => {
    const { stdout } = bash(`stepProgress=${logs}/now; echo half >$stepProgress; step "long one" sleep 1.5`)
    assert.match(stdout, /\.\.\. long one half \(\d+ s\)\n.*ok long one/s)
  })

  it("ends all that it started when the script is told to end", async () => {
    const program = `. scripts/progress.sh; logDirectory=${logs}; step "long one" sh -c 'sleep 300 & wait'`
    const script = spawn("bash", ["-c", program], {
      cwd: repository,
      stdio: ["ignore", "pipe", "inherit", "pipe"]
    })
    const ended = once(script, "exit")
    // Everything below the script inherits the pipe: it ends when the last of them has.
    const held = script.stdio[3]
    assert.instanceOf(held, Socket)
    const allGone = once(held.resume(), "end")
    assert.instanceOf(script.stdout, Socket)
    await once(script.stdout, "data")
    script.kill("SIGTERM")
    assert.deepStrictEqual(await ended, [143, null])
    await allGone
  })

  it("keeps control sequences to terminals", () => {
    assert.notInclude(bash(`title T; say S; step one true`).stdout, "\u001b")
  })
})

describe("the scripts", () => {
  for (const [script, args, said] of [
    ["setup.sh", ["--nonsense"], "unknown argument --nonsense"],
    ["quickstart.sh", ["--nonsense"], "unknown argument --nonsense"],
    ["quickstart.sh", ["--image"], "--image needs a reference"],
    ["quickstart.sh", ["--stop", "../../etc"], "no quickstart of the name ../../etc"]
  ] as const) {
    it(`${script} refuses ${args.join(" ")}`, () => {
      const { status, stderr } = spawnSync("bash", [`scripts/${script}`, ...args], {
        cwd: repository,
        encoding: "utf8"
      })
      assert.notStrictEqual(status, 0)
      assert.include(stderr, said)
    })
  }

  for (const script of ["setup.sh", "quickstart.sh"]) {
    it(`${script} explains itself`, () => {
      const { status, stdout } = spawnSync("bash", [`scripts/${script}`, "--help"], {
        cwd: repository,
        encoding: "utf8"
      })
      assert.strictEqual(status, 0)
      assert.include(stdout, `scripts/${script}`)
    })
  }
})
