import { defineConfig } from "vitest/config"

export default defineConfig({
  // Some of the suite's tests compare hundreds of thousands of values one by one: on a busy machine that alone can take
  // longer than the default limit of 5 s.
  test: { include: ["conformance.test.mjs"], testTimeout: 30_000 },
})
