import type { PassThrough } from 'node:stream'
import { deferred, type Deferred } from './deferred.ts'
import { SseError } from './errors.ts'
import { encode, encodeComment, type Newline, type SseEvent } from './event.ts'
import { follows, type CloseReason, type Exchange, type Feed } from './exchange.ts'
import type { Frame } from './frame.ts'
import { Beats, TICKS } from './heartbeat.ts'
import { destroy, gone, unblock, unwatch, watch, type Watcher } from './http.ts'
import { lastEventId } from './last-event-id.ts'
import { Outlet, type OutletEvents } from './outlet.ts'
import { checkSource, Drain, releaseSource, type MappedPipeOptions, type PipeOptions, type Sink, type Source } from './source.ts'
import { checkFunction, checkKeys, expected, oneOf } from './validate.ts'

/** What the middleware and the hub may do to a stream. Not exported from the package. */
export interface StreamControl {
  /** Gives a stream other options. Too late when it is open. */
  use(stream: EventStream, exchange: Exchange<EventStream>): void
  wasOpened(stream: EventStream): boolean
  /** Calls back when the stream opens, at once if it is open. */
  onOpen(stream: EventStream, action: () => void): void
  /**
   * The handler has returned. A promise: a pipe waits for its first item; it rejects when that one fails, and nobody has
   * answered otherwise.
   */
  returned(stream: EventStream): Promise<void> | undefined
  /** The handler has failed. True when the stream takes care of it; not so before it opened. */
  failed(stream: EventStream, error: unknown): boolean
  /** Whatever the response is piped from has failed, in a way that is no disconnect's. False when it is no news. */
  wrapperFailed(stream: EventStream, error: unknown): boolean
  /** Koa answers the request otherwise. */
  discard(stream: EventStream, reason: CloseReason): void
  end(stream: EventStream, reason: CloseReason, last: SseEvent): void
  /** Turns the client away: as `whenFull` says, or `politely` in any case. */
  turnAway(stream: EventStream, politely: boolean): void
  /** Opens the stream, and ties a feed to it. False when it has ended. */
  feed(stream: EventStream, feed: Feed): boolean
  /** True when a feed was tied to it before. */
  wasFed(stream: EventStream): boolean
  unfeed(stream: EventStream, feed: Feed): void
  newline(stream: EventStream): Newline
  /** False when there is no room, and the feed will be told. */
  askRoom(stream: EventStream): boolean
  /** Writes what is no event of the app's. False when there is no room for more, and the feed will be told. */
  writeText(stream: EventStream, text: string): boolean
  /** The same with an event, which counts. */
  sendFrame(stream: EventStream, frame: Frame): boolean
  /** Resolves when the response is over. */
  over(stream: EventStream): Promise<void>
  /** Breaks the connection, bytes on their way or not. */
  destroy(stream: EventStream): void
}

/** How the response ends with its stream: as a whole, so that it looks unfinished, at once, or by somebody else. */
type Ending = 'end' | 'cut' | 'destroy' | 'discard'

const YES = Promise.resolve(true)
const NO = Promise.resolve(false)
const PIPE_OPTIONS = ['end', 'map', 'head']

const ignore = (): void => {}

/** {@link StreamControl}, given away once by the class. */
export let control: StreamControl

/**
 * One client's open response: `ctx.sse`.
 *
 * It opens at the first `send`, `comment`, `pipe` or `open`. Until then the handler is an ordinary Koa handler. Once open it stays
 * so, whether or not the handler returns, until `close()`, the end of a piped source, or the client.
 *
 * Made by `sse()` only. For methods of your own, give `sse()` a subclass as its `Stream`.
 */
export class EventStream {
  #outlet: Outlet | undefined
  #eventsSent = 0
  #exchange: Exchange<EventStream>
  #reason: CloseReason | undefined
  /** The handler is done, and did not open. */
  #returned = false
  #failed = false
  #quietTicks = 0
  #writtenBefore = 0
  #stallTicks = -1
  #taken = 0
  #age: NodeJS.Timeout | undefined
  #watcher: Watcher | undefined
  #controller: AbortController | undefined
  #closed: Deferred<CloseReason> | undefined
  #onOpen: (() => void) | undefined
  #drains: Set<Drain> | undefined
  /** Pipes that wait for their first item. */
  #heads: Set<Promise<void>> | undefined
  #headFailure: { error: unknown } | undefined
  #feeds: Feed[] | undefined

