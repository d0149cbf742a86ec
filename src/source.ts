import type { ReadableStream } from 'node:stream/web'
import { TextDecoder } from 'node:util'
import { expected, ignoreRejection, isObject, isThenable } from './validate.ts'
import { type SseEvent } from './event.ts'

/** What a {@link Source} function may return: anything that holds items, now or over time. */
// An item's type comes from the async iterator: inferred from TypeScript's DOM stream, the end of its reader counts as an item, undefined.
export type Items<T> = Iterable<T> | AsyncIterable<T> | ReadableStream<NoInfer<T>>

/**
 * Where events come from: an iterable, an async iterable (a generator, a Node `Readable`), a web `ReadableStream`, or a function
 * that gets an `AbortSignal` and returns one of these or a promise of one.
 */
export type Source<T = string | SseEvent | Uint8Array> = Items<T> | ((signal: AbortSignal) => Items<T> | Promise<Items<T>>)

/** How `ctx.sse.pipe` takes a source. */
export interface PipeOptions<T> {
  /** `true`: the stream ends with the source. `false`: it stays open, for another source or `send`. Default `true`. */
  end?: boolean | undefined
  /** Makes an event of an item. Without it an item is a string, an `SseEvent`, or bytes of UTF-8 text. */
  map?: ((item: T) => string | SseEvent) | undefined
  /**
   * `'now'`: the stream opens at once. `'first-event'`: it opens with the source's first item, so that a source that fails
   * before it is an ordinary HTTP error. Default `'now'`.
   */
  head?: 'now' | 'first-event' | undefined
}

/** {@link PipeOptions} with a `map`, for a source of anything. */
export interface MappedPipeOptions<T> extends PipeOptions<T> {
  map: (item: T) => string | SseEvent
}

interface Reader {
  next(): IteratorResult<unknown> | PromiseLike<IteratorResult<unknown>>
  /**
   * Gives the source back without waiting for it: a `next()` may be pending for ever. `hasFailed`: it was `next()` that threw.
   * False when it did not work, and never throws.
   */
  release(hasFailed: boolean): boolean
}

const ignore = (): void => {}

/** False when it threw at once. */
const attempt = (action: () => unknown): boolean => {
  try {
    // A source that is told to stop often fails of that; it is nobody's news.
    Promise.resolve(action()).catch(ignore)
    return true
  } catch {
    return false
  }
}

const KINDS = 'an iterable, an async iterable, a Readable, a ReadableStream, or a function that returns one'

const isIterable = (value: object, method: symbol): boolean => typeof Reflect.get(value, method) === 'function'

interface NodeReadable extends AsyncIterable<unknown> {
  destroy(): void
  on(event: 'error', listener: () => void): void
}

const isNodeReadable = (value: object): value is NodeReadable =>
  'pipe' in value && 'destroy' in value && typeof value.destroy === 'function' && isIterable(value, Symbol.asyncIterator)

const isWebStream = (value: object): value is ReadableStream => 'getReader' in value && typeof value.getReader === 'function'

const isItems = (value: unknown): value is Items<unknown> =>
  // A string and a Uint8Array are iterable too, of characters and of numbers: a slip, never meant.
  isObject(value) &&
  !ArrayBuffer.isView(value) &&
  (isWebStream(value) || isIterable(value, Symbol.asyncIterator) || isIterable(value, Symbol.iterator))

/** Refuses what is no {@link Source}, with the way out where there is one. */
export function checkSource(source: unknown): asserts source is Source<unknown> {
  if (typeof source === 'function') return
  if (source instanceof Promise) throw new TypeError(`${expected('source', KINDS, source)}: await it first, or pass a function that returns it`)
  if (!isItems(source)) throw new TypeError(expected('source', KINDS, source))
  if (isWebStream(source) && source.locked) throw new TypeError('Expected `source` to be a ReadableStream that nobody else reads, got a locked one')
}

const toReader = (items: unknown): Reader => {
  if (!isItems(items)) throw new TypeError(expected('source', KINDS, items))
  if (isWebStream(items)) {
    // Its own async iterator cancels only when the pending read is over.
    const reader = items.getReader()
    return { next: () => reader.read(), release: () => attempt(() => reader.cancel()) }
  }
  if (isNodeReadable(items)) {
    const iterator = items[Symbol.asyncIterator]()
    const release = (): boolean => {
      attempt(() => items.on('error', ignore))
      attempt(() => items.destroy())
      return attempt(() => iterator.return?.())
    }
    return { next: () => iterator.next(), release }
  }
  const iterator = Symbol.asyncIterator in items ? items[Symbol.asyncIterator]() : items[Symbol.iterator]()
  // One that has thrown is over, and is not to be returned.
  return { next: () => iterator.next(), release: hasFailed => hasFailed || attempt(() => iterator.return?.()) }
}

