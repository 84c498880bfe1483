// Hands the public suite to vitest. Its own command line finds no tests as installed and cannot switch
// subscriptions on, hence this wrapper.
import { runConformanceTests } from "@durable-streams/server-conformance-tests"

const baseUrl = process.env.CONFORMANCE_TEST_URL
if (!baseUrl) {
  throw new Error("CONFORMANCE_TEST_URL must name the running server, for example http://127.0.0.1:4437")
}

runConformanceTests({
  baseUrl,
  subscriptions: process.env.CONFORMANCE_SUBSCRIPTIONS === "1",
})