  static readonly #heartbeats = new Beats<EventStream>(stream => stream.#beat())
  static readonly #stalls = new Beats<EventStream>(stream => stream.#checkStall())

  static {
    control = {
      use: (stream, exchange) => stream.#use(exchange),
      wasOpened: stream => stream.#outlet !== undefined,
      onOpen: (stream, action) => stream.#whenOpen(action),
      returned: stream => stream.#handlerReturned(),
      failed: (stream, error) => stream.#handlerFailed(error),
      wrapperFailed: (stream, error) => stream.#reason === undefined && !follows('client', error) && stream.#handlerFailed(error),
      discard: (stream, reason) => stream.#end(reason, 'discard'),
      end: (stream, reason, last) => stream.#end(reason, 'end', encode(last, stream.#exchange.settings.newline)),
      turnAway: (stream, politely) => stream.#turnAway(politely),
      feed: (stream, feed) => stream.#feed(feed),
      wasFed: stream => stream.#feeds !== undefined,
      unfeed: (stream, feed) => {
        stream.#feeds = stream.#feeds?.filter(each => each !== feed)
      },
      newline: stream => stream.#exchange.settings.newline,
      askRoom: stream => stream.#outlet?.askRoom() === true,
      writeText: (stream, text) => stream.#outlet?.writeText(text) === true,
      sendFrame: (stream, frame) => {
        stream.#eventsSent++
        return stream.#outlet?.writeFrame(frame) === true
      },
      over: stream => new Promise(resolve => stream.#exchange.res.once('close', resolve)),
      destroy: stream => stream.#destroy(),
    }
  }

  /** @internal */
  constructor(exchange: Exchange<EventStream>) {
    this.#exchange = exchange
  }

  /**
   * Sends one event; a string is its data. Opens the stream.
   *
   * Without `await`, up to `maxBuffer` bytes may wait; past that the stream ends, reason `slow`.
   *
   * @returns true when it was written and there is room for more, which takes as long as the client takes to read; false when the stream had ended.
   * @throws TypeError at once for a wrong event (see {@link encode}); nothing is written, and the stream is unharmed.
   */
  send(event: string | SseEvent): Promise<boolean> {
    const text = encode(event, this.#exchange.settings.newline)
    this.open()
    if (this.#reason !== undefined || this.#outlet === undefined) return NO
    this.#eventsSent++
    return this.#written(this.#write(text))
  }

  /** Sends a line, or several, that clients ignore. Otherwise as {@link send}. */
  comment(text: string): Promise<boolean> {
    const encoded = encodeComment(text, this.#exchange.settings.newline)
    this.open()
    if (this.#reason !== undefined || this.#outlet === undefined) return NO
    return this.#written(this.#write(encoded))
  }

  /**
   * Sends what `source` yields, an event each, as fast as the client reads and no faster, and ends the stream with it.
   *
   * When the stream ends first, the source is released at once, even while it owes an item: the signal is aborted, an iterator's
   * `return()` called, a Readable destroyed, a ReadableStream cancelled. An ended stream releases it unread.
   *
   * @returns a promise that resolves when the source has ended or was released. It rejects with the failure of the source, or a
   * `TypeError` for an item that is no event; then the stream ends too, reason `error`, whether or not anybody looks at the promise.
   * @throws TypeError at once for what is no source, or wrong options.
   */
  pipe(source: Source, options?: PipeOptions<never> & { map?: undefined }): Promise<void>
  pipe<T>(source: Source<T>, options: MappedPipeOptions<T>): Promise<void>
  pipe(source: Source<never>, options: PipeOptions<never> = {}): Promise<void> {
    checkSource(source)
    checkKeys('options', options, PIPE_OPTIONS)
    const { end = true, map, head = 'now' } = options
    if (typeof end !== 'boolean') throw new TypeError(expected('end', 'a boolean', end))
    if (map !== undefined) checkFunction('map', map)
    const early = oneOf('head', head, ['now', 'first-event']) === 'now' || this.#exchange.req.method === 'HEAD'
    try {
      if (early) this.open()
      else {
        this.#watch()
        unblock(this.#exchange.req)
      }
    } catch (error) {
      releaseSource(source)
      throw error
    }
    if (this.#reason !== undefined || (this.#failed && this.#exchange.res.headersSent)) {
      releaseSource(source)
      return Promise.resolve()
    }
    const piped = this.#drain(source, map, end)
    // Nobody has to look at it: the stream itself sees to a failure.
    piped.catch(ignore)
    if (this.#outlet === undefined) this.#awaitHead(piped)
    return piped
  }

  /**
   * Opens the stream now: head and first byte go out. Does nothing when it is open, when it has ended, or when the client has left.
   *
   * @throws what `ctx.throw(503)` throws when `maxStreams` are open, or the middleware was closed; {@link SseError}
   * `ERR_SSE_NOT_OPEN` when the handler returned without opening, and Koa has answered.
   */
  open(): this {
    if (this.#outlet !== undefined || this.#reason !== undefined) return this
    const exchange = this.#exchange
    const { req, res } = exchange
    if (res.headersSent) {
      // Koa has answered with the handler's failure: a task that it left behind cannot know, and is not worth a second one.
      if (this.#failed) return this
      throw new SseError(
        'ERR_SSE_NOT_OPEN',
        'The handler returned before the stream was open, and Koa has answered: call ctx.sse.open() before you return',
      )
    }
    if (gone(req, res)) {
      this.#end('client', 'discard')
      this.#wasOpened()
      return this
    }
    this.#openNow(exchange.admit())
    return this
  }

  /** Ends the stream cleanly, after all that was sent. Safe to repeat. Before the stream opened, it never will, and the response is the handler's own. */
  close(): void {
    this.#end('closed', 'end')
  }

  /** Closes the stream at the end of a block (`await using`). */
  async [Symbol.asyncDispose](): Promise<void> {
    this.close()
    await this.closed
  }

  /** True while the stream is open and the client is there; false at once when it leaves. */
  get connected(): boolean {
    return this.#outlet !== undefined && this.#reason === undefined && !gone(this.#exchange.req, this.#exchange.res)
  }

  /** Aborted when the stream ends, whoever ended it. */
  get signal(): AbortSignal {
    if (this.#controller === undefined) {
      this.#watch()
      this.#controller = new AbortController()
      if (this.#reason !== undefined) this.#controller.abort()
    }
    return this.#controller.signal
  }

  /** Resolves with the reason when the stream ends; never rejects. */
  get closed(): Promise<CloseReason> {
    if (this.#closed === undefined) {
      this.#watch()
      this.#closed = deferred()
      if (this.#reason !== undefined) this.#closed.resolve(this.#reason)
    }
    return this.#closed.promise
  }

  /**
   * The id of the last event that a returning client has seen: the `Last-Event-ID` header, decoded as UTF-8 (as latin1 where it is
   * not), else the query's `lastEventId` or `last_event_id`. Whatever it is, the client chose it.
   *
   * @see https://html.spec.whatwg.org/multipage/server-sent-events.html#the-last-event-id-header
   */
  get lastEventId(): string | undefined {
    return lastEventId(this.#exchange.req)
  }

  /** The stream that is `ctx.body`. @throws {@link SseError} `ERR_SSE_NOT_OPEN` before the stream opened. */
  get body(): PassThrough {
    if (this.#outlet === undefined) throw new SseError('ERR_SSE_NOT_OPEN', 'The stream is not open yet: call ctx.sse.open() first')
    return this.#outlet.body
  }

  /** Bytes of the body so far, first bytes and heartbeats included, those that wait too. */
  get bytesWritten(): number {
    return this.#outlet?.bytesWritten ?? 0
  }

  /** Events so far, sent or piped; comments do not count. */
  get eventsSent(): number {
    return this.#eventsSent
  }

  /** `later`: the client is told to come back after so long, and nothing else. */
  #openNow(later: number | undefined): void {
    const exchange = this.#exchange
    const { req, res, settings } = exchange
    const outlet = new Outlet(res, (what, error) => this.#outletChanged(what, error), settings.highWaterMark, settings.maxBuffer)
    this.#outlet = outlet
    this.#returned = this.#failed = false
    exchange.enter(this, outlet)
    this.#watch()
    if (req.method === 'HEAD') this.#end('closed', 'end')
    else if (later !== undefined) this.#end('closed', 'end', encode({ retry: later }, settings.newline))
    else this.#start(outlet)
    this.#wasOpened()
  }

  #start(outlet: Outlet): void {
    const { req, settings } = this.#exchange
    const { heartbeat, stallTimeout, maxAge, retry, newline } = settings
    // The head leaves with the first byte, and not before.
    void outlet.write(retry === undefined ? `:${newline}${newline}` : encode({ retry }, newline))
    if (heartbeat !== false) EventStream.#heartbeats.join(this, heartbeat)
    if (stallTimeout !== false) EventStream.#stalls.join(this, stallTimeout)
    if (maxAge !== false) this.#age = setTimeout(() => this.#end('expired', 'end'), maxAge * (0.8 + 0.2 * Math.random())).unref()
    unblock(req)
  }

  #write(text: string): Promise<void> | undefined {
    return this.#outlet?.write(text)
  }

  #written(room: Promise<void> | undefined): Promise<boolean> {
    if (room !== undefined) return room.then(() => this.#reason === undefined)
    return this.#reason === undefined ? YES : NO
  }

  async #drain(source: Source<never>, map: ((item: never) => string | SseEvent) | undefined, end: boolean): Promise<void> {
    const sink: Sink = {
      signal: () => this.signal,
      take: event => {
        const text = encode(event, this.#exchange.settings.newline)
        this.open()
        if (this.#reason !== undefined) return
        this.#eventsSent++
        return this.#write(text)
      },
    }
    const drain = new Drain(source, map, sink)
    this.#drains ??= new Set()
    this.#drains.add(drain)
    try {
      await drain.run().finally(() => this.#drains?.delete(drain))
      this.open()
    } catch (error) {
      if (this.#outlet === undefined) this.#headFailure = { error }
      else this.#handlerFailed(error)
      throw error
    }
    if (end) this.close()
  }

  #awaitHead(piped: Promise<void>): void {
    this.#heads ??= new Set()
    this.#heads.add(piped)
    const settled = (): void => void this.#heads?.delete(piped)
    piped.then(settled, settled)
  }

  #feed(feed: Feed): boolean {
    this.open()
    if (!this.#isOpen) return false
    this.#feeds = this.#feeds === undefined ? [feed] : [...this.#feeds, feed]
    return true
  }

  #turnAway(politely: boolean): void {
    const { req, res, settings } = this.#exchange
    if (this.#reason !== undefined) return
    if (gone(req, res)) this.#end('client', 'discard')
    else if (this.#outlet === undefined) this.#openNow(this.#exchange.turnAway(politely))
    else this.#end('closed', 'end', encode({ retry: this.#exchange.turnAway(true) }, settings.newline))
  }

  get #isOpen(): boolean {
    return this.#outlet !== undefined && this.#reason === undefined
  }

  #use(exchange: Exchange<EventStream>): void {
    if (this.#outlet === undefined) this.#exchange = exchange
  }

  #whenOpen(action: () => void): void {
    if (this.#outlet !== undefined) return action()
    const before = this.#onOpen
    this.#onOpen = () => {
      before?.()
      action()
    }
  }

  #wasOpened(): void {
    this.#onOpen?.()
    this.#onOpen = undefined
  }

  #handlerReturned(): Promise<void> | undefined {
    if (this.#outlet !== undefined) return
    if (this.#heads !== undefined) return this.#headsSettled(this.#heads)
    this.#returned = true
    this.#stopWatching()
    return
  }

  async #headsSettled(heads: ReadonlySet<Promise<void>>): Promise<void> {
    await Promise.allSettled(heads)
    this.#heads = undefined
    await this.#handlerReturned()
    if (this.#outlet === undefined && this.#headFailure !== undefined && !this.#exchange.answered) throw this.#headFailure.error
  }

  #handlerFailed(error: unknown): boolean {
    if (this.#outlet === undefined) {
      if (this.#reason !== undefined && follows(this.#reason, error)) return true
      this.#failed = true
      this.#stopWatching()
      return false
    }
    if (this.#reason !== undefined) {
      if (!follows(this.#reason, error)) this.#exchange.report(error)
      return true
    }
    let last: string | SseEvent | undefined
    try {
      last = this.#exchange.report(error)
    } finally {
      this.#end('error', 'cut', this.#encoded(last))
    }
    return true
  }

  /** An event of `onError`; rubbish counts as none. */
  #encoded(event: string | SseEvent | undefined): string | undefined {
    try {
      return event === undefined ? undefined : encode(event, this.#exchange.settings.newline)
    } catch {
      return undefined
    }
  }

  #outletChanged(...[what, error]: Parameters<OutletEvents>): void {
    if (this.#reason !== undefined) return
    if (what === 'room') for (const feed of this.#feeds ?? []) feed.drained()
    else if (what === 'overflowed') this.#end('slow', 'destroy')
    else if (what === 'ended') this.close()
    else if (error != null) this.#handlerFailed(error)
    else this.#responseClosed()
  }

  /** The body, or the response, is no more: was it the client, or has somebody else answered? */
  #responseClosed(): void {
    const { req, res } = this.#exchange
    if (res.writableEnded) this.#end('closed', 'discard')
    else if (gone(req, res)) this.#end('client', 'discard')
    // Nobody else is going to end a response that has begun.
    else this.#end('closed', res.headersSent ? 'destroy' : 'discard')
  }

  #watch(): void {
    if (this.#watcher !== undefined || this.#returned || this.#failed || this.#reason !== undefined) return
    const { req, res } = this.#exchange
    if (gone(req, res)) return this.#end('client', 'discard')
    this.#watcher = { left: () => this.#left(), over: () => this.#over() }
    watch(req, res, this.#watcher)
  }

  #stopWatching(): void {
    if (this.#watcher === undefined) return
    const { req, res } = this.#exchange
    unwatch(req, res, this.#watcher)
    this.#watcher = undefined
  }

  #left(): void {
    this.#end('client', 'discard')
    // What still waits would wait for ever.
    destroy(this.#exchange.res)
  }

  #end(reason: CloseReason, ending: Ending, last?: string): void {
    if (this.#reason !== undefined) return
    this.#reason = reason
    const { settings, res } = this.#exchange
    clearTimeout(this.#age)
    if (settings.heartbeat !== false) EventStream.#heartbeats.leave(this, settings.heartbeat)
    const outlet = this.#outlet
    if (outlet !== undefined) {
      this.#exchange.ended(this)
      if (last !== undefined) outlet.writeText(last)
      if (ending === 'end' || ending === 'cut') outlet.end(ending)
      else outlet.abandon()
      if (ending === 'destroy') destroy(res)
    } else this.#stopWatching()
    this.#controller?.abort()
    for (const drain of this.#drains ?? []) drain.stop()
    for (const feed of this.#feeds ?? []) feed.ended()
    this.#closed?.resolve(reason)
  }

  #over(): void {
    this.#stopWatching()
    this.#responseClosed()
    const { stallTimeout } = this.#exchange.settings
    if (stallTimeout !== false) EventStream.#stalls.leave(this, stallTimeout)
    this.#outlet?.abandon()
    this.#exchange.over(this)
  }

  #destroy(): void {
    this.#end('shutdown', 'destroy')
    destroy(this.#exchange.res)
  }

  #beat(): void {
    const outlet = this.#outlet
    if (outlet === undefined) return
    if (outlet.bytesWritten !== this.#writtenBefore || outlet.waiting > 0) {
      this.#writtenBefore = outlet.bytesWritten
      this.#quietTicks = 0
    } else if (++this.#quietTicks >= TICKS) {
      const { heartbeatText, newline } = this.#exchange.settings
      const news = this.#feeds?.map(feed => feed.heartbeat() ?? '').join('')
      void outlet.write(news || encodeComment(heartbeatText, newline))
    }
  }

  /** A stream that has ended is watched too, until its last byte has left. */
  #checkStall(): void {
    const outlet = this.#outlet
    if (outlet === undefined) return
    const { waiting, taken } = outlet
    if (waiting === 0) this.#stallTicks = -1
    // Nobody can read before there is a head.
    else if (taken > this.#taken || !this.#exchange.res.headersSent) this.#stallTicks = 0
    else if (++this.#stallTicks >= TICKS) {
      this.#end('stalled', 'destroy')
      destroy(this.#exchange.res)
    }
    this.#taken = Math.max(this.#taken, taken)
  }
}
