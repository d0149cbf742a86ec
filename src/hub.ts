import { EventEmitter } from 'node:events'
import type { Broker } from './broker.ts'
import { within } from './deferred.ts'
import { Delivery } from './delivery.ts'
import { SseError } from './errors.ts'
import type { SseEvent } from './event.ts'
import { coreOf, EventStream } from './event-stream.ts'
import {
  checkChannel,
  checkChannels,
  checkHubOptions,
  checkSubscribeOptions,
  requestedChannels,
  type EventOf,
  type HubEvents,
  type HubOptions,
  type HubPipeOptions,
  type HubStats,
  type MappedHubPipeOptions,
  type SubscriberContext,
  type SubscriberMiddleware,
} from './hub-options.ts'
import { Members } from './members.ts'
import { MemoryBroker } from './memory-broker.ts'
import { closedError, Publisher } from './publisher.ts'
import { checkCloseOptions, shutDown, type CloseOptions, type Farewell } from './shutdown.ts'
import { checkSource, type Source } from './source.ts'
import { Subscriber, type Begin, type SubscribeOptions, type Subscription } from './subscription.ts'
import { detached, setImmediate } from './turn.ts'
import { checkFunction, checkKeys, expected, yesOrNo } from './validate.ts'

type Channel<Events> = keyof Events & string
type Channels<Events> = Channel<Events> | Iterable<Channel<Events>>

/**
 * Fans events out to channels, replays what a reconnecting client missed, and spans processes with a broker that does.
 *
 * `Events` says what data each channel carries: `new Hub<{ news: { title: string } }>()` makes a wrong channel or payload a
 * compile error. Without it any channel takes anything.
 *
 * Wrong arguments throw a `TypeError` or `RangeError` at the call. After {@link close}, `publish`, `broadcast`, `pipe` and
 * `subscribe` reject with `ERR_SSE_HUB_CLOSED`.
 */
export class Hub<Events extends object = Record<string, unknown>> extends EventEmitter<HubEvents> {
  readonly #broker: Broker
  readonly #members = new Members()
  readonly #delivery: Delivery
  readonly #publisher: Publisher
  readonly #maxSubscribers: number
  readonly #maxChannels: number
  #ready = false
  #closing: Promise<void> | undefined

