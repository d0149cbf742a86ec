import { setTimeout } from 'node:timers/promises'
import { Router } from '@koa/router'
import type { Context, Next } from 'koa'
import type { EventStream, SseEvent, SseMiddleware } from 'koa-sse'

/** What the page shows: streams that are open, events sent, and generators released, for each example. */
export class Counts {
  readonly #open = new Set<EventStream>()
  readonly #released: Record<string, number> = {}
  #sentByEnded = 0

  /** Middleware that counts the streams opened behind it. */
  readonly watch = async (ctx: Context, next: Next): Promise<void> => {
    await next()
    const stream = ctx.sse as EventStream | undefined
    // sse() has returned because its stream is open, or because it never will be.
    if (stream === undefined || stream.bytesWritten === 0) return
    this.#open.add(stream)
    void stream.closed.then(() => this.#ended(stream))
  }

  /** What the generators of an example call when they are released. */
  released(example: string): () => void {
    this.#released[example] = 0
    return () => this.#released[example]!++
  }

  /** The counts, and which process it is that counts, as a stream of their own. */
  routes(streams: SseMiddleware): Router {
    return new Router().get('/counts', streams, ctx => ctx.sse.pipe(signal => this.#samples(signal)))
  }

  // Sampled, since an event for each event would be a flood.
  async *#samples(signal: AbortSignal): AsyncGenerator<SseEvent> {
    let last = ''
    yield { event: 'process', data: { pid: process.pid } }
    for (;;) {
      const data = JSON.stringify({ open: this.#open.size, events: this.#events(), released: this.#released })
      if (data !== last) yield { event: 'counts', data }
      last = data
      await setTimeout(150, undefined, { signal })
    }
  }

  #ended(stream: EventStream): void {
    this.#open.delete(stream)
    this.#sentByEnded += stream.eventsSent
  }

  #events(): number {
    return [...this.#open].reduce((sum, stream) => sum + stream.eventsSent, this.#sentByEnded)
  }
}
