/**
 * Image references as docker reads them: the grammar of distribution/reference and the normalisation of the docker
 * command line (`nginx` is `docker.io/library/nginx:latest`), and the id that an image gets by default.
 */
import * as Result from "effect/Result"
import { digestHex, Digest, ImageId } from "../domain/Ids.ts"
import * as Schema from "effect/Schema"

export interface Reference {
  /** Host and port of the registry, such as `docker.io` or `localhost:5000`. */
  readonly domain: string
  /** The repository in it, such as `library/nginx`. */
  readonly path: string
  /** Null only where there is a digest. */
  readonly tag: string | null
  readonly digest: Digest | null
}

/** distribution/reference: NameTotalLengthMax, without tag and digest. */
const nameMaxLength = 255
const referenceMaxLength = 512
const idMaxLength = 63
const digestShown = 8

const domainComponent = "(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
const domainPattern = new RegExp(
  `^(?:${domainComponent}(?:\\.${domainComponent})*|\\[[a-fA-F0-9:]+\\])(?::[0-9]+)?$`,
  "u"
)
const pathPattern = /^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:\/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$/u
const tagPattern = /^\w[\w.-]{0,127}$/u
const hexIdentifier = /^[a-f0-9]{64}$/u
const isDigest = Schema.is(Digest)

/** Splits `name[:tag][@digest]`; a colon before the last slash belongs to a port. */
const split = (text: string): { readonly name: string; readonly tag?: string; readonly digest?: string } => {
  const at = text.indexOf("@")
  const tagged = at === -1 ? text : text.slice(0, at)
  const colon = tagged.lastIndexOf(":")
  const hasTag = colon > tagged.lastIndexOf("/")
  return {
    name: hasTag ? tagged.slice(0, colon) : tagged,
    ...(hasTag ? { tag: tagged.slice(colon + 1) } : {}),
    ...(at === -1 ? {} : { digest: text.slice(at + 1) })
  }
}

/** docker's rule: the first component is a registry if it has a dot, a port or a capital, or is `localhost`. */
const locate = (name: string): { readonly domain: string; readonly path: string } => {
  const slash = name.indexOf("/")
  const first = name.slice(0, Math.max(slash, 0))
  const isDomain =
    slash !== -1 && (/[.:]/u.test(first) || first === "localhost" || first.toLowerCase() !== first)
  const domain = !isDomain || first === "index.docker.io" ? "docker.io" : first
  const path = isDomain ? name.slice(slash + 1) : name
  return { domain, path: domain === "docker.io" && !path.includes("/") ? `library/${path}` : path }
}

const quoted = (text: string) => JSON.stringify(text.length > 100 ? `${text.slice(0, 100)}…` : text)

/** The reference that a text means, or a sentence that says what is wrong with it. */
export const parse = (text: string): Result.Result<Reference, string> => {
  const no = (why: string) => Result.fail(`${quoted(text)} is not an image reference: ${why}.`)
  if (text === "") return Result.fail("An image reference is needed, such as docker.io/library/nginx:alpine.")
  if (text.length > referenceMaxLength) return no(`it has more than ${referenceMaxLength} characters`)
  if (hexIdentifier.test(text)) return no("a bare 64-digit identifier names no repository")
  const parts = split(text)
  if (parts.name === "") return no("the name is missing")
  if (parts.digest !== undefined && !isDigest(parts.digest)) {
    return no("behind @ there must be sha256: and 64 lower-case hexadecimal digits")
  }
  if (parts.tag !== undefined && !tagPattern.test(parts.tag)) {
    return no("a tag has 1 to 128 letters, digits, _, . and -, and starts with none of . and -")
  }
  const { domain, path } = locate(parts.name)
  if (path.toLowerCase() !== path) return no("the repository name must be lower-case")
  if (!domainPattern.test(domain)) return no(`${quoted(domain)} is not a registry host`)
  if (!pathPattern.test(path)) {
    return no(
      "the repository name may hold lower-case letters, digits and single separators . _ __ - between them"
    )
  }
  if (domain.length + 1 + path.length > nameMaxLength)
    return no(`its name has more than ${nameMaxLength} characters`)
  const digest = parts.digest === undefined ? null : Digest.make(parts.digest)
  return Result.succeed({ domain, path, tag: parts.tag ?? (digest === null ? "latest" : null), digest })
}

/** Registry and repository, without tag and digest. */
export const repository = (reference: Reference): string => `${reference.domain}/${reference.path}`

/** The one normal form of a reference: equal texts mean the same image. */
export const format = (reference: Reference): string =>
  repository(reference) +
  (reference.tag === null ? "" : `:${reference.tag}`) +
  (reference.digest === null ? "" : `@${reference.digest}`)

/** A registry on this machine's loopback speaks plain HTTP by custom; TLS is never waived for another. */
export const isLoopback = (reference: Reference): boolean => {
  const host = reference.domain.replace(/:\d+$/u, "")
  return host === "localhost" || host === "[::1]" || /^127(?:\.\d{1,3}){3}$/u.test(host)
}

const clean = (text: string) =>
  text
    .toLowerCase()
    .replace(/[^a-z0-9]+/gu, "-")
    .replace(/^-+|-+$/gu, "")

const bounded = (text: string, length: number) => text.slice(0, length).replace(/-+$/u, "")

/**
 * The ids that an image may get by default, best first: `img-` and the last path component, `-tag` unless it is latest;
 * where that is taken by another reference, `-` and 8 digits behind it: of the digest in the reference, or else of the
 * `fallback` digest.
 */
export const defaultIds = (reference: Reference, fallback: Digest): readonly [ImageId, ImageId] => {
  const last = reference.path.slice(reference.path.lastIndexOf("/") + 1)
  const tag = reference.tag === null || reference.tag === "latest" ? "" : clean(reference.tag)
  const base = `img-${clean(last)}${tag === "" ? "" : `-${tag}`}`
  const suffix = digestHex(reference.digest ?? fallback).slice(0, digestShown)
  return [
    ImageId.make(bounded(base, idMaxLength)),
    ImageId.make(`${bounded(base, idMaxLength - digestShown - 1)}-${suffix}`)
  ]
}