  constructor(options: HubOptions = {}) {
    super()
    const { broker, maxSubscribers, maxChannels, maxEventBytes, ...rest } = checkHubOptions(options)
    this.#maxSubscribers = maxSubscribers
    this.#maxChannels = maxChannels
    // The window here is all the history there is: a broker's beside it would keep the same events twice.
    this.#broker = broker ?? new MemoryBroker({ events: 0 })
    this.#delivery = new Delivery({
      ...rest,
      broker: this.#broker,
      members: this.#members,
      onLeft: subscriber => this.#tell('unsubscribe', subscriber),
      onError: error => this.#error(error),
    })
    // Made by the first request that needs it, perhaps.
    const started = detached(async () => this.#start())
    started.catch((error: unknown) => {
      if (this.#closing === undefined) this.#error(error)
    })
    const unavailable = started.catch((cause: unknown) => {
      throw cause instanceof SseError ? cause : new SseError('ERR_SSE_BROKER_UNAVAILABLE', 'The broker did not start', { cause })
    })
    // At least a turn, for a broker that starts within it: who subscribes to a new hub, and then publishes, gets the event.
    const soon = this.#broker.takesEarly === true ? Promise.race([unavailable, new Promise(resolve => setImmediate(resolve))]) : unavailable
    this.#publisher = new Publisher(this.#broker, maxEventBytes, soon)
  }

  /**
   * Publishes an event to a channel, in every process, in the order of the calls, un-awaited too; and keeps it for those who come back. They find it best
   * under the broker's id: its own (not empty, without control characters or white space at its ends) must be in the window, and none there have the same.
   *
   * @returns the id under which it is delivered: the event's own, or the broker's. Resolves once the broker has it.
   * @throws TypeError at once for a bad event or channel (empty, over 255 bytes, or with control characters); {@link SseError} `ERR_SSE_EVENT_TOO_LARGE`
   * at once past `maxEventBytes`. It rejects as the broker does: `ERR_SSE_BROKER_UNAVAILABLE`, `ERR_SSE_BROKER_BUSY`.
   */
  publish<C extends Channel<Events>>(channel: C, event: EventOf<Events[C]>): Promise<string> {
    return this.#publisher.publish(checkChannel(channel), event)
  }

  /** Publishes an event to every subscriber in every process, whatever its channels. Otherwise as {@link publish}. */
  broadcast(event: string | SseEvent): Promise<string> {
    return this.#publisher.publish(null, event)
  }

  /**
   * Publishes what `source` yields, one item after the other, each once the one before has arrived. No client is needed: a source
   * runs on while its readers come and go.
   *
   * @returns a promise that resolves when the source has ended or `signal` was aborted, and rejects when the source or a publish
   * fails. Nobody has to look at it: a failure is emitted as 'error' too.
   */
  pipe<C extends Channel<Events>>(
    channel: C,
    source: Source<EventOf<Events[C]> | Uint8Array>,
    options?: HubPipeOptions<never> & { map?: undefined },
  ): Promise<void>
  pipe<C extends Channel<Events>, T>(channel: C, source: Source<T>, options: MappedHubPipeOptions<T, EventOf<Events[C]>>): Promise<void>
  pipe(channel: string, source: Source<never>, options: HubPipeOptions<never> = {}): Promise<void> {
    checkChannel(channel)
    checkSource(source)
    checkKeys('options', options, ['map', 'signal'])
    const { map, signal } = options
    if (map !== undefined) checkFunction('map', map)
    if (signal !== undefined && !(signal instanceof AbortSignal)) throw new TypeError(expected('signal', 'an AbortSignal', signal))
    const piped = this.#publisher.pipe(channel, source, map, signal)
    piped.catch(error => {
      if (this.#closing === undefined) this.#error(error)
    })
    return piped
  }

  /**
   * Subscribes a stream to channels, and opens it. A client that comes back with a Last-Event-ID gets what it missed, then live
   * events; where that cannot be proved, it is told so by `resetEvent`. One that comes for the first time is told its position.
   *
   * An empty list subscribes to broadcasts alone.
   *
   * @returns the subscription; events follow as soon as the broker has started. It ends with the stream. Past `maxSubscribers`,
   * where a 503 comes too late or `whenFull` is `'retry'`, the stream has ended.
   * @throws TypeError at once for what is no stream, a stream that is subscribed already, a bad channel or filter; RangeError past `maxChannels`. Rejects with what
   * `ctx.throw(503)` throws past `maxSubscribers`, and with `ERR_SSE_NOT_OPEN` for a stream that has ended.
   */
  subscribe(stream: EventStream, channels: Channels<Events>, options: SubscribeOptions = {}): Promise<Subscription> {
    if (!(stream instanceof EventStream)) throw new TypeError(expected('stream', 'an EventStream of the same copy of koa-sse: ctx.sse', stream))
    const names = checkChannels(channels, this.#maxChannels)
    const checked = checkSubscribeOptions(options)
    if (this.#members.has(stream)) {
      // Two cursors would send ids that go back and forth, and a client that comes back with one of them would miss events.
      throw new TypeError('This stream is subscribed already: give all of its channels in one call, or close its subscription first')
    }
    return (async () => this.#subscribe(stream, names, checked))()
  }

  /**
   * {@link subscribe} as a route's last handler, behind `sse()`. `channels` may be a function of `ctx`, which may throw
   * (`ctx.throw(403)`) while the response is an ordinary one still.
   *
   * Bad names, or too many of them, that such a function returns come from the request: they are a 400, whose `cause` is the complaint.
   *
   * @throws TypeError when `sse()` is not before it.
   */
  // oxlint-disable-next-line typescript/no-explicit-any -- where TypeScript finds no context to infer, Koa's is as loose
  subscriber<C extends SubscriberContext = SubscriberContext & Record<string, any>, const N extends Channels<Events> = Channels<Events>>(
    channels: N | ((ctx: C) => N | Promise<N>),
    options: SubscribeOptions = {},
  ): SubscriberMiddleware<C> {
    const fixed = typeof channels === 'function' ? undefined : checkChannels(channels, this.#maxChannels)
    const checked = checkSubscribeOptions(options)
    return async ctx => {
      if (!(ctx.sse instanceof EventStream))
        throw new TypeError('hub.subscriber() found no ctx.sse of this copy of koa-sse: put sse() before it, as in router.get(path, sse(), …)')
      const names = fixed ?? requestedChannels(ctx, await (channels as (ctx: C) => N | Promise<N>)(ctx), this.#maxChannels)
      try {
        this.#subscribe(ctx.sse, names, checked)
      } catch (error) {
        // The client has been told, or has left.
        const code = error instanceof SseError ? error.code : undefined
        if (code !== 'ERR_SSE_HUB_CLOSED' && code !== 'ERR_SSE_NOT_OPEN') throw error
      }
    }
  }

  /** True when somebody in this process is subscribed to the channel. */
  has(channel: Channel<Events>): boolean {
    return this.#members.count(channel) > 0
  }

  /** Subscriptions in this process, to a channel or in all. */
  count(channel?: Channel<Events>): number {
    return channel === undefined ? this.#members.size : this.#members.count(channel)
  }

  /** The channels that somebody in this process is subscribed to. */
  channels(): IterableIterator<string> {
    return this.#members.channelNames()
  }

  /**
   * Ends the streams of all subscriptions in this process that `match`: after a logout, say, or when rights were revoked.
   *
   * @returns how many there were. A `match` that returns a promise is a TypeError, and ends none.
   */
  disconnect(match: (subscription: Subscription) => boolean): number {
    checkFunction('match', match)
    const matching = [...this.#members.of(null)].filter(subscriber => yesOrNo('match', match(subscriber)))
    for (const { stream } of matching) stream.close()
    return matching.length
  }

  /**
   * Ends it all: publishes under way arrive, every client gets the last event and a random `retry` between `retry` and twice it,
   * the streams end, the broker is closed. Resolves within `graceMs`, whatever the clients do. Calls after the first return its promise.
   *
   * @throws TypeError or RangeError at once for wrong options; then nothing is closed.
   */
  close(options: CloseOptions = {}): Promise<void> {
    const farewell = checkCloseOptions(options)
    return (this.#closing ??= this.#shutDown(farewell))
  }

  /**
   * The newest id in the log. Put it into a page beside the state that it shows, and connect with `?lastEventId=…`: nothing is
   * missed between the two. Undefined before the broker has started, and after {@link close}.
   */
  get position(): string | undefined {
    return this.#closing === undefined ? this.#delivery.log.position : undefined
  }

  /** Figures for monitoring. */
  stats(): HubStats {
    const now = performance.now()
    const { log, published, delivered, resets } = this.#delivery
    log.trim(now)
    return {
      subscribers: this.#members.size,
      channels: this.#members.channels,
      published,
      delivered,
      resets: { ...resets },
      window: { events: log.events, bytes: log.bytes, ms: Math.round(log.age(now)) },
      broker: this.#broker.stats?.() ?? { up: this.#ready && this.#closing === undefined },
    }
  }

  async #start(): Promise<void> {
    await this.#broker.start(this.#delivery)
    // All at once: what is published from now on comes after them.
    for (const subscriber of this.#members.of(null)) subscriber.join()
    this.#ready = true
  }

  // Not async: no await on this way when the broker is there, and so no race with what is published.
  #subscribe(stream: EventStream, channels: Set<string>, begin: Begin): Subscription {
    if (this.#closing !== undefined) {
      coreOf(stream).turnAway(true)
      throw closedError()
    }
    // Its Last-Event-ID is where it was before its first subscription.
    const before = this.#members.before(stream)
    const subscriber = new Subscriber(stream, channels, before === undefined ? begin : { ...begin, replay: false }, this.#delivery)
    if (this.#members.size >= this.#maxSubscribers) {
      coreOf(stream).turnAway(false)
      return subscriber
    }
    if (!coreOf(stream).feed(subscriber)) throw new SseError('ERR_SSE_NOT_OPEN', `The stream has ended, so it cannot be subscribed`)
    this.#members.add(subscriber)
    // What a listener publishes now comes after the position that the newcomer is told.
    this.#delivery.asOne(() => {
      this.#tell('subscribe', subscriber)
      if (before === 'behind') subscriber.gap('slow')
      if (this.#ready) subscriber.join()
    })
    return subscriber
  }

  #tell(name: 'subscribe' | 'unsubscribe', subscriber: Subscriber): void {
    try {
      this.emit(name, subscriber)
    } catch (error) {
      this.#error(error)
    }
  }

  #error(error: unknown): void {
    try {
      if (this.listenerCount('error') > 0) this.emit('error', error)
    } catch {
      // A listener of faults that fails itself: there is nobody left to tell, and others wait for their events.
    }
  }

  async #shutDown(farewell: Farewell): Promise<void> {
    const deadline = performance.now() + farewell.graceMs
    const arriving = this.#publisher.close()
    // A quarter of the grace for the broker; the rest is the clients'.
    if (arriving !== undefined) await within(farewell.graceMs / 4, arriving)
    await shutDown(Array.from(this.#members.streams(), coreOf), { ...farewell, graceMs: Math.max(0, deadline - performance.now()) })
    await within(
      Math.max(0, deadline - performance.now()),
      // Async, for brokers that throw.
      (async () => this.#broker.close())().catch(error => this.#error(error)),
    )
    this.#publisher.giveUp()
    const { log } = this.#delivery
    if (log.position !== undefined) log.reset(log.position)
  }
}
