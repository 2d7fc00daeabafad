/**
 * JSON as VMMs write it: 64-bit counters and sizes that a double cannot hold. An integer beyond 2^53-1 becomes a bigint
 * with every digit; all else is what JSON.parse makes of it.
 */

/** Fails with SyntaxError as JSON.parse does. */
export const parseExact = (text: string): unknown =>
  JSON.parse(text, (_key, value: unknown, context?: { readonly source?: string }): unknown =>
    typeof value === "number" &&
    !Number.isSafeInteger(value) &&
    context?.source !== undefined &&
    /^-?\d+$/.test(context.source)
      ? BigInt(context.source)
      : value
  )
