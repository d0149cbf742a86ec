import { coreOf, type EventStream } from './event-stream.ts'
import type { Subscriber } from './subscription.ts'

/** A hub's subscribers, by stream and by channel. */
export class Members {
  readonly #byStream = new Map<EventStream, Subscriber>()
  readonly #byChannel = new Map<string, Set<Subscriber>>()

  /** Streams that go on without a subscription that they had, and whether that had sent all it was to. */
  readonly #before = new WeakMap<EventStream, 'live' | 'behind'>()

  get size(): number {
    return this.#byStream.size
  }

  get channels(): number {
    return this.#byChannel.size
  }

  /** Those of a channel; `null`: all. */
  of(channel: string | null): Iterable<Subscriber> {
    return channel === null ? this.#byStream.values() : (this.#byChannel.get(channel) ?? [])
  }

  count(channel: string): number {
    return this.#byChannel.get(channel)?.size ?? 0
  }

  channelNames(): IterableIterator<string> {
    return this.#byChannel.keys()
  }

  streams(): IterableIterator<EventStream> {
    return this.#byStream.keys()
  }

  has(stream: EventStream): boolean {
    return this.#byStream.has(stream)
  }

  /** What an open stream's last subscription left behind, if it had one that began. */
  before(stream: EventStream): 'live' | 'behind' | undefined {
    return this.#before.get(stream)
  }

  add(subscriber: Subscriber): void {
    this.#byStream.set(subscriber.stream, subscriber)
    for (const channel of subscriber.channels) {
      const members = this.#byChannel.get(channel)
      if (members === undefined) this.#byChannel.set(channel, new Set([subscriber]))
      else members.add(subscriber)
    }
  }

  /** False when it was none. */
  remove(subscriber: Subscriber): boolean {
    const { stream, state } = subscriber
    if (this.#byStream.get(stream) !== subscriber) return false
    this.#byStream.delete(stream)
    if (state !== 'new' && coreOf(stream).isOpen) this.#before.set(stream, state)
    for (const channel of subscriber.channels) {
      const members = this.#byChannel.get(channel)
      members?.delete(subscriber)
      if (members?.size === 0) this.#byChannel.delete(channel)
    }
    return true
  }
}
