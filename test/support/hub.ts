import { Hub, sse, type EventStream, type HubOptions, type SseOptions } from 'koa-sse'
import { koa, serve } from './serve.ts'

const hubs: Hub[] = []

/** A hub that is closed when the test is over. */
export const makeHub = (options: HubOptions = {}): Hub => {
  const hub = new Hub(options)
  hubs.push(hub)
  return hub
}

/** Serves streams that are open and nothing else; the test subscribes them. */
export const serveStreams = async (options: SseOptions = {}): Promise<{ url: string; streams: EventStream[]; errors: unknown[] }> => {
  const streams: EventStream[] = []
  const app = koa(sse(options), ctx => {
    ctx.sse.open()
    streams.push(ctx.sse)
  })
  return { url: (await serve(app)).url, streams, errors: app.errors }
}

afterEach(async () => {
  for (const hub of hubs.splice(0)) await hub.close({ graceMs: 0 })
})
