import { randomUUID } from 'node:crypto'
import { setTimeout } from 'node:timers/promises'
import { bodyParser } from '@koa/bodyparser'
import { Router, type RouterContext } from '@koa/router'
import { Hub, sse, type SseEvent, type SseMiddleware } from 'koa-sse'
import { pace, writeOn, type Pace } from './model.ts'

// Less than the five minutes that a hub keeps an event: an answer is forgotten before its beginning is.
const KEPT = 240_000

/** An answer that outlives its reader: a page that is reloaded in the middle sees all of it. `released` is told when a generator ends. */
export const resumable = (hub: Hub = new Hub(), streams: SseMiddleware = sse(), released: () => void = () => {}, found: Pace = pace): Router => {
  const answers = new Set<string>()
  const channel = (ctx: RouterContext): string => (answers.has(ctx.params['id']!) ? `answer:${ctx.params['id']}` : ctx.throw(404))

  async function* answer(prompt: string, signal: AbortSignal): AsyncGenerator<SseEvent> {
    try {
      yield { event: 'question', data: prompt }
      for (const token of writeOn(prompt)) {
        // Aborted when the hub closes, and not when a reader leaves.
        await found(signal)
        yield { event: 'token', data: token }
      }
      // The channel has no end of its own: this tells the page to close its EventSource.
      yield { event: 'done', data: '' }
    } finally {
      released()
    }
  }

  return new Router()
    .post('/answers', bodyParser(), ctx => {
      const { prompt } = ctx.request.body as { prompt?: unknown }
      if (typeof prompt !== 'string') return ctx.throw(400, 'prompt must be a string')
      const id = randomUUID()
      answers.add(id)
      void setTimeout(KEPT, undefined, { ref: false }).then(() => answers.delete(id))
      void hub.pipe(`answer:${id}`, signal => answer(prompt, signal))
      ctx.status = 201
      ctx.body = { id }
    })
    .get('/answers/:id', streams, hub.subscriber(channel, { from: 'earliest' }))
}
