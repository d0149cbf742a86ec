import type { PassThrough } from 'node:stream'
import { SseError } from './errors.ts'
import { encode, encodeComment, type SseEvent } from './event.ts'
import type { Exchange } from './exchange.ts'
import { lastEventId } from './last-event-id.ts'
import type { CloseReason } from './outcome.ts'
import { checkSource, type MappedPipeOptions, type PipeOptions, type Source } from './source.ts'
import { StreamCore } from './stream-core.ts'
import { checkFunction, checkKeys, expected, isObject, oneOf } from './validate.ts'

const PIPE_OPTIONS = ['end', 'map', 'head']

/** What the middleware and the hub deal with. Given away once by the class, and not exported from the package. */
export let coreOf: (stream: EventStream) => StreamCore

/**
 * One client's open response: `ctx.sse`.
 *
 * It opens at the first `send`, `comment`, `pipe`, `open` or subscription to a hub. Until then the handler is an ordinary Koa handler. Once open it stays
 * so, whether or not the handler returns, until `close()`, the end of a piped source, or the client.
 *
 * Made by `sse()` only. For methods of your own, give `sse()` a subclass as its `Stream`.
 */
export class EventStream {
  readonly #core: StreamCore

  static {
    coreOf = stream => stream.#core
  }

  /** @internal */
  constructor(exchange: Exchange<StreamCore>) {
    // In JavaScript nobody tells a subclass that its `super()` lacks something.
    if (!isObject(exchange) || !('settings' in exchange))
      throw new TypeError('An EventStream is made by sse() only: the constructor of a subclass hands on what it gets, super(...args)')
    this.#core = new StreamCore(exchange)
  }

  /**
   * Sends one event; a string is its data. Opens the stream.
   *
   * Without `await`, up to `maxBuffer` bytes may wait; past that the stream ends, reason `slow`.
   *
   * @returns true when it was written and there is room for more, which takes as long as the client takes to read; false when the stream had ended.
   * @throws TypeError at once for a wrong event (see {@link encode}); nothing is written, and the stream is unharmed. Where it opens the
   * stream, what {@link open} throws.
   */
  send(event: string | SseEvent): Promise<boolean> {
    return this.#core.send(encode(event, this.#core.newline), true)
  }

  /** Sends a line, or several, that clients ignore. Otherwise as {@link send}. */
  comment(text: string): Promise<boolean> {
    return this.#core.send(encodeComment(text, this.#core.newline), false)
  }

  /**
   * Sends what `source` yields, an event each, as fast as the client reads and no faster, and ends the stream with it.
   *
   * When the stream ends first, the source is released at once, even while it owes an item: the signal is aborted, an iterator's
   * `return()` called, a Readable destroyed, a ReadableStream cancelled. An ended stream releases it unread: a generator that has not begun runs no
   * `finally`, so give what it has started already the signal.
   *
   * @returns a promise that resolves when the source has ended or was released. It rejects with the failure of the source, or a
   * `TypeError` for an item that is no event; then the stream ends too, reason `error`, whether or not anybody looks at the promise.
   * @throws TypeError at once for what is no source, or wrong options; and what {@link open} throws, which with `head: 'first-event'` is a rejection
   * at the first item, unless the middleware was closed before.
   */
  pipe(source: Source, options?: PipeOptions<never> & { map?: undefined }): Promise<void>
  pipe<T>(source: Source<T>, options: MappedPipeOptions<T>): Promise<void>
  pipe(source: Source<never>, options: PipeOptions<never> = {}): Promise<void> {
    checkSource(source)
    checkKeys('options', options, PIPE_OPTIONS)
    const { end = true, map, head = 'now' } = options
    if (typeof end !== 'boolean') throw new TypeError(expected('end', 'a boolean', end))
    if (map !== undefined) checkFunction('map', map)
    const early = oneOf('head', head, ['now', 'first-event']) === 'now'
    return this.#core.pipe(source, map, end, early)
  }

  /**
   * Opens the stream now: head and first byte go out. Does nothing when it is open, when it has ended, or when the client has left.
   *
   * @throws what `ctx.throw(503)` throws when `maxStreams` are open, or the middleware was closed; {@link SseError}
   * `ERR_SSE_NOT_OPEN` when the handler returned without opening, and Koa has answered.
   */
  open(): this {
    this.#core.open()
    return this
  }

  /** Ends the stream cleanly, after all that was sent. Safe to repeat. Before the stream opened, it never will, and the response is the handler's own. */
  close(): void {
    this.#core.close()
  }

  /** Closes the stream at the end of a block (`await using`). */
  async [Symbol.asyncDispose](): Promise<void> {
    this.close()
    await this.closed
  }

  /** True while the stream is open and the client is there; false at once when it leaves. */
  get connected(): boolean {
    return this.#core.connected
  }

  /** Aborted when the stream ends, whoever ended it. */
  get signal(): AbortSignal {
    return this.#core.signal
  }

  /** Resolves with the reason when the stream ends; never rejects. */
  get closed(): Promise<CloseReason> {
    return this.#core.closed
  }

  /**
   * The id of the last event that a returning client has seen: the `Last-Event-ID` header, decoded as UTF-8 (as latin1 where it is
   * not), else the query's `lastEventId` or `last_event_id`. Whatever it is, the client chose it.
   *
   * @see https://html.spec.whatwg.org/multipage/server-sent-events.html#the-last-event-id-header
   */
  get lastEventId(): string | undefined {
    return lastEventId(this.#core.exchange.req)
  }

  /** The stream that is `ctx.body`. @throws {@link SseError} `ERR_SSE_NOT_OPEN` before the stream opened. */
  get body(): PassThrough {
    const { opened } = this.#core
    if (opened === undefined) throw new SseError('ERR_SSE_NOT_OPEN', 'The stream is not open yet: call ctx.sse.open() first')
    return opened.outlet.body
  }

  /** Bytes of the body so far, first bytes and heartbeats included, those that wait too. */
  get bytesWritten(): number {
    return this.#core.opened?.outlet.bytesWritten ?? 0
  }

  /** Events so far, sent, piped or a hub's; comments and notices do not count. */
  get eventsSent(): number {
    return this.#core.opened?.eventsSent ?? 0
  }
}
