/**
 * What people type, in the form that the parser takes: flags of a guest's command stay the guest's, and an instance
 * called `1` is not the value of the flag before it.
 */
import type * as Completions from "effect/cli/Completions"

/** Commands whose words from this operand on, the first being 1, are a guest's command, flags and all. */
export type CommandTails = ReadonlyMap<string, number>

const literals = new Set(["true", "false", "yes", "no", "y", "n", "on", "off", "1", "0"])

const flagOf = (
  word: string,
  flags: ReadonlyArray<Completions.FlagDescriptor>
): Completions.FlagDescriptor | undefined => {
  const name = word.startsWith("--") ? word.slice(2) : (word.at(-1) ?? "")
  return flags.find((flag) => flag.name === name || flag.aliases.includes(name))
}

const isFlag = (word: string): boolean => word.length > 1 && word.startsWith("-") && !/^-[\d.]/u.test(word)

/** Words after the command's name, rewritten; `tail` is the operand that begins a guest's command. */
const rewrite = (
  words: ReadonlyArray<string>,
  flags: ReadonlyArray<Completions.FlagDescriptor>,
  tail: number | undefined
): ReadonlyArray<string> => {
  const written: Array<string> = []
  let operands = 0
  for (let at = 0; at < words.length; at++) {
    const word = words[at] ?? ""
    if (word === "--") return [...written, ...words.slice(at)]
    if (!isFlag(word)) {
      operands += 1
      if (operands === tail) return [...written, "--", ...words.slice(at)]
      written.push(word)
      continue
    }
    const flag = word.includes("=") ? undefined : flagOf(word, flags)
    const next = words[at + 1]
    if (flag?.type._tag === "Boolean" && next !== undefined && literals.has(next)) {
      written.push(`${word}=true`)
    } else if (flag !== undefined && flag.type._tag !== "Boolean" && next !== undefined) {
      written.push(...(word.startsWith("--") ? [`${word}=${next}`] : [word, next]))
      at += 1
    } else written.push(word)
  }
  return written
}

/** The words of a command line, for the parser of a command tree. */
export const prepared = (
  words: ReadonlyArray<string>,
  root: Completions.CommandDescriptor,
  tails: CommandTails
): ReadonlyArray<string> => {
  const path: Array<string> = []
  let command = root
  let at = 0
  while (at < words.length) {
    const word = words[at] ?? ""
    if (isFlag(word)) {
      const flag = word.includes("=") ? undefined : flagOf(word, command.flags)
      at += flag === undefined || flag.type._tag === "Boolean" ? 1 : 2
      continue
    }
    const sub = command.subcommands.find(({ name }) => name === word)
    if (sub === undefined) break
    path.push(word)
    command = sub
    at += 1
  }
  // Flags before the command's name need no rewriting: what follows them is a name.
  const last = path.at(-1)
  const start = last === undefined ? words.length : words.indexOf(last) + 1
  return [...words.slice(0, start), ...rewrite(words.slice(start), command.flags, tails.get(path.join(" ")))]
}
