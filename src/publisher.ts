import type { Broker } from './broker.ts'
import { SseError } from './errors.ts'
import { dataText, encode, type SseEvent } from './event.ts'
import { Drain, releaseSource, type Source } from './source.ts'
import { expected, isObject } from './validate.ts'

/** The sending side of a hub: events, and sources of events, on their way to the broker. */
export class Publisher {
  readonly #broker: Broker
  readonly #maxEventBytes: number
  /** From when on the broker takes events. */
  readonly #opens: Promise<unknown>
  readonly #pipes = new Set<Drain>()
  #open = false
  /** Publishes that wait until then, and must not be overtaken. */
  #early = 0
  /** Publishes under way. */
  #count = 0
  #onIdle: (() => void) | undefined
  #closed = false

  constructor(broker: Broker, maxEventBytes: number, opens: Promise<unknown>) {
    this.#broker = broker
    this.#maxEventBytes = maxEventBytes
    this.#opens = opens
    opens.then(
      () => (this.#open = true),
      () => {},
    )
  }

  /** Resolves with the id that stands on the wire. Throws what `hub.publish` throws. */
  publish(channel: string | null, event: string | SseEvent): Promise<string> {
    const text = textOf(event)
    const bytes = Buffer.byteLength(encode(text))
    if (bytes > this.#maxEventBytes) {
      throw new SseError('ERR_SSE_EVENT_TOO_LARGE', `The event has ${bytes} bytes on the wire, and maxEventBytes is ${this.#maxEventBytes}`)
    }
    return this.#closed ? refused() : this.#hand(channel, text)
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
    signal?.addEventListener('abort', stop, { once: true })
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

  async #hand(channel: string | null, event: SseEvent): Promise<string> {
    this.#count++
    try {
      if (!this.#open || this.#early > 0) {
        this.#early++
        await this.#opens.finally(() => this.#early--)
      }
      const id = await this.#broker.publish(channel, event)
      return event.id ?? id
    } finally {
      if (--this.#count === 0) this.#onIdle?.()
    }
  }
}

/** The event with its data serialised, once and for all. */
const textOf = (event: string | SseEvent): SseEvent => {
  if (typeof event === 'string') return { data: event }
  if (!isObject(event)) throw new TypeError(expected('event', 'a string or an object', event))
  // It would clear the client's memory, and its next connect would miss events without a word.
  if (event.id === '') throw new TypeError(expected('id', 'absent or non-empty in a hub', event.id))
  return event.data === undefined ? event : { ...event, data: dataText(event.data) }
}

const refused = (): Promise<string> => {
  const rejection = Promise.reject<string>(closedError())
  // Whoever publishes while the process shuts down, and does not wait for it, must not end it in another way.
  rejection.catch(() => {})
  return rejection
}

export const closedError = (): SseError => new SseError('ERR_SSE_HUB_CLOSED', 'The hub is closed')
