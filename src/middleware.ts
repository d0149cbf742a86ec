import { inspect } from 'node:util'
import type { Context, ExtendableContext, Next } from 'koa'
import { NEWLINES, type Newline, type SseEvent } from './event.ts'
import { control, EventStream } from './event-stream.ts'
import type { Exchange, StreamSettings } from './exchange.ts'
import { closeAfter, destroy, gone, type Request, type Response } from './http.ts'
import type { Outlet } from './outlet.ts'
import { respondDirectly } from './respond.ts'
import { checkCloseOptions, jittered, shutDown, type CloseOptions } from './shutdown.ts'
import { checkFunction, checkKeys, checkString, expected, limit, nonNegativeInteger, oneOf, period, positiveInteger } from './validate.ts'

/** What `sse()` adds to Koa's context. */
export interface SseContext {
  /** This request's event stream. It opens at the first `send`, `comment`, `pipe` or `open`. */
  sse: EventStream
}

declare module 'koa' {
  interface DefaultContext extends SseContext {}
}

/** Options of {@link sse}. All times are milliseconds, all sizes bytes. */
export interface SseOptions {
  /** A comment goes out after so long without a byte written, at most a quarter later. `false`: none. Default 15 000. */
  heartbeat?: number | false | undefined
  /** The text of that comment. Default `'ping'`. */
  heartbeatText?: string | undefined
  /** The reconnection delay that the client is told when the stream opens. Default: none is told. */
  retry?: number | undefined
  /** What ends a line. With `'\r'` a client may hold an event back until the next byte comes. Default `'\n'`. */
  newline?: Newline | undefined
  /** Bytes that may wait before `send` and `pipe` wait too; text counts by its length, one for each character but the rarest. Default 16 384. */
  highWaterMark?: number | undefined
  /**
   * An event that would make more bytes wait than this ends the stream, reason `slow`. While fewer than `highWaterMark` wait, an
   * event of any size is taken. Default 1 048 576.
   */
  maxBuffer?: number | undefined
  /** Bytes wait and the client reads nothing for so long: its connection is destroyed, reason `stalled`. `false`: never. Default 30 000. */
  stallTimeout?: number | false | undefined
  /** The stream ends at a random 80 to 100 % of this, reason `expired`; the client comes back, and is authorised anew. Default `false`. */
  maxAge?: number | false | undefined
  /** Streams open at once through this middleware; one more is turned away, as `whenFull` says. Default: unlimited. */
  maxStreams?: number | undefined
  /**
   * `'refuse'`: 503 with `Retry-After`, after which a browser's EventSource does not come back by itself.
   * `'retry'`: 200, a jittered `retry:`, and the end. Default `'refuse'`.
   */
  whenFull?: 'refuse' | 'retry' | undefined
  /** A last event for the client of a stream whose handler or source failed. Never send it `error.message` as it is. */
  onError?: ((error: unknown, ctx: Context) => string | SseEvent | undefined) | undefined
  /** A subclass of {@link EventStream}, so that `ctx.sse` has methods of your own. */
  Stream?: typeof EventStream | undefined
}

/** What {@link sse} returns. */
export interface SseMiddleware {
  (ctx: ExtendableContext & SseContext, next: Next): Promise<void>
  /** Streams open through this middleware now. */
  readonly size: number
  /** Ends them all, and resolves when the last response is over, or after `graceMs`. New streams get 503 with `Retry-After`. */
  close(options?: CloseOptions): Promise<void>
}

const KEYS = [
  'heartbeat',
  'heartbeatText',
  'retry',
  'newline',
  'highWaterMark',
  'maxBuffer',
  'stallTimeout',
  'maxAge',
  'maxStreams',
  'whenFull',
  'onError',
  'Stream',
] as const satisfies (keyof SseOptions)[]

// What a client that is turned away is told, unless `retry` says otherwise.
const COME_BACK = 2_000

interface Settings extends StreamSettings {
  readonly maxStreams: number
  readonly whenFull: 'refuse' | 'retry'
  readonly onError: ((error: unknown, ctx: Context) => string | SseEvent | undefined) | undefined
  readonly Stream: typeof EventStream
}

const checkOptions = (options: SseOptions): Settings => {
  checkKeys('options', options, KEYS)
  const { heartbeat = 15_000, heartbeatText = 'ping', retry, newline = '\n', highWaterMark = 16_384, maxBuffer = 1_048_576 } = options
  const { stallTimeout = 30_000, maxAge = false, maxStreams = Infinity, whenFull = 'refuse', onError, Stream = EventStream } = options
  const settings: Settings = {
    heartbeat: period('heartbeat', heartbeat),
    heartbeatText: checkString('heartbeatText', heartbeatText),
    retry: retry === undefined ? undefined : nonNegativeInteger('retry', retry),
    newline: oneOf('newline', newline, NEWLINES),
    highWaterMark: positiveInteger('highWaterMark', highWaterMark),
    maxBuffer: positiveInteger('maxBuffer', maxBuffer),
    stallTimeout: period('stallTimeout', stallTimeout),
    maxAge: period('maxAge', maxAge),
    maxStreams: limit('maxStreams', maxStreams),
    whenFull: oneOf('whenFull', whenFull, ['refuse', 'retry']),
    onError: onError === undefined ? undefined : checkFunction('onError', onError),
    Stream,
  }
  if (settings.highWaterMark > settings.maxBuffer) {
    throw new RangeError(expected('highWaterMark', `at most \`maxBuffer\`, ${settings.maxBuffer}`, settings.highWaterMark))
  }
  if (typeof Stream !== 'function' || (Stream !== EventStream && !(Stream.prototype instanceof EventStream))) {
    throw new TypeError(expected('Stream', 'a subclass of EventStream', Stream))
  }
  return settings
}

