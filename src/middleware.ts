import type { Context, ExtendableContext, Next } from 'koa'
import { toError } from './errors.ts'
import { encode, type SseEvent } from './event.ts'
import { coreOf, EventStream } from './event-stream.ts'
import type { Answer, Exchange } from './exchange.ts'
import { brokeWith, closeAfter, destroy, gone, type Request, type Response } from './http.ts'
import { follows } from './outcome.ts'
import type { Outlet } from './outlet.ts'
import { respondDirectly } from './respond.ts'
import { checkCloseOptions, jittered, shutDown, type CloseOptions } from './shutdown.ts'
import type { StreamCore } from './stream-core.ts'
import { afterMicrotasks, nextTick } from './turn.ts'
import { checkSseOptions, type Settings, type SseOptions } from './sse-options.ts'
import { ignoreRejection } from './validate.ts'

/** What `sse()` adds to Koa's context. */
export interface SseContext {
  /** This request's event stream. It opens at the first `send`, `comment`, `pipe`, `open` or subscription to a hub. */
  sse: EventStream
}

declare module 'koa' {
  interface DefaultContext extends SseContext {}
}

/** What {@link sse} returns. */
export interface SseMiddleware {
  (ctx: ExtendableContext & SseContext, next: Next): Promise<void>
  /** Streams open through this middleware now. Of two `sse()` on one request it is the inner one that counts, and closes. */
  readonly size: number
  /**
   * Ends them all, and resolves when the last response is over, or after `graceMs`. New streams get 503 with `Retry-After`. Called
   * again, it returns the same promise.
   *
   * @throws TypeError or RangeError at once for wrong options; then nothing is closed.
   */
  close(options?: CloseOptions): Promise<void>
}

// What a client that is turned away is told, unless `retry` says otherwise.
const COME_BACK = 2_000

/** The streams of one `sse()`. */
class Group {
  readonly settings: Settings
  /** Until their responses are over. */
  readonly streams = new Set<StreamCore>()
  /** Of them, those that have not ended. */
  size = 0
  /** Refuse those who wait for a first event to open their stream with. */
  readonly waiting = new Set<() => void>()
  closing: Promise<void> | undefined

  constructor(settings: Settings) {
    this.settings = settings
  }

  close(options: CloseOptions): Promise<void> {
    const farewell = checkCloseOptions(options)
    if (this.closing === undefined) {
      this.closing = shutDown(this.streams, farewell)
      for (const refuse of this.waiting) refuse()
    }
    return this.closing
  }
}

/** What an app was told last of a request. Koa tells of one failure as the body's, and once more as the response's. */
const REPORTED = new WeakMap<Context, unknown>()

/** One request of a {@link Group}. */
class KoaExchange implements Exchange<StreamCore> {
  readonly #ctx: Context
  readonly #group: Group
  readonly settings: Settings
  /** The handler has not settled yet. */
  pending = true

  constructor(ctx: Context, group: Group) {
    this.#ctx = ctx
    this.#group = group
    this.settings = group.settings
  }

  get req(): Request {
    return this.#ctx.req
  }

  get res(): Response {
    return this.#ctx.res
  }

  get answer(): Answer {
    const { body, status, res } = this.#ctx
    // Koa's own: a 404 that somebody has set looks like the one that a response begins with.
    const { _explicitStatus } = this.#ctx.response as { _explicitStatus?: boolean }
    return { body, status, isDecided: _explicitStatus === true || res.headersSent || this.#ctx.respond === false }
  }

  admit(): number | undefined {
    const { size, closing, settings } = this.#group
    if (closing !== undefined) this.#refuse()
    return size < settings.maxStreams ? undefined : this.turnAway(false)
  }

  wait(refuse: () => void): () => void {
    const { closing, waiting } = this.#group
    if (closing !== undefined) this.#refuse()
    waiting.add(refuse)
    return () => void waiting.delete(refuse)
  }

  turnAway(politely: boolean): number {
    if (!politely && this.settings.whenFull === 'refuse') this.#refuse()
    return jittered(this.settings.retry ?? COME_BACK)
  }

  enter(stream: StreamCore, outlet: Outlet): void {
    const ctx = this.#ctx
    // A body that is there already brought its own type along; a type without a body was the handler's choice.
    const { req, res } = ctx
    if (ctx.body != null || !res.hasHeader('Content-Type')) res.setHeader('Content-Type', 'text/event-stream')
    if (!res.hasHeader('Cache-Control')) res.setHeader('Cache-Control', 'no-cache, no-transform')
    if (!res.hasHeader('X-Accel-Buffering')) res.setHeader('X-Accel-Buffering', 'no')
    // Otherwise Node says so itself, and for how long; or says that this was the connection's last response. A proxy (RFC 9110, section 7.6.3) that
    // passes on its client's wish to close believes what it is told, and would use this connection again: others' requests would fail.
    if (req.httpVersion === '1.1' && !res.shouldKeepAlive && !res.hasHeader('Connection') && req.headers.via === undefined) {
      // It asked for that (RFC 9112, section 9.6).
      closeAfter(req, res)
      res.setHeader('Connection', 'keep-alive')
    }
    // It would cut the stream short.
    ctx.remove('Content-Length')
    ctx.body = outlet.body
    respondDirectly(ctx, outlet)
    this.#group.streams.add(stream)
    this.#group.size++
  }

  #refuse(): never {
    const seconds = Math.max(1, Math.ceil((this.settings.retry ?? COME_BACK) / 1000))
    // Exposed, or Koa prints a stack for each of what may be a crowd.
    return this.#ctx.throw(503, { expose: true, headers: { 'Retry-After': String(seconds) } })
  }

