import { setMaxListeners } from 'node:events'
import type { PassThrough } from 'node:stream'
import { Clocks, type ClocksOwner } from './clocks.ts'
import { deferred, type Deferred } from './deferred.ts'
import { SseError } from './errors.ts'
import { encode, encodeComment, type Newline, type SseEvent } from './event.ts'
import { follows, type Answer, type CloseReason, type Exchange, type Feed } from './exchange.ts'
import type { Frame } from './frame.ts'
import { closeAfter, destroy, gone, sent, unblock, unwatch, watch, type Watcher } from './http.ts'
import { Outlet, type OutletEvents } from './outlet.ts'
import { Pipes, type PipesOwner } from './pipes.ts'
import { releaseSource, type Source } from './source.ts'

/** How the response ends with its stream: as a whole, so that it looks unfinished, at once, or by somebody else. */
type Ending = 'end' | 'cut' | 'destroy' | 'discard'

const YES = Promise.resolve(true)
const NO = Promise.resolve(false)

/** One client's stream: when it opens, what it writes, how it ends and why. `EventStream` is what the app sees of it. */
export class StreamCore implements ClocksOwner, PipesOwner {
  #outlet: Outlet | undefined
  /** Events so far. */
  eventsSent = 0
  #exchange: Exchange<StreamCore>
  #reason: CloseReason | undefined
  /** The handler is done, and did not open. */
  #returned = false
  /** The handler or a source has failed. Opening begins anew. */
  #failed = false
  /** Koa has been let go on. */
  #released = false
  #clocks: Clocks | undefined
  #watcher: Watcher | undefined
  #controller: AbortController | undefined
  #closed: Deferred<CloseReason> | undefined
  #onOpen: (() => void) | undefined
  #pipes: Pipes | undefined
  #feeds: Feed[] | undefined

  constructor(exchange: Exchange<StreamCore>) {
    this.#exchange = exchange
  }

  get exchange(): Exchange<StreamCore> {
    return this.#exchange
  }

  get newline(): Newline {
    return this.#exchange.settings.newline
  }

  get wasOpened(): boolean {
    return this.#outlet !== undefined
  }

  get body(): PassThrough | undefined {
    return this.#outlet?.body
  }

  get bytesWritten(): number {
    return this.#outlet?.bytesWritten ?? 0
  }

