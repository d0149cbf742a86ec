import { Clocks, type ClocksOwner } from './clocks.ts'
import { encode, encodeComment } from './event.ts'
import type { Exchange, Feed } from './exchange.ts'
import type { Frame } from './frame.ts'
import { destroy, sent } from './http.ts'
import type { CloseReason } from './outcome.ts'
import { Outlet, type OutletEvents } from './outlet.ts'

/** How the response ends with its stream: as a whole, so that it looks unfinished, at once, or by somebody else. */
export type Ending = 'end' | 'cut' | 'destroy' | 'discard'

/** Who is told what becomes of an open stream. */
export interface OpenStreamOwner {
  /** Why it has ended, if it has. */
  readonly reason: CloseReason | undefined
  /** `last`: what is written in any case before the response ends. */
  end(reason: CloseReason, ending: Ending, last?: string): void
  /** Breaks the connection, whether or not the stream has ended. */
  destroy(reason: CloseReason): void
  failed(error: unknown): void
  /** The body is no more, or the response. */
  responseClosed(): void
}

/** A stream from its head to the end of its response: what it writes for the app, for hubs, and by the clock. */
export class OpenStream implements ClocksOwner {
  readonly outlet: Outlet
  /** Events so far. */
  eventsSent = 0
  readonly #exchange: Exchange<unknown>
  readonly #owner: OpenStreamOwner
  #clocks: Clocks | undefined
  #feeds: Feed[] | undefined

  constructor(exchange: Exchange<unknown>, owner: OpenStreamOwner) {
    const { res, settings } = exchange
    this.#exchange = exchange
    this.#owner = owner
    this.outlet = new Outlet(res, (what, error) => this.#outletChanged(what, error), settings.highWaterMark, settings.maxBuffer)
  }

  /** Writes the first bytes: the head leaves with them, and not before. `later`: the client is told to come back after so long, and nothing else. */
  begin(later: number | undefined): void {
    const { settings } = this.#exchange
    const { retry, newline } = settings
    this.#clocks = new Clocks(this.outlet, settings, this)
    if (later !== undefined) this.#owner.end('closed', 'end', encode({ retry: later }, newline))
    else void this.outlet.write(retry === undefined ? `:${newline}${newline}` : encode({ retry }, newline))
  }

  // --- what hubs feed it with

  feed(feed: Feed): void {
    this.#feeds = this.#feeds === undefined ? [feed] : [...this.#feeds, feed]
  }

  unfeed(feed: Feed): void {
    this.#feeds = this.#feeds?.filter(each => each !== feed)
  }

  /** False when there is no room, and the feed will be told. */
  askRoom(): boolean {
    return this.outlet.askRoom()
  }

  /** Writes what is no event of the app's. False when there is no room for more, and the feed will be told. */
  writeText(text: string): boolean {
    return this.outlet.writeText(text)
  }

  /** The same with an event, which counts. */
  sendFrame(frame: Frame): boolean {
    this.eventsSent++
    return this.outlet.writeFrame(frame)
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
    return 'stream' in res && this.outlet.waiting !== 0 ? 0 : sent(req, res)
  }

  quiet(): void {
    const { heartbeatText, newline } = this.#exchange.settings
    const news = this.#feeds?.map(feed => feed.heartbeat()).join('')
    void this.outlet.write(news || encodeComment(heartbeatText, newline))
  }

  stalled(): void {
    // There is a head, and nobody has begun to read the body: another stream answers in its place, which is nobody's here to judge.
    if (this.outlet.undecided) this.replaced()
    else this.#owner.destroy('stalled')
  }

  expired(): void {
    this.#owner.end('expired', 'end')
  }

  // --- how it ends

  #outletChanged(...[what, error]: Parameters<OutletEvents>): void {
    if (what === 'threw') this.#owner.failed(error)
    else if (this.#owner.reason !== undefined) return
    else if (what === 'room') for (const feed of this.#feeds ?? []) feed.drained()
    else if (what === 'overflowed') this.#owner.end('slow', 'destroy')
    else if (what === 'ended') this.#owner.end('closed', 'end')
    else if (error != null) this.#owner.failed(error)
    else this.#owner.responseClosed()
  }

  /** By another answer, which may take as long as it likes. */
  replaced(): void {
    this.#owner.end('closed', 'discard')
    this.#clocks?.over()
  }

  /** It has ended, if not yet its response. */
  ended(ending: Ending, last: string | undefined): void {
    this.#clocks?.ended()
    this.#exchange.ended()
    if (last !== undefined) this.outlet.writeText(last)
    if (ending === 'end' || ending === 'cut') this.outlet.end(ending)
    else this.outlet.abandon()
    if (ending === 'destroy') destroy(this.#exchange.res)
  }

  leaveHubs(): void {
    for (const feed of this.#feeds ?? []) feed.ended()
  }

  /** The response is over. */
  over(): void {
    this.#clocks?.over()
    this.outlet.abandon()
  }
}
