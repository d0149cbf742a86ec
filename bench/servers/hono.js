import { createAdaptorServer } from '@hono/node-server'
import { Hono } from 'hono'
import { streamSSE } from 'hono/streaming'
import { payloads } from '../payload.js'

export const start = () => {
  const app = new Hono()
  app.get('/stream/:count', c =>
    streamSSE(c, async stream => {
      for await (const data of payloads(Number(c.req.param('count')))) await stream.writeSSE({ data })
    }),
  )
  app.get('/events/:channel', c =>
    streamSSE(c, async stream => {
      await stream.write(':\n\n')
      await new Promise(resolve => stream.onAbort(resolve))
    }),
  )
  return { server: createAdaptorServer({ fetch: app.fetch }) }
}
