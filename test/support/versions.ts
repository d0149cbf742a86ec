import { createRequire } from 'node:module'
import type Koa from 'koa'
import type { Middleware } from 'koa'
import { koa as newest } from './serve.ts'

const require = createRequire(import.meta.url)

export type App = Koa & { errors: unknown[] }

/** `koa()` of test/support, of another version. */
const appsOf = (name: string): ((...middleware: Middleware[]) => App) => {
  const Application = require(name) as typeof Koa
  return (...middleware) => {
    const app = Object.assign(new Application(), { errors: [] as unknown[] })
    app.on('error', error => app.errors.push(error))
    for (const each of middleware) app.use(each)
    return app
  }
}

export const VERSIONS: [string, typeof newest][] = [
  ['3.3', newest],
  ['3.0', appsOf('koa30')],
  ['2.16', appsOf('koa2')],
]
