import { SseError } from './errors.ts'
import { encode, type Newline, type SseEvent } from './event.ts'
import type { Exchange, Feed } from './exchange.ts'
import { closeAfter, destroy, gone, unblock, unwatch, watch, type Watcher } from './http.ts'
import { OpenStream, type Ending, type OpenStreamOwner } from './open-stream.ts'
import { follows, isAbort, Outcome, type CloseReason } from './outcome.ts'
import { Pipes, type PipesOwner } from './pipes.ts'
import { releaseSource, type Source } from './source.ts'

const YES = Promise.resolve(true)
const NO = Promise.resolve(false)

/** One client's stream: when it opens, what it writes, how it ends and why. `EventStream` is what the app sees of it. */
export class StreamCore implements OpenStreamOwner, PipesOwner {
  #exchange: Exchange<StreamCore>
  #opened: OpenStream | undefined
  readonly #outcome = new Outcome()
  /** The handler is done, and did not open. */
  #returned = false
  /** The handler or a source has failed. Opening begins anew. */
  #failed = false
  /** Koa has been let go on. */
  #released = false
  #watcher: Watcher | undefined
  #onOpen: (() => void) | undefined
  #pipes: Pipes | undefined

  constructor(exchange: Exchange<StreamCore>) {
    this.#exchange = exchange
  }

  get exchange(): Exchange<StreamCore> {
    return this.#exchange
  }

  get newline(): Newline {
    return this.#exchange.settings.newline
  }

  /** Undefined before it opened. */
  get opened(): OpenStream | undefined {
    return this.#opened
  }

  get wasOpened(): boolean {
    return this.#opened !== undefined
  }

  get reason(): CloseReason | undefined {
    return this.#outcome.reason
  }

  get signal(): AbortSignal {
    this.#watch()
    return this.#outcome.signal
  }

  get closed(): Promise<CloseReason> {
    this.#watch()
    return this.#outcome.closed
  }

  get connected(): boolean {
    return this.isOpen && !gone(this.#exchange.req, this.#exchange.res)
  }

  /** The handler has failed, and the client is told so. */
  get #isAnswered(): boolean {
    return this.#failed && (this.#exchange.res.headersSent || this.#exchange.answer.body != null)
  }

  get isOpen(): boolean {
    return this.#live !== undefined
  }

