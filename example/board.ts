import { bodyParser } from '@koa/bodyparser'
import { Router } from '@koa/router'
import type { Context } from 'koa'
import { Hub, sse, type SseMiddleware } from 'koa-sse'

interface Note {
  readonly by: string
  readonly text: string
}

const NOTES = 50
const AWAY = 2_000

// A client has a channel of its own, too, by which the server finds its stream.
const tab = (ctx: Context): string => {
  const { tab: name } = ctx.query
  if (typeof name !== 'string' || !/^[\w-]{1,50}$/.test(name)) return ctx.throw(400, 'tab must be a short name')
  return `tab:${name}`
}

/** Notes that everybody sees. The hub keeps so few that the page can show what becomes of a client that has missed more. */
export const board = (hub: Hub = new Hub({ history: { events: 20 } }), streams: SseMiddleware = sse()): Router => {
  let notes: Note[] = []

  return (
    new Router()
      // The state, and the position in the stream that belongs to it: the page connects with ?lastEventId=, and misses nothing in between.
      // Where reading the state takes a while, read the position before it: a note may then come twice, but never not at all.
      .get('/board', ctx => {
        ctx.body = { position: hub.position, notes }
      })
      .get(
        '/board/events',
        streams,
        hub.subscriber((ctx: Context) => ['board', tab(ctx)]),
      )
      .post('/board', bodyParser(), async ctx => {
        const { by, text } = ctx.request.body as { by?: unknown; text?: unknown }
        if (typeof by !== 'string' || typeof text !== 'string') return ctx.throw(400, 'by and text must be strings')
        const note = { by: by.slice(0, 20), text: text.slice(0, 200) }
        notes = [...notes, note].slice(-NOTES)
        ctx.body = { id: await hub.publish('board', { event: 'note', data: note }) }
      })
      // For the show: a browser stays away for as long as `retry` says, then comes back by itself with the last id that it has seen.
      .post('/board/cut', async ctx => {
        await hub.publish(tab(ctx), { retry: AWAY })
        ctx.body = { cut: hub.disconnect(({ channels }) => channels.has(tab(ctx))) }
      })
  )
}
