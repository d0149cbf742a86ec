import type { Broker, BrokerEntry, BrokerSink } from './broker.ts'
import { Log, type LogLimits } from './log.ts'
import { SseError } from './errors.ts'
import { Slabs } from './frame.ts'
import type { Members } from './members.ts'
import { SharedEvent } from './shared-event.ts'
import type { Home, Subscriber } from './subscription.ts'
import { expected, isObject, yesOrNo } from './validate.ts'

// Parked subscriptions that look again when the log moves, and when a read has succeeded: if a broker is too busy for a crowd, it
// should not be asked by all of it at once, again and again.
const RESUMED = { byMove: 100, byRead: 2, byTime: 1 }
// Where neither happens, on a quiet log.
const LOOK_AGAIN_MS = 1_000

/** Brokers are other people's, and may be in JavaScript. */
const isEntry = (entry: unknown): entry is BrokerEntry => isObject(entry) && 'id' in entry && typeof entry.id === 'string'

/** How a {@link Delivery} is made. */
export interface DeliveryOptions {
  readonly broker: Broker
  readonly history: LogLimits
  readonly positionEvent: string | false
  readonly resetEvent: string
  readonly members: Members
  readonly onLeft: (subscriber: Subscriber) => void
  readonly onError: (error: unknown) => void
}

/** The receiving side of a hub: what its broker tells goes into the log, and from there to those whom it concerns. */
export class Delivery implements BrokerSink, Home {
  readonly #broker: Broker
  readonly #members: Members
  readonly #onLeft: (subscriber: Subscriber) => void
  readonly log: Log<SharedEvent>
  readonly positionEvent: string | false
  readonly resetEvent: string
  /** Events of the broker. */
  published = 0
  /** Events sent to streams. */
  delivered = 0
  readonly resets: Record<string, number> = {}
  /** Of the log's events. */
  readonly #slabs = new Slabs()
  readonly #parked = new Set<Subscriber>()
  #lookAgain: NodeJS.Timeout | undefined
  readonly #backlog: (() => void)[] = []
  #busy = false

  constructor({ broker, history, positionEvent, resetEvent, members, onLeft, onError }: DeliveryOptions) {
    this.#broker = broker
    this.#members = members
    this.#onLeft = onLeft
    this.log = new Log(history)
    this.positionEvent = positionEvent
    this.resetEvent = resetEvent
    this.error = onError
  }

  // Of a BrokerSink. Functions, for brokers that take it apart.

  readonly event = (entry: BrokerEntry): void => this.#inOrder(() => this.#receive(entry))

  readonly position = (id: string): void =>
    this.#inOrder(() => {
      this.log.move(id, performance.now())
      this.#resume(RESUMED.byMove)
    })

  readonly gap = (reason: string, position: string): void =>
    this.#inOrder(() => {
      this.log.reset(position)
      this.#parked.clear()
      for (const subscriber of this.#members.of(null)) subscriber.gap(reason)
    })

  readonly error: (error: unknown) => void

  // Of a Home.

  // Async, for brokers that throw.
  async read(id: string, limit: number): Promise<BrokerEntry[] | undefined> {
    const page: unknown = await this.#broker.read(id, limit)
    this.#resume(RESUMED.byRead)
    if (page === undefined || (Array.isArray(page) && page.every(isEntry))) return page
    // It proves nothing.
    this.error(new TypeError(expected('page', 'an array of entries, each with an id, or undefined', page)))
  }

  whyNot(id: string): string {
    try {
      return yesOrNo('trimmed', this.#broker.trimmed?.(id)) ? 'trimmed' : 'unknown'
    } catch (error) {
      this.error(error)
      return 'unknown'
    }
  }

  wasSent(): void {
    this.delivered++
  }

  wasReset(reason: string): void {
    this.resets[reason] = (this.resets[reason] ?? 0) + 1
  }

  park(subscriber: Subscriber, error: unknown): void {
    this.#parked.add(subscriber)
    const code = error instanceof SseError ? error.code : undefined
    // That the broker tells the sink, once; and it has others' reads under way.
    if (code === 'ERR_SSE_BROKER_BUSY') return
    this.error(error)
    // A closed one stays closed.
    if (code !== 'ERR_SSE_BROKER_CLOSED') this.#waitALittle()
  }

  left(subscriber: Subscriber): void {
    this.#parked.delete(subscriber)
    if (this.#members.remove(subscriber)) this.#onLeft(subscriber)
  }

  /** What `action` publishes is delivered after it. */
  asOne(action: () => void): void {
    if (this.#busy) action()
    else this.#inOrder(action)
  }

  /** A filter or a listener may publish in the middle of a delivery; what comes of it comes after. */
  #inOrder(action: () => void): void {
    if (this.#busy) {
      this.#backlog.push(action)
      return
    }
    this.#busy = true
    // By index: to shift a long array is to copy it.
    let next = 0
    try {
      action()
      while (next < this.#backlog.length) this.#backlog[next++]!()
    } finally {
      // What a broker's bad call has kept from its turn comes with the next.
      this.#backlog.splice(0, next)
      this.#busy = false
    }
  }

  #receive(entry: BrokerEntry): void {
    if (!isEntry(entry)) return this.error(new TypeError(expected('entry', 'an entry with an id', entry)))
    let event: SharedEvent
    try {
      event = new SharedEvent(entry, this.#slabs)
    } catch (error) {
      // Only a broker that somebody else writes to has such.
      this.log.move(entry.id, performance.now())
      return this.error(error)
    }
    this.published++
    const number = this.log.append(entry.id, event, event.bytes, performance.now(), entry.event.id)
    for (const subscriber of this.#members.of(entry.channel)) subscriber.deliver(event, number)
    event.settle()
    this.#resume(RESUMED.byMove)
  }

  #waitALittle(): void {
    if (this.#lookAgain !== undefined) return
    this.#lookAgain = setTimeout(() => {
      this.#lookAgain = undefined
      this.#resume(RESUMED.byTime)
      if (this.#parked.size > 0) this.#waitALittle()
    }, LOOK_AGAIN_MS).unref()
  }

  #resume(count: number): void {
    let left = count
    for (const subscriber of this.#parked) {
      if (left-- === 0) return
      this.#parked.delete(subscriber)
      subscriber.resume()
    }
  }
}