  get connected(): boolean {
    return this.isOpen && !gone(this.#exchange.req, this.#exchange.res)
  }

  get signal(): AbortSignal {
    if (this.#controller === undefined) {
      this.#watch()
      this.#controller = new AbortController()
      // Many may wait for the end of one stream: each of its sources, to begin with.
      setMaxListeners(0, this.#controller.signal)
      if (this.#reason !== undefined) this.#controller.abort()
    }
    return this.#controller.signal
  }

  get closed(): Promise<CloseReason> {
    if (this.#closed === undefined) {
      this.#watch()
      this.#closed = deferred()
      if (this.#reason !== undefined) this.#closed.resolve(this.#reason)
    }
    return this.#closed.promise
  }

  get answer(): Answer {
    return this.#exchange.answer
  }

  /** The handler has failed, and the client is told so. */
  get #isAnswered(): boolean {
    return this.#failed && (this.#exchange.res.headersSent || this.answer.body != null)
  }

  get isOpen(): boolean {
    return this.#outlet !== undefined && this.#reason === undefined
  }

  // --- what the app writes

  send(text: string, isEvent: boolean): Promise<boolean> {
    this.open()
    if (this.#reason !== undefined || this.#outlet === undefined) return NO
    if (isEvent) this.eventsSent++
    const room = this.#outlet.write(text)
    if (room !== undefined) return room.then(() => this.#reason === undefined)
    return this.#reason === undefined ? YES : NO
  }

  /** `early`: opens now, and not with the first item. */
  pipe(source: Source<never>, map: ((item: never) => string | SseEvent) | undefined, end: boolean, early: boolean): Promise<void> {
    let settled: (() => void) | undefined
    try {
      if (early || this.#exchange.req.method === 'HEAD') this.open()
      else {
        this.#watch()
        unblock(this.#exchange.req)
        if (!this.wasOpened && this.#reason === undefined && !this.#isAnswered) settled = this.#exchange.wait(() => this.#refuse())
      }
    } catch (error) {
      releaseSource(source)
      throw error
    }
    if (this.#reason !== undefined || this.#isAnswered) {
      releaseSource(source)
      return Promise.resolve()
    }
    const piped = (this.#pipes ??= new Pipes(this)).add(source, map, end)
    if (settled !== undefined) piped.then(settled, settled)
    return piped
  }

  /** No stream may open any more: the client, and a server that closes, would wait for an item that cannot be sent. */
  #refuse(): void {
    try {
      this.open()
    } catch (error) {
      this.#pipes?.fail(error)
    }
  }

  // Of a PipesOwner.

  take(event: string | SseEvent): Promise<void> | undefined {
    const text = encode(event, this.newline)
    this.open()
    if (this.#outlet === undefined) this.#pipes?.stop()
    if (!this.isOpen) return
    this.eventsSent++
    return this.#outlet?.take(text)
  }

  // --- how it opens

  open(): void {
    if (this.#outlet !== undefined || this.#reason !== undefined) return
    // A task that a handler left behind cannot know of its failure, and is not worth a second one.
    if (this.#isAnswered) return
    this.#throwIfSent()
    const { req, res } = this.#exchange
    if (gone(req, res)) {
      this.#end('client', 'discard')
      this.#opened()
    } else this.#openNow(this.#exchange.admit())
  }

  #throwIfSent(): void {
    if (!this.#exchange.res.headersSent) return
    throw new SseError(
      'ERR_SSE_NOT_OPEN',
      'The handler returned before the stream was open, and Koa has answered: call ctx.sse.open() before you return',
    )
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
    if (req.method === 'HEAD') this.close()
    else {
      const { retry, newline } = settings
      this.#clocks = new Clocks(outlet, settings, this)
      // The head leaves with the first byte, and not before.
      if (later !== undefined) this.#end('closed', 'end', encode({ retry: later }, newline))
      else void outlet.write(retry === undefined ? `:${newline}${newline}` : encode({ retry }, newline))
      unblock(req)
    }
    this.#opened()
  }

  #opened(): void {
    this.#released = true
    this.#onOpen?.()
    this.#onOpen = undefined
  }

  /** Calls back when the stream opens, at once if it is open. */
  onOpen(action: () => void): void {
    if (this.#outlet !== undefined) return action()
    const before = this.#onOpen
    this.#onOpen = () => {
      before?.()
      action()
    }
  }

  /** Gives the stream other options. Too late when it is open. */
  use(exchange: Exchange<StreamCore>): void {
    if (this.#outlet === undefined) this.#exchange = exchange
  }

  /** Turns the client away: as `whenFull` says, or `politely` in any case. */
  turnAway(politely: boolean): void {
    const { req, res } = this.#exchange
    if (this.#reason !== undefined) return
    if (gone(req, res)) this.#end('client', 'discard')
    else if (this.#outlet === undefined) {
      this.#throwIfSent()
      this.#openNow(this.#exchange.turnAway(politely))
    } else this.#end('closed', 'end', encode({ retry: this.#exchange.turnAway(true) }, this.newline))
  }

  // --- what becomes of the handler

  /**
   * The handler has returned. A promise: a pipe waits for its first item; it rejects when that one fails, and nobody has
   * answered otherwise.
   */
  returned(): Promise<void> | undefined {
    if (this.#outlet !== undefined) return
    const heads = this.#pipes?.takeHeads()
    if (heads !== undefined) return this.#headsSettled(heads)
    this.#returned = true
    this.#stopWatching()
    return
  }

  async #headsSettled(heads: Iterable<Promise<void>>): Promise<void> {
    await Promise.allSettled(heads)
    await this.returned()
    this.#pipes?.throwFailure()
  }

  /** The handler or a source has failed. True when the stream takes care of it; not so before it opened. */
  failed(error: unknown): boolean {
    if (this.#outlet === undefined) return this.#failedBefore(error)
    if (this.#reason !== undefined) {
      if (!follows(this.#reason, error)) this.#exchange.report(error)
      return true
    }
    // Whoever is told may close the stream, and must not make a clean end of it.
    this.#failed = true
    this.#end('error', 'cut', this.#exchange.report(error))
    return true
  }

  /** … before it opened. */
  #failedBefore(error: unknown): boolean {
    if (this.#reason === 'client') {
      if (follows('client', error)) return true
      if (this.#released) {
        this.#exchange.report(error)
        return true
      }
    }
    this.#failed = true
    this.#stopWatching()
    this.#pipes?.stop()
    // Outer middleware may open the stream still, and gets another.
    this.#controller?.abort()
    this.#controller = undefined
    return false
  }

  /** Whatever the response is piped from has failed, in a way that is no disconnect's. False when it is no news. */
  wrapperFailed(error: unknown): boolean {
    return !follows('client', error) && this.failed(error)
  }

  // --- what a hub feeds it with

  /** Opens the stream, and ties a feed to it. False when it has ended. */
  feed(feed: Feed): boolean {
    this.open()
    if (!this.isOpen) return false
    this.#feeds = this.#feeds === undefined ? [feed] : [...this.#feeds, feed]
    return true
  }

  unfeed(feed: Feed): void {
    this.#feeds = this.#feeds?.filter(each => each !== feed)
  }

  /** False when there is no room, and the feed will be told. */
  askRoom(): boolean {
    return this.#outlet?.askRoom() === true
  }

  /** Writes what is no event of the app's. False when there is no room for more, and the feed will be told. */
  writeText(text: string): boolean {
    return this.#outlet?.writeText(text) === true
  }

  /** The same with an event, which counts. */
  sendFrame(frame: Frame): boolean {
    this.eventsSent++
    return this.#outlet?.writeFrame(frame) === true
  }

  // Of a ClocksOwner.

  get begun(): boolean {
    const { res } = this.#exchange
    // A pipelined response has no socket until its turn comes.
    return res.headersSent && ('stream' in res || res.socket !== null)
  }

  get sent(): number {
    const { req, res } = this.#exchange
    // On a connection that it shares, others' bytes are no sign of life while its own wait.
    return 'stream' in res && this.#outlet?.waiting !== 0 ? 0 : sent(req, res)
  }

  quiet(): void {
    const news = this.#feeds?.map(feed => feed.heartbeat() ?? '').join('')
    void this.#outlet?.write(news || encodeComment(this.#exchange.settings.heartbeatText, this.newline))
  }

  stalled(): void {
    // There is a head, and nobody has begun to read the body: another stream answers in its place, which is nobody's here to judge.
    if (this.#outlet?.undecided === true) this.#replaced()
    else this.destroy('stalled')
  }

  expired(): void {
    this.#end('expired', 'end')
  }

  // --- who is there, and how it ends

  #outletChanged(...[what, error]: Parameters<OutletEvents>): void {
    if (what === 'threw') this.failed(error)
    else if (this.#reason !== undefined) return
    else if (what === 'room') for (const feed of this.#feeds ?? []) feed.drained()
    else if (what === 'overflowed') this.#end('slow', 'destroy')
    else if (what === 'ended') this.close()
    else if (error != null) this.failed(error)
    else this.#responseClosed()
  }

  /** The body, or the response, is no more: was it the client, or has somebody else answered? */
  #responseClosed(): void {
    const { req, res } = this.#exchange
    if (res.writableEnded) this.discard('closed')
    else if (gone(req, res)) this.discard('client')
    // Nobody else is going to end a response that has begun.
    else if (res.headersSent || this.#outlet?.isDirect === true) this.#end('closed', 'destroy')
    else this.#replaced()
  }

  /** By another answer, which may take as long as it likes. */
  #replaced(): void {
    this.discard('closed')
    this.#clocks?.over()
  }

  #watch(): void {
    if (this.#watcher !== undefined || this.#returned || this.#failed || this.#reason !== undefined) return
    const { req, res } = this.#exchange
    if (gone(req, res)) return this.discard('client')
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
    this.discard('client')
    // What still waits would wait for ever.
    destroy(this.#exchange.res)
  }

  #over(): void {
    this.#stopWatching()
    this.#responseClosed()
    this.#clocks?.over()
    this.#outlet?.abandon()
    this.#exchange.over(this)
  }

  close(): void {
    this.#end('closed', 'end')
  }

  /** Ends it cleanly, with a last event. */
  shutDown(last: SseEvent): void {
    // A client that waits for a connection would ask on this one at once, and a 503 is final for it.
    closeAfter(this.#exchange.req, this.#exchange.res)
    this.#end('shutdown', 'end', encode(last, this.newline))
  }

  /** Koa answers the request otherwise. */
  discard(reason: CloseReason): void {
    this.#end(reason, 'discard')
  }

  /** Breaks the connection, bytes on their way or not. */
  destroy(reason: CloseReason): void {
    this.#end(reason, 'destroy')
    destroy(this.#exchange.res)
  }

  /** Resolves when the response is over. */
  over(): Promise<void> {
    return new Promise(resolve => this.#exchange.res.once('close', resolve))
  }

  #end(reason: CloseReason, ending: Ending, last?: string): void {
    if (this.#reason !== undefined || (ending === 'end' && this.#failed && this.#outlet !== undefined)) return
    this.#reason = reason
    this.#clocks?.ended()
    const outlet = this.#outlet
    if (outlet !== undefined) {
      this.#exchange.ended(this)
      if (last !== undefined) outlet.writeText(last)
      if (ending === 'end' || ending === 'cut') outlet.end(ending)
      else outlet.abandon()
      if (ending === 'destroy') destroy(this.#exchange.res)
    } else this.#stopWatching()
    this.#controller?.abort()
    this.#pipes?.stop()
    for (const feed of this.#feeds ?? []) feed.ended()
    this.#closed?.resolve(reason)
  }
}
