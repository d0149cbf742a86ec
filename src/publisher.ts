import { setMaxListeners } from 'node:events'
import type { Broker } from './broker.ts'
import { deferred } from './deferred.ts'
import { SseError } from './errors.ts'
import { checkFields, dataText, encodeAs, isLost, type SseEvent } from './event.ts'
import { Drain, releaseSource, type Source } from './source.ts'
import { nextTurn, thisTurn } from './turn.ts'
import { expected } from './validate.ts'

// A broker in memory answers within the turn: without this, a source that is always ready, or a loop of publishes that are waited for, would
// keep everybody else waiting until its end.
const PUBLISHES_PER_TURN = 16

/** The sending side of a hub: events, and sources of events, on their way to the broker. */
export class Publisher {
  readonly #broker: Broker
  readonly #maxEventBytes: number
  /** From when on the broker takes events. */
  readonly #opens: Promise<unknown>
  readonly #gaveUp = deferred<void>()
  #hasGivenUp = false
  readonly #pipes = new Set<Drain>()
  #open = false
  /** Publishes that wait until then, and must not be overtaken. */
  #early = 0
  /** Publishes under way. */
  #count = 0
  #onIdle: (() => void) | undefined
  #turn = 0
  #inTurn = 0
  #closed = false

  constructor(broker: Broker, maxEventBytes: number, opens: Promise<unknown>) {
    this.#broker = broker
    this.#maxEventBytes = maxEventBytes
    this.#opens = Promise.race([opens, this.#gaveUp.promise])
    this.#opens.then(
      () => (this.#open = true),
      () => {},
    )
  }

  /** Resolves with the id that stands on the wire. Throws what `hub.publish` throws. */
  publish(channel: string | null, event: string | SseEvent): Promise<string> {
    const text = textOf(event)
    const bytes = Buffer.byteLength(encodeAs(text.id, text, '\n'))
    if (bytes > this.#maxEventBytes) {
      throw new SseError('ERR_SSE_EVENT_TOO_LARGE', `The event has ${bytes} bytes on the wire, and maxEventBytes is ${this.#maxEventBytes}`)
    }
    if (this.#closed) return unwatched(Promise.reject(closedError()))
    const handed: Handed = {}
    return (handed.promise = this.#hand(own(channel), text, handed))
  }

  /** Publishes what a source yields. Resolves when it has ended or `signal` was aborted. */
  async pipe(
    channel: string,
    source: Source<never>,
    map: ((item: never) => string | SseEvent) | undefined,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    if (this.#closed || signal?.aborted === true) {
      releaseSource(source)
      if (this.#closed) throw closedError()
      return
    }
    const controller = new AbortController()
    const drain = new Drain(source, map, {
      signal: controller.signal,
      take: event => this.publish(channel, event),
    })
    const stop = (): void => {
      controller.abort()
      drain.stop()
    }
    if (signal !== undefined) {
      // Many may share it, one for the whole app's end perhaps: Node would warn of the eleventh. Not 0: Node 20's getMaxListeners(), and so undici's fetch, throws at that.
      setMaxListeners(Infinity, signal)
      signal.addEventListener('abort', stop, { once: true })
    }
    this.#pipes.add(drain)
    try {
      await drain.run()
    } finally {
      this.#pipes.delete(drain)
      signal?.removeEventListener('abort', stop)
      // Whatever the source hung on its signal is let go.
      controller.abort()
    }
    if (this.#closed) throw closedError()
  }

  /** Takes no more. A promise, if anything is under way: it resolves when that has arrived, or failed. */
  close(): Promise<void> | undefined {
    this.#closed = true
    for (const drain of this.#pipes) drain.stop()
    return this.#count === 0 ? undefined : new Promise(resolve => (this.#onIdle = resolve))
  }

  /** The broker will take no events any more: those that wait for it are refused. */
  giveUp(): void {
    this.#hasGivenUp = true
    this.#gaveUp.resolve()
  }

  async #hand(channel: string | null, event: SseEvent, handed: Handed): Promise<string> {
    this.#count++
    try {
      if (!this.#open || this.#early > 0) {
        this.#early++
        try {
          await this.#opens
        } finally {
          // Not a microtask before this one is handed on, or another would overtake it.
          this.#early--
        }
        if (this.#hasGivenUp) throw closedError()
      }
      const id = await this.#broker.publish(channel, event)
      const later = this.#pace()
      if (later !== undefined) await later
      return event.id ?? id
    } catch (error) {
      if (this.#closed && handed.promise !== undefined) void unwatched(handed.promise)
      throw error
    } finally {
      if (--this.#count === 0) this.#onIdle?.()
    }
  }

  #pace(): Promise<void> | undefined {
    const now = thisTurn()
    if (this.#turn !== now) this.#inTurn = 0
    this.#turn = now
    return ++this.#inTurn > PUBLISHES_PER_TURN ? nextTurn() : undefined
  }
}

/** A publish under way. */
interface Handed {
  promise?: Promise<string>
}

/** The same, if it is a text. A piece of a longer string keeps all of that in memory, in V8, for as long as the event is kept; this one does not. */
const own = <T>(value: T): T => (typeof value === 'string' ? (`:${value}`.slice(1) as T & string) : value)

/** The event as it is now, its data serialised once and for all. */
const textOf = (event: string | SseEvent): SseEvent => {
  if (typeof event === 'string') return { data: own(event) }
  const { comment, id, event: type, data, retry } = checkFields(event)
  // The client would miss events without a word, or never come back.
  if (typeof id === 'string' && isLost(id)) {
    throw new TypeError(expected('id', 'absent, or non-empty, without control characters, and without white space at its ends in a hub', id))
  }
  return {
    ...(comment !== undefined && { comment: own(comment) }),
    ...(id !== undefined && { id: own(id) }),
    ...(type !== undefined && { event: own(type) }),
    // What it is made into is nobody's piece.
    ...(data !== undefined && { data: typeof data === 'string' ? own(data) : dataText(data) }),
    ...(retry !== undefined && { retry }),
  }
}

/** Whoever publishes while the process shuts down, and does not wait for it, must not end it in another way. */
const unwatched = (promise: Promise<string>): Promise<string> => {
  promise.catch(() => {})
  return promise
}

export const closedError = (): SseError => new SseError('ERR_SSE_HUB_CLOSED', 'The hub is closed')
