import { setTimeout } from 'node:timers/promises'
import { Router } from '@koa/router'
import { sse, type SseEvent, type SseMiddleware } from 'koa-sse'

/** The server's time, once a second: one generator for each client. `released` is told when it is given back. */
export const clock = (streams: SseMiddleware = sse(), released: () => void = () => {}): Router => {
  async function* time(signal: AbortSignal): AsyncGenerator<SseEvent> {
    try {
      for (;;) {
        yield { event: 'time', data: new Date().toISOString() }
        // Without the signal the generator would learn only at its next tick that the client has left.
        await setTimeout(1_000, undefined, { signal })
      }
    } finally {
      released()
    }
  }

  return new Router().get('/clock', streams, ctx => ctx.sse.pipe(time))
}
