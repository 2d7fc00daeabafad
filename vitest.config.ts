import { defineConfig } from "vitest/config"

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    testTimeout: 30_000,
    hookTimeout: 120_000,
    // Two cores: more workers only take turns, and live guests want one to themselves.
    maxWorkers: 2,
    reporters: ["default"]
  }
})
