import { describe } from "@effect/vitest"
import { testHistory } from "./historyTest.ts"

describe("200 instances, 10,000 random commands and faults", () => {
  for (const seed of [6, 7, 8, 9, 10]) testHistory(seed)
})
