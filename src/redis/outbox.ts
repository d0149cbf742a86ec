import { within } from '../deferred.ts'
import { formatCursor, type Cursor } from './cursor.ts'
import type { Message } from './message.ts'

/** Messages on their way to the log, first in, first out, until each is settled. */
export class Outbox implements Iterable<Message> {
  /** Unsettled ones, in order, among settled ones that nobody has cleared away yet. */
  #queue: Message[] = []
  /** The first in the queue that is not settled. */
  #head = 0
  readonly #byCount = new Map<number, Message>()
  /** The first in the queue that the current connection has not been given. */
  #unsent = 0
  #pending = 0
  #onIdle: (() => void) | undefined

  /** Publishes among them. */
  get pending(): number {
    return this.#pending
  }

  get isEmpty(): boolean {
    return this.#byCount.size === 0
  }

  /** Those that are not settled, in order. */
  *[Symbol.iterator](): Iterator<Message> {
    // Of the queue as it is now: it is another when it has been cleared.
    const queue = this.#queue
    for (let i = this.#head; i < queue.length; i++) if (!queue[i]!.settled) yield queue[i]!
  }

  find(count: number): Message | undefined {
    return this.#byCount.get(count)
  }

  add(message: Message): void {
    this.#queue.push(message)
    this.#byCount.set(message.id.count, message)
    if (message.counted) this.#pending++
  }

  /** A new connection is given everything anew. */
  rewind(): void {
    this.#unsent = this.#head
  }

  /** The next to be sent. */
  next(): Message | undefined {
    while (this.#unsent < this.#queue.length) {
      const message = this.#queue[this.#unsent++]!
      if (!message.settled) return message
    }
    return undefined
  }

  resolve(message: Message, cursor: Cursor): void {
    if (this.#settle(message)) message.resolve(formatCursor(cursor))
  }

  reject(message: Message, error: Error): void {
    if (this.#settle(message)) message.reject(error)
  }

  rejectAll(error: Error): void {
    for (const message of this) this.reject(message, error)
  }

  /** Resolves when no publish is left, or after so many milliseconds. */
  async idle(ms: number): Promise<void> {
    if (this.#pending === 0) return
    await within(ms, new Promise<void>(resolve => (this.#onIdle = resolve)))
  }

  #settle(message: Message): boolean {
    if (message.settled) return false
    message.settled = true
    message.fields = []
    this.#byCount.delete(message.id.count)
    this.#clear()
    if (message.counted && --this.#pending === 0) this.#onIdle?.()
    return true
  }

  /** Clears settled messages away, in steps large enough to cost nothing. Whether or not anything is sent: Redis may be away for hours. */
  #clear(): void {
    while (this.#head < this.#queue.length && this.#queue[this.#head]!.settled) this.#head++
    if (this.#head < this.#queue.length && (this.#head < 1_024 || this.#head * 2 < this.#queue.length)) return
    this.#queue = this.#queue.slice(this.#head)
    this.#unsent = Math.max(0, this.#unsent - this.#head)
    this.#head = 0
  }
}
