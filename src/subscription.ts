import type { BrokerEntry } from './broker.ts'
import type { Newline } from './event.ts'
import { coreOf, type EventStream } from './event-stream.ts'
import type { Feed } from './exchange.ts'
import type { Log } from './log.ts'
import { notice, SharedEvent, type HubEvent } from './shared-event.ts'
import type { StreamCore } from './stream-core.ts'
import { yesOrNo } from './validate.ts'

/** A stream's place in a hub. */
export interface Subscription {
  readonly stream: EventStream
  readonly channels: ReadonlySet<string>
  /** Ends the subscription; the stream stays open. Safe to repeat. */
  close(): void
}

/** How {@link Subscription | a subscription} begins, and what it lets through. */
export interface SubscribeOptions {
  /**
   * Decides, for live and replayed events alike, what this stream gets. One that throws, or returns a promise, drops the event, and the hub emits
   * 'error'. A live event's is asked where that is published: what it needs of the reader's request it has to keep.
   */
  filter?: ((event: HubEvent) => boolean) | undefined
  /** `false`: a Last-Event-ID is ignored. Default `true`. */
  replay?: boolean | undefined
  /** Where a client without a Last-Event-ID begins. `'earliest'` first sends what the window still holds. Default `'now'`. */
  from?: 'now' | 'earliest' | undefined
}

/** {@link SubscribeOptions}, checked. */
export interface Begin {
  readonly filter: SubscribeOptions['filter']
  readonly replay: boolean
  readonly from: 'now' | 'earliest'
}

/** What a subscription needs of its hub. */
export interface Home {
  readonly log: Log<SharedEvent>
  readonly positionEvent: string | false
  readonly resetEvent: string
  /** The next page of what the broker has after `id`, at most `limit` events; undefined when it cannot prove it. */
  read(id: string, limit: number): Promise<BrokerEntry[] | undefined>
  /** Why an id that cannot be resumed is not. */
  whyNot(id: string): string
  wasSent(): void
  wasReset(reason: string): void
  /** Calls `resume` on the subscription, whose read failed, when the log has moved, others' reads have succeeded, or after a while. */
  park(subscription: Subscriber, error: unknown): void
  left(subscription: Subscriber): void
  error(error: unknown): void
}

// A client that has missed more than this reads the state again sooner than the history.
const MAX_REPLAY = 5_000
// Events to ask the broker for.
const PAGE = { first: 16, most: 100 }

/**
 * A cursor over the hub's log, and the channels that it stops at.
 *
 * Either it is *live*, at the log's end; or *behind*, at a number, since its stream was full; or it is *ahead* or out of the
 * window, at an id that only the broker knows, which it follows until the window has it.
 */
export class Subscriber implements Subscription, Feed {
  readonly stream: EventStream
  readonly #core: StreamCore
  readonly #home: Home
  readonly #filter: ((event: HubEvent) => boolean) | undefined
  readonly #newline: Newline
  /** The number of the last event that was dealt with. Undefined: live. */
  #cursor: number | undefined = -1
  /** The number that the client was last told of. */
  #told = -1
  /** Why it is to be reset as soon as there is room. */
  #resetFor: string | undefined
  readonly channels: ReadonlySet<string>
  /** In place of a number. */
  #id: string | undefined
  readonly #begin: Begin
  /** Nothing is sent before {@link join}. */
  #joined = false
  #closed = false
  /** What a read of the broker's holds of this: a client that leaves meanwhile is not held. */
  #reading: { subscriber: Subscriber | undefined } | undefined
  #replayed = 0
  /** As many events as the stream is expected to have room for: what is left of a page has to be read again. */
  #page = PAGE.first

  constructor(stream: EventStream, channels: ReadonlySet<string>, begin: Begin, home: Home) {
    this.stream = stream
    this.channels = channels
    this.#begin = begin
    this.#filter = begin.filter
    this.#home = home
    this.#core = coreOf(stream)
    this.#newline = this.#core.newline
  }

