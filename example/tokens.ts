import { bodyParser } from '@koa/bodyparser'
import { Router } from '@koa/router'
import { sse, type SseMiddleware } from 'koa-sse'
import { pace, write, type Pace } from './model.ts'

/** An answer, token by token, as a language model gives it. `released` is told when a generator is given back. */
export const tokens = (streams: SseMiddleware = sse(), released: () => void = () => {}, found: Pace = pace): Router => {
  async function* answer(prompt: string, signal: AbortSignal): AsyncGenerator<string> {
    try {
      for (const token of write(prompt)) {
        await found(signal)
        yield token
      }
    } finally {
      // The reader pressed stop: this is where a model that is paid by the token would be told to stop, too.
      released()
    }
  }

  return new Router().post('/tokens', bodyParser(), streams, ctx => {
    const { prompt } = ctx.request.body as { prompt?: unknown }
    if (typeof prompt !== 'string') return ctx.throw(400, 'prompt must be a string')
    // With the first token, not before: until then a model that refuses (429, say) makes an ordinary HTTP error.
    return ctx.sse.pipe(signal => answer(prompt, signal), { map: data => ({ event: 'token', data }), head: 'first-event' })
  })
}
