import { bodyParser } from '@koa/bodyparser'
import { Router } from '@koa/router'
import type { Context } from 'koa'
import { Hub, sse, type SseMiddleware } from 'koa-sse'
import { authenticate } from './auth.ts'

// Whatever name a client asks for, it is one in this part of the hub.
const channel = (id: unknown): string => `channel:${String(id)}`

/** Channels that a client chooses by name, and a route that sends to one of them, or to everyone. */
export const channels = (hub: Hub = new Hub(), streams: SseMiddleware = sse()): Router =>
  new Router()
    // Without a channel_id the list is empty: such a client gets what is for everyone.
    .get(
      '/events',
      authenticate,
      streams,
      hub.subscriber((ctx: Context) => [ctx.query['channel_id'] ?? []].flat().map(channel)),
    )
    .post('/send', authenticate, bodyParser(), async ctx => {
      const { channel_id: id, data } = ctx.request.body as { channel_id?: unknown; data?: unknown }
      if (data === undefined) ctx.throw(400, 'data, please')
      // A hub takes events for a channel that nobody listens to, for those who come back: that it is "not found" is this API's own rule.
      if (id !== undefined && !hub.has(channel(id))) ctx.throw(404, 'channel not found')
      const event = { data: { channel_id: id, data, by: ctx.state['user'] } }
      ctx.body = { id: await (id === undefined ? hub.broadcast(event) : hub.publish(channel(id), event)) }
    })
