import { setTimeout } from 'node:timers/promises'
import { Router } from '@koa/router'
import { sse, type SseMiddleware } from 'koa-sse'

const STEPS = ['Unpacking', 'Reading', 'Resizing', 'Writing', 'Checking']

/** A job that tells how far it is: no generator, just `send` where there is something to say. */
export const progress = (streams: SseMiddleware = sse()): Router =>
  new Router().get('/progress', streams, async ctx => {
    for (let percent = 0; percent < 100; percent += 4) {
      await ctx.sse.send({ event: 'progress', data: { percent, step: STEPS[Math.floor(percent / 20)] } })
      // It rejects when the client leaves, which ends the job here; and that is no error to the app.
      await setTimeout(50, undefined, { signal: ctx.sse.signal })
    }
    await ctx.sse.send({ event: 'progress', data: { percent: 100, step: 'Finished' } })
    // After a mere end a browser's EventSource would come back, and start the job anew: this tells the page to close it.
    await ctx.sse.send({ event: 'done', data: '' })
    ctx.sse.close()
  })