/** Gives back a source that is not going to be read. A function has made none yet. */
export const releaseSource = (source: Source<never>): void => {
  if (typeof source !== 'function') attempt(() => void toReader(source).release(false))
}

/** Where {@link Drain} takes a source. */
export interface Sink {
  /** Read for functions only. */
  readonly signal: AbortSignal
  /** Takes one event. A promise means: no more until it has settled. What it throws is the source's failure. */
  take(event: string | SseEvent): Promise<unknown> | undefined
}

const NOBODY: Sink = { signal: AbortSignal.abort(), take: () => undefined }

/** Takes a source's items to a {@link Sink}, one after the other, until it ends, fails or is stopped. */
export class Drain {
  readonly #source: Source<never>
  #sink: Sink
  #map: ((item: never) => string | SseEvent) | undefined
  #decoder: TextDecoder | undefined
  #reader: Reader | undefined
  #stopped = false
  #settle: (() => void) | undefined

  constructor(source: Source<never>, map: ((item: never) => string | SseEvent) | undefined, sink: Sink) {
    this.#source = source
    this.#map = map
    this.#sink = sink
  }

  get isStopped(): boolean {
    return this.#stopped
  }

  /** Resolves when the source has ended or {@link stop} was called; rejects when the source failed before that. */
  run(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#settle = resolve
      this.#read().then(resolve, reject)
    })
  }

  /** Gives the source back at once, even while it owes an item, and settles {@link run}. */
  stop(): void {
    this.#stopped = true
    // An item that is owed for ever keeps this in memory, and only this.
    this.#sink = NOBODY
    this.#map = undefined
    this.#release(false)
    this.#settle?.()
  }

  async #read(): Promise<void> {
    const source = this.#source
    const made = typeof source === 'function' ? source(this.#sink.signal) : source
    // What is no promise is read in this very turn: a Readable may be about to fail.
    this.#reader = toReader(isThenable(made) ? await made : made)
    try {
      await this.#readAll(this.#reader)
    } finally {
      this.#release(false)
    }
  }

  async #readAll(reader: Reader): Promise<void> {
    while (!this.#stopped) {
      let step
      try {
        step = reader.next()
        if (isThenable(step)) step = await step
      } catch (error) {
        this.#release(true)
        throw error
      }
      if (!isObject(step)) throw new TypeError(expected('source', 'an iterator whose results are objects', step))
      const { done, value } = step
      // There is nothing to give back any more.
      if (done) this.#reader = undefined
      if (this.#stopped) return
      const room = done ? this.#takeText(this.#decoder?.decode()) : this.#takeItem(value)
      if (room !== undefined) await room
      if (done) return
    }
  }

  /** Once is enough; unless it did not work: a generator that ends its own stream is running. */
  #release(hasFailed: boolean): void {
    if (this.#reader?.release(hasFailed) === true) this.#reader = undefined
  }

  #takeItem(item: unknown): Promise<unknown> | undefined {
    if (this.#map !== undefined) return this.#sink.take(this.#mapped(item))
    if (!(item instanceof Uint8Array)) return this.#sink.take(item as string | SseEvent)
    this.#decoder ??= new TextDecoder('utf-8', { ignoreBOM: true })
    return this.#takeText(this.#decoder.decode(item, { stream: true }))
  }

  /** Takes decoded bytes: none as long as they end in the middle of the first character. */
  #takeText(text: string | undefined): Promise<unknown> | undefined {
    return text ? this.#sink.take(text) : undefined
  }

  #mapped(item: unknown): string | SseEvent {
    try {
      const event: unknown = this.#map!(item as never)
      // An async one is refused as what it is, no event; how it fails is no second news.
      ignoreRejection(event)
      return event as string | SseEvent
    } catch (cause) {
      if (cause instanceof TypeError) throw cause
      throw new TypeError(`\`map\` threw: ${cause instanceof Error ? cause.message : String(cause)}`, { cause })
    }
  }
}
