import type Koa from 'koa'
import type { Context, Middleware } from 'koa'
import { sse, type SseMiddleware, type SseOptions } from 'koa-sse'
import { koa, serve, type TestServer } from './serve.ts'

/** A server of one `sse()`, and what came to it. */
export interface Started extends TestServer {
  readonly app: Koa & { errors: unknown[] }
  readonly streams: SseMiddleware
  /** The context of the first request, when its handler has been called. */
  readonly arrived: Promise<Context>
}

/** Serves `handler` behind `sse()`, and `outer` before it. */
export const startWith = async (options: SseOptions, handler: (ctx: Context) => unknown, ...outer: Middleware[]): Promise<Started> => {
  let arrive!: (ctx: Context) => void
  const arrived = new Promise<Context>(resolve => (arrive = resolve))
  const streams = sse(options)
  const app = koa(...outer, streams, ctx => {
    arrive(ctx)
    return handler(ctx) as Promise<void> | undefined
  })
  return { app, streams, arrived, ...(await serve(app)) }
}