/** The streams of one `sse()`. */
class Group {
  readonly settings: Settings
  /** Until their responses are over. */
  readonly streams = new Set<EventStream>()
  /** Of them, those that have not ended. */
  size = 0
  closing: Promise<void> | undefined

  constructor(settings: Settings) {
    this.settings = settings
  }

  close(options: CloseOptions): Promise<void> {
    const farewell = checkCloseOptions(options)
    return (this.closing ??= shutDown(this.streams, farewell))
  }
}

/** One request of a {@link Group}. */
class KoaExchange implements Exchange<EventStream> {
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

  get answered(): boolean {
    return this.#ctx.body != null || this.#ctx.status !== 404
  }

  admit(): number | undefined {
    const { size, closing, settings } = this.#group
    if (closing !== undefined) this.#refuse()
    return size < settings.maxStreams ? undefined : this.turnAway(false)
  }

  turnAway(politely: boolean): number {
    if (!politely && this.settings.whenFull === 'refuse') this.#refuse()
    return jittered(this.settings.retry ?? COME_BACK)
  }

  enter(stream: EventStream, outlet: Outlet): void {
    const ctx = this.#ctx
    this.#group.streams.add(stream)
    this.#group.size++
    // A body that is there already brought its own type along; a type without a body was the handler's choice.
    const { req, res } = ctx
    if (ctx.body != null || !res.hasHeader('Content-Type')) res.setHeader('Content-Type', 'text/event-stream')
    if (!res.hasHeader('Cache-Control')) res.setHeader('Cache-Control', 'no-cache, no-transform')
    if (!res.hasHeader('X-Accel-Buffering')) res.setHeader('X-Accel-Buffering', 'no')
    if (req.httpVersion === '1.1' && !res.hasHeader('Connection')) {
      if (!res.shouldKeepAlive) closeAfter(req, res)
      res.setHeader('Connection', 'keep-alive')
    }
    // It would cut the stream short.
    ctx.remove('Content-Length')
    ctx.body = outlet.body
    respondDirectly(ctx, outlet)
  }

  #refuse(): never {
    const seconds = Math.max(1, Math.ceil((this.settings.retry ?? COME_BACK) / 1000))
    // Exposed, or Koa prints a stack for each of what may be a crowd.
    return this.#ctx.throw(503, { expose: true, headers: { 'Retry-After': String(seconds) } })
  }

  ended(): void {
    this.#group.size--
  }

  over(stream: EventStream): void {
    this.#group.streams.delete(stream)
  }

  report(error: unknown): string | SseEvent | undefined {
    const ctx = this.#ctx
    // Koa's own words for what is no error; its default handler throws at one.
    ctx.app.emit('error', error instanceof Error ? error : new Error(`non-error thrown: ${inspect(error)}`), ctx)
    try {
      const last: unknown = this.settings.onError?.(error, ctx)
      // An async one is a mistake that must not end the process.
      // oxlint-disable-next-line promise/no-promise-in-callback
      if (last instanceof Promise) last.catch(() => {})
      return last as string | SseEvent | undefined
    } catch {
      return
    }
  }
}

/** What {@link onerror} has to know of a context. */
interface Intercepted {
  readonly stream: EventStream
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
const interceptErrors = (ctx: InterceptedContext, stream: EventStream, exchange: KoaExchange): void => {
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
  if (!control.wasOpened(stream)) {
    // While the handler runs, nobody but the broken connection itself can have complained.
    if (!exchange.pending || !gone(req, res)) before.call(this, error)
  } else if (res.headersSent) {
    if (control.wrapperFailed(stream, error)) destroy(res)
  } else if (!gone(req, res)) {
    control.discard(stream, 'error')
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
  const group = new Group(checkOptions(options))
  const { Stream } = group.settings

  const middleware = (ctx: ExtendableContext & SseContext, next: Next): Promise<void> => {
    const exchange = new KoaExchange(ctx as Context, group)
    const existing = ctx.sse as EventStream | undefined
    const reused = existing !== undefined && (existing instanceof Stream || control.wasOpened(existing))
    const stream = reused ? existing : new Stream(exchange)
    if (reused) control.use(stream, exchange)
    else {
      ctx.sse = stream
      interceptErrors(ctx as Context, stream, exchange)
    }
    return new Promise<void>((resolve, reject) => {
      // Opening comes first: what a handler throws in that very turn is a failure of the open stream.
      control.onOpen(stream, resolve)
      next().then(
        () => {
          exchange.pending = false
          const waiting = control.returned(stream)
          if (waiting === undefined) resolve()
          else waiting.then(resolve, reject)
        },
        (error: unknown) => {
          exchange.pending = false
          if (control.failed(stream, error)) resolve()
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