  ended(): void {
    this.#group.size--
  }

  over(stream: StreamCore): void {
    this.#group.streams.delete(stream)
  }

  report(error: unknown): string | undefined {
    const ctx = this.#ctx
    if (REPORTED.has(ctx) && REPORTED.get(ctx) === error) return
    REPORTED.set(ctx, error)
    try {
      // Koa's own words for what is no error; its default handler throws at one.
      ctx.app.emit('error', toError(error), ctx)
    } catch (thrown) {
      // A listener that fails is nobody else's failure: others have their turn first.
      nextTick(() => {
        throw thrown
      })
    }
    try {
      const last: unknown = this.settings.onError?.(error, ctx)
      // An async one is a mistake that must not end the process.
      ignoreRejection(last)
      if (last !== undefined) return encode(last as string | SseEvent, this.settings.newline)
    } catch {
      // One that fails, or returns rubbish, has no last event.
    }
  }
}

/** What {@link onerror} has to know of a context. */
interface Intercepted {
  readonly stream: StreamCore
  readonly exchange: KoaExchange
  readonly onerror: Context['onerror']
}

const INTERCEPTED = Symbol('koa-sse errors')

/** A context whose errors come here first. */
interface InterceptedContext extends Context {
  [INTERCEPTED]?: Intercepted
}

/**
 * Koa takes every disconnect for an error of the body or the response, and from 3.1 on reports it. By the time it does, the
 * stream knows better. What is left are outer middleware that throw, and a wrapper of the body that fails.
 */
const interceptErrors = (ctx: InterceptedContext, stream: StreamCore, exchange: KoaExchange): void => {
  // oxlint-disable-next-line typescript/unbound-method -- it is called on a context
  const before = ctx[INTERCEPTED]?.onerror ?? ctx.onerror
  ctx[INTERCEPTED] = { stream, exchange, onerror: before }
  ctx.onerror = onerror
}

// One function for all contexts, and not a closure for each.
function onerror(this: InterceptedContext, error: Error): void {
  if (error == null) return
  const { req, res } = this
  const { stream, exchange, onerror: before } = this[INTERCEPTED]!
  if (!stream.wasOpened) {
    // While the handler runs, nobody but the broken connection itself can have complained.
    if (!exchange.pending || !gone(req, res)) before.call(this, error)
  } else if (brokeWith(req, res, error)) {
    // The client has left, in whatever way the kernel calls it.
  } else if (res.headersSent) {
    // Koa 2 ends no response whose body has died.
    if (stream.wrapperFailed(error) || (!gone(req, res) && !res.writableEnded)) destroy(res)
  } else if (REPORTED.get(this) === error) {
    destroy(res)
  } else if (!gone(req, res) || !follows('client', error)) {
    REPORTED.set(this, error)
    stream.discard('error')
    before.call(this, error)
  }
}

/**
 * Koa middleware that gives a request its event stream, {@link SseContext.sse | `ctx.sse`}.
 *
 * Until the stream opens nothing has happened: the handler may throw, redirect or answer as ever. When it opens, the middleware
 * returns, whether or not the handler runs on, since Koa responds only then; what outer middleware do after `next()` they do
 * before the first byte leaves.
 *
 * @throws TypeError for a wrong type or an unknown option, RangeError for a wrong number; both at once.
 */
export const sse = (options: SseOptions = {}): SseMiddleware => {
  const group = new Group(checkSseOptions(options))
  const { Stream } = group.settings

  const middleware = (ctx: ExtendableContext & SseContext, next: Next): Promise<void> => {
    const exchange = new KoaExchange(ctx as Context, group)
    const existing: unknown = ctx.sse
    const reused = existing instanceof EventStream && (existing instanceof Stream || coreOf(existing).wasOpened)
    if (!reused) ctx.sse = new Stream(exchange)
    const stream = coreOf(ctx.sse)
    if (reused) stream.use(exchange)
    else interceptErrors(ctx as Context, stream, exchange)
    return new Promise<void>((resolve, reject) => {
      // Opening comes first: what a handler throws in that very turn is a failure of the open stream. Not before all microtasks are
      // done: what a handler answers instead, because a source failed at once perhaps, Koa is to see.
      stream.onOpen(() => afterMicrotasks(resolve))
      next().then(
        () => {
          exchange.pending = false
          const waiting = stream.returned()
          if (waiting === undefined) resolve()
          else waiting.then(resolve, reject)
        },
        (error: unknown) => {
          exchange.pending = false
          if (stream.failed(error)) resolve()
          else reject(error)
        },
      )
    })
  }
  Object.defineProperties(middleware, {
    name: { value: 'sse' },
    size: { get: () => group.size },
    close: { value: (closeOptions: CloseOptions = {}) => group.close(closeOptions) },
  })
  return middleware as SseMiddleware
}