  /** What it leaves behind when it is closed now: nothing yet; or all it was to get, or not all of that. */
  get state(): 'new' | 'live' | 'behind' {
    if (!this.#joined) return 'new'
    return this.#cursor === undefined && this.#resetFor === undefined ? 'live' : 'behind'
  }

  /** Finds its place in the log, which is known by now. */
  join(): void {
    if (this.#closed) return
    this.#joined = true
    const { replay, from } = this.#begin
    this.#home.log.trim(performance.now())
    if (this.#resetFor !== undefined) return this.#reset(this.#resetFor)
    const { log } = this.#home
    const id = replay ? this.stream.lastEventId : undefined
    if (id !== undefined) {
      this.#id = id
      this.#follow()
      return
    }
    const earliest = from === 'earliest'
    this.#cursor = earliest ? log.floor : log.newest
    const position = earliest ? log.floorId : log.position
    if (position !== undefined) this.#tell(this.#home.positionEvent, position, '')
    this.#catchUp()
  }

  /** A new event of one of its channels. */
  deliver(event: SharedEvent, number: number): void {
    // Behind, it comes when the cursor gets there. One that joined in the middle of this very delivery has it behind it.
    if (this.#cursor !== undefined || this.#resetFor !== undefined || number <= this.#told) return
    if (!this.#send(event, number)) this.#cursor = number
  }

  /** A parked subscription looks again. */
  resume(): void {
    if (!this.#closed) this.#follow()
  }

  /** Continuity was lost. */
  gap(reason: string): void {
    this.#resetFor = reason
    if (this.#joined && this.#core.opened?.askRoom() === true) this.#reset(reason)
  }

  close(): void {
    if (this.#closed) return
    this.#closed = true
    if (this.#reading !== undefined) this.#reading.subscriber = undefined
    this.#core.opened?.unfeed(this)
    this.#home.left(this)
  }

  // Of a Feed.

  drained(): void {
    if (!this.#joined) return
    if (this.#resetFor !== undefined) this.#reset(this.#resetFor)
    else if (this.#id !== undefined) this.#follow()
    else this.#catchUp()
  }

  heartbeat(): string | undefined {
    const { log, positionEvent } = this.#home
    if (this.#cursor !== undefined || log.newest <= this.#told || log.position === undefined) return
    this.#told = log.newest
    return notice(positionEvent, log.position, '', this.#newline)
  }

  ended(): void {
    this.close()
  }

  /** Sends what the window holds, until there is no room or no more. */
  #catchUp(): void {
    const { log } = this.#home
    while (this.#cursor !== undefined && !this.#closed) {
      if (this.#cursor < log.lost) return this.#reset('slow')
      if (this.#cursor >= log.newest) {
        this.#cursor = undefined
        return
      }
      const event = log.at(++this.#cursor)
      if (event !== undefined && this.#wants(event.entry) && !this.#send(event, this.#cursor)) return
    }
  }

  /** Goes on from an id: in the window if it is there, else with what the broker has after it. */
  #follow(): void {
    if (this.#reading !== undefined || this.#id === undefined) return
    const number = this.#home.log.locate(this.#id)
    if (this.#home.log.isReused(this.#id)) {
      this.#reset('unknown')
    } else if (number !== undefined) {
      this.#id = undefined
      this.#cursor = number
      this.#told = number
      this.#catchUp()
    } else if (this.#replayed > MAX_REPLAY) {
      this.#reset('trimmed')
    } else {
      this.#read(this.#id)
    }
  }

  #read(id: string): void {
    const { newest } = this.#home.log
    const reading: { subscriber: Subscriber | undefined } = { subscriber: this }
    this.#reading = reading
    this.#home.read(id, this.#page).then(
      page => {
        if (reading.subscriber !== undefined) reading.subscriber.#replay(id, page, newest)
      },
      (error: unknown) => {
        if (reading.subscriber === undefined) return
        reading.subscriber.#reading = undefined
        reading.subscriber.#home.park(reading.subscriber, error)
      },
    )
  }

  /** `newest`: of the log, when the page after `id` was asked for. */
  #replay(id: string, page: BrokerEntry[] | undefined, newest: number): void {
    this.#reading = undefined
    // It may have been reset meanwhile.
    if (this.#id !== id) return
    if (page === undefined) return this.#reset(this.#home.whyNot(id))
    if (page.length === 0) {
      // Nothing came after the id; so what the log had by then did not, either. Or the client was ahead of it, and it is there now.
      const { log } = this.#home
      const number = log.locate(id) ?? newest
      // What came while the broker answered has left the window already.
      if (number < log.lost) return this.#read(id)
      this.#id = undefined
      this.#cursor = number
      this.#told = number
      return this.#catchUp()
    }
    for (const [i, entry] of page.entries()) {
      this.#id = entry.id
      this.#replayed++
      // What is left of the page is read again, when there is room: nothing is kept for a slow client.
      if (this.#wants(entry) && !this.#sendEntry(entry)) return void (this.#page = i + 1)
      if (this.#closed) return
    }
    this.#page = Math.min(PAGE.most, this.#page * 2)
    this.#follow()
  }

  #wants({ channel }: BrokerEntry): boolean {
    return channel === null || this.channels.has(channel)
  }

  #sendEntry(entry: BrokerEntry): boolean {
    let event: SharedEvent
    try {
      event = new SharedEvent(entry)
    } catch (error) {
      // As when it came for the first time.
      this.#home.error(error)
      return true
    }
    return this.#send(event, -1)
  }

  /** False when there is no room for more. */
  #send(event: SharedEvent, number: number): boolean {
    // A filter may have ended its own stream.
    if (this.#filter !== undefined && (!this.#passes(event) || this.#closed)) return true
    this.#told = number
    this.#home.wasSent()
    return this.#core.opened?.sendFrame(event.frame(this.#newline)) === true
  }

  #passes(event: SharedEvent): boolean {
    try {
      return yesOrNo('filter', this.#filter!(event.view))
    } catch (error) {
      this.#home.error(error)
      return false
    }
  }

  #tell(event: string | false, id: string, data: string): boolean {
    this.#told = this.#home.log.newest
    return this.#core.opened?.writeText(notice(event, id, data, this.#newline)) === true
  }

  #reset(reason: string): void {
    const { log, resetEvent } = this.#home
    this.#resetFor = undefined
    this.#id = undefined
    this.#cursor = log.newest
    this.#home.wasReset(reason)
    if (log.position === undefined || this.#tell(resetEvent, log.position, JSON.stringify({ reason }))) this.#catchUp()
  }
}