  /** From the opening to the end. */
  get #live(): OpenStream | undefined {
    return this.reason === undefined ? this.#opened : undefined
  }

  // --- what the app writes

  send(text: string, isEvent: boolean): Promise<boolean> {
    this.open()
    const live = this.#live
    if (live === undefined) return NO
    if (isEvent) live.eventsSent++
    const room = live.outlet.write(text)
    if (room !== undefined) return room.then(() => this.reason === undefined)
    return this.reason === undefined ? YES : NO
  }

  /** `early`: opens now, and not with the first item. */
  pipe(source: Source<never>, map: ((item: never) => string | SseEvent) | undefined, end: boolean, early: boolean): Promise<void> {
    try {
      if (early || this.#exchange.req.method === 'HEAD') this.open()
      else {
        this.#watch()
        unblock(this.#exchange.req)
      }
      if (this.reason === undefined && !this.#isAnswered) return (this.#pipes ??= new Pipes(this)).add(source, map, end)
    } catch (error) {
      releaseSource(source)
      throw error
    }
    releaseSource(source)
    return Promise.resolve()
  }

  // Of a PipesOwner.

  take(event: string | SseEvent): Promise<void> | undefined {
    const text = encode(event, this.newline)
    this.open()
    if (this.#opened === undefined) this.#pipes?.stop()
    const live = this.#live
    if (live === undefined) return
    live.eventsSent++
    return live.outlet.take(text)
  }

  // --- how it opens

  open(): void {
    if (this.#opened !== undefined || this.reason !== undefined) return
    // A task that a handler left behind cannot know of its failure, and is not worth a second one.
    if (this.#isAnswered) return
    this.#throwIfSent()
    const { req, res } = this.#exchange
    if (gone(req, res)) {
      this.end('client', 'discard')
      this.#letGo()
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
    this.#opened = new OpenStream(exchange, this)
    this.#returned = this.#failed = false
    exchange.enter(this, this.#opened.outlet)
    this.#watch()
    if (exchange.req.method === 'HEAD') this.close()
    else {
      this.#opened.begin(later)
      unblock(exchange.req)
    }
    this.#letGo()
  }

  #letGo(): void {
    this.#released = true
    this.#onOpen?.()
    this.#onOpen = undefined
  }

  /** Opens the stream, and ties a hub's feed to it. False when it has ended. */
  feed(feed: Feed): boolean {
    this.open()
    this.#live?.feed(feed)
    return this.isOpen
  }

  /** Calls back when the stream opens, at once if it is open. */
  onOpen(action: () => void): void {
    if (this.#opened !== undefined) return action()
    const before = this.#onOpen
    this.#onOpen = () => {
      before?.()
      action()
    }
  }

  /** Gives the stream other options. Too late when it is open. */
  use(exchange: Exchange<StreamCore>): void {
    if (this.#opened === undefined) this.#exchange = exchange
  }

  /** Turns the client away: as `whenFull` says, or `politely` in any case. */
  turnAway(politely: boolean): void {
    const { req, res } = this.#exchange
    if (this.reason !== undefined) return
    if (gone(req, res)) this.end('client', 'discard')
    else if (this.#opened === undefined) {
      this.#throwIfSent()
      this.#openNow(this.#exchange.turnAway(politely))
    } else this.end('closed', 'end', encode({ retry: this.#exchange.turnAway(true) }, this.newline))
  }

  // --- what becomes of the handler

  /**
   * The handler has returned. A promise: a pipe waits for its first item; it rejects when that one fails, and nobody has
   * answered otherwise.
   */
  returned(): Promise<void> | undefined {
    if (this.#opened !== undefined) return
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
    if (this.#opened === undefined) return this.#failedBefore(error)
    if (this.reason !== undefined) {
      if (!follows(this.reason, error)) this.#exchange.report(error)
      return true
    }
    // Whoever is told may close the stream, and must not make a clean end of it.
    this.#failed = true
    this.end('error', 'cut', this.#exchange.report(error))
    return true
  }

  /** … before it opened. */
  #failedBefore(error: unknown): boolean {
    if (this.reason === 'client') {
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
    this.#outcome.restart()
    return false
  }

  /** Whatever the response is piped from has failed, in a way that is no disconnect's. False when it is no news. */
  wrapperFailed(error: unknown): boolean {
    // What is aborted before the stream has ended is so by the app, and not in consequence.
    return (!follows('client', error) || (this.isOpen && isAbort(error))) && this.failed(error)
  }

  // --- who is there, and how it ends

  /** Was it the client, or has somebody else answered? */
  responseClosed(): void {
    const { req, res } = this.#exchange
    if (res.writableEnded) this.discard('closed')
    else if (gone(req, res)) this.discard('client')
    // Nobody else is going to end a response that has begun.
    else if (res.headersSent || this.#opened?.outlet.isDirect === true) this.end('closed', 'destroy')
    else if (this.#opened === undefined) this.discard('closed')
    else this.#opened.replaced()
  }

  #watch(): void {
    if (this.#watcher !== undefined || this.#returned || this.#failed || this.reason !== undefined) return
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
    this.responseClosed()
    this.#opened?.over()
    this.#exchange.over(this)
  }

  close(): void {
    this.end('closed', 'end')
  }

  /** Ends it cleanly, with a last event. */
  shutDown(last: SseEvent): void {
    // A client that waits for a connection would ask on this one at once, and a 503 is final for it.
    closeAfter(this.#exchange.req, this.#exchange.res)
    this.end('shutdown', 'end', encode(last, this.newline))
  }

  /** Koa answers the request otherwise. */
  discard(reason: CloseReason): void {
    this.end(reason, 'discard')
  }

  /** Breaks the connection, bytes on their way or not, whether or not the stream has ended. */
  destroy(reason: CloseReason): void {
    this.end(reason, 'destroy')
    destroy(this.#exchange.res)
  }

  /** Resolves when the response is over. */
  over(): Promise<void> {
    return new Promise(resolve => this.#exchange.res.once('close', resolve))
  }

  end(reason: CloseReason, ending: Ending, last?: string): void {
    if (this.reason !== undefined || (ending === 'end' && this.#failed && this.#opened !== undefined)) return
    this.#outcome.reason = reason
    if (this.#opened === undefined) this.#stopWatching()
    else this.#opened.ended(ending, last)
    this.#outcome.tell()
    this.#pipes?.stop()
    this.#opened?.leaveHubs()
  }
}
