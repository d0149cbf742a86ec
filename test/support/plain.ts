import { createRequire } from 'node:module'
import type Application from 'koa'

// Loaded before the tests by `npm run test:plain`: an app that has a say of its own on `ctx.respond` gets Koa's ordinary way, the
// body piped into the response, and nothing of the short one.
const require = createRequire(import.meta.url)

for (const name of ['koa', 'koa30', 'koa2']) {
  const App = require(name) as typeof Application
  Object.assign(Object.getPrototypeOf(new App().context) as object, { respond: true })
}
