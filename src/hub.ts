import { EventEmitter } from 'node:events'
import type { Broker, BrokerEntry, BrokerSink } from './broker.ts'
import { SseError } from './errors.ts'
import { dataText, encode, type SseEvent } from './event.ts'
import { control, EventStream } from './event-stream.ts'
import {
  checkChannel,
  checkHubOptions,
  checkSubscribeOptions,
  type CheckedSubscribeOptions,
  type EventOf,
  type HubEvents,
  type HubOptions,
  type HubPipeOptions,
  type HubStats,
  type MappedHubPipeOptions,
  type SubscriberContext,
  type SubscriberMiddleware,
} from './hub-options.ts'
import { Log } from './log.ts'
import { MemoryBroker } from './memory-broker.ts'
import { checkCloseOptions, shutDown, type CloseOptions, type Farewell } from './shutdown.ts'
import { SharedEvent } from './shared-event.ts'
import { checkSource, Drain, releaseSource, type Source } from './source.ts'
import { Subscriber, type Home, type SubscribeOptions, type Subscription } from './subscription.ts'
import { checkFunction, checkKeys, expected, isObject } from './validate.ts'

type Channel<Events> = keyof Events & string
type Channels<Events> = Channel<Events> | Iterable<Channel<Events>>

// Of what the broker has to replay: about what a stream has room for at once.
const PAGE = 100

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
  readonly #log: Log<SharedEvent>
  readonly #home: Home
  readonly #subscribers = new Map<EventStream, Subscriber>()
  readonly #channels = new Map<string, Set<Subscriber>>()
  readonly #parked = new Set<Subscriber>()
  readonly #pipes = new Set<Drain>()
  readonly #resets: Record<string, number> = {}
  readonly #maxSubscribers: number
  readonly #maxChannels: number
  readonly #maxEventBytes: number
  readonly #soon: Promise<void>
  /** Subscriptions that wait for the broker's start. */
  readonly #joins: (() => void)[] = []
  readonly #backlog: (() => void)[] = []
  #delivering = false
  #ready = false
  /** Publishes that wait for `#soon`, and must not be overtaken. */
  #early = 0
  /** Publishes under way. */
  #publishing = 0
  #published = 0
  #delivered = 0
  #onIdle: (() => void) | undefined
  #closing: Promise<void> | undefined
  #farewell: Farewell | undefined

  constructor(options: HubOptions = {}) {
    super()
    const { broker, history, maxSubscribers, maxChannels, maxEventBytes, positionEvent, resetEvent } = checkHubOptions(options)
    this.#maxSubscribers = maxSubscribers
    this.#maxChannels = maxChannels
    this.#maxEventBytes = maxEventBytes
    this.#log = new Log(history)
    this.#home = {
      log: this.#log,
      positionEvent,
      resetEvent,
      read: id => this.#broker.read(id, PAGE),
      whyNot: id => (this.#broker.trimmed?.(id) === true ? 'trimmed' : 'unknown'),
      delivered: () => this.#delivered++,
      wasReset: reason => (this.#resets[reason] = (this.#resets[reason] ?? 0) + 1),
      park: subscriber => this.#parked.add(subscriber),
      left: subscriber => this.#remove(subscriber),
      error: error => this.#error(error),
    }
    this.#broker = broker ?? new MemoryBroker(history)
    const started = this.#start()
    started.catch((error: unknown) => this.#error(error))
    const unavailable = started.catch((cause: unknown) => {
      throw cause instanceof SseError ? cause : new SseError('ERR_SSE_BROKER_UNAVAILABLE', 'The broker did not start', { cause })
    })
    // At least a turn, for a broker that starts within it: who subscribes to a new hub, and then publishes, gets the event.
    this.#soon = this.#broker.takesEarly === true ? Promise.race([unavailable, new Promise<void>(resolve => setImmediate(resolve))]) : unavailable
    this.#soon.catch(() => {})
  }

  /**
   * Publishes an event to a channel, in every process. Un-awaited calls keep their order. Nobody needs to be subscribed: the
   * event is kept for those who come back.
   *
   * @returns the id under which it is delivered: the event's own, or the broker's. Resolves once the broker has it.
   * @throws TypeError at once for a bad channel or event; {@link SseError} `ERR_SSE_EVENT_TOO_LARGE` at once past `maxEventBytes`.
   * It rejects as the broker does: `ERR_SSE_BROKER_UNAVAILABLE`, `ERR_SSE_BROKER_BUSY`.
   */
  publish<C extends Channel<Events>>(channel: C, event: EventOf<Events[C]>): Promise<string> {
    return this.#publish(checkChannel(channel), event)
  }

  /** Publishes an event to every subscriber in every process, whatever its channels. Otherwise as {@link publish}. */
  broadcast(event: string | SseEvent): Promise<string> {
    return this.#publish(null, event)
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
    const piped = this.#pipe(channel, source, map, signal)
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
   * @returns the subscription, once its place is known to be asked for. It ends with the stream.
   * @throws TypeError at once for what is no stream, a stream that is subscribed already, a bad channel or filter; RangeError past `maxChannels`. Rejects with what
   * `ctx.throw(503)` throws past `maxSubscribers`, and with `ERR_SSE_NOT_OPEN` for a stream that has ended.
   */
  subscribe(stream: EventStream, channels: Channels<Events>, options: SubscribeOptions = {}): Promise<Subscription> {
    if (!(stream instanceof EventStream)) throw new TypeError(expected('stream', 'an EventStream: ctx.sse', stream))
    const names = this.#checkChannels(channels)
    const checked = checkSubscribeOptions(options)
    if (this.#subscribers.has(stream)) {
      // Two cursors would send ids that go back and forth, and a client that comes back with one of them would miss events.
      throw new TypeError('This stream is subscribed already: give all of its channels in one call, or close its subscription first')
    }
    return (async () => this.#subscribe(stream, names, checked))()
  }

  /**
   * {@link subscribe} as a route's last handler, behind `sse()`. `channels` may be a function of `ctx`, which may throw
   * (`ctx.throw(403)`) while the response is an ordinary one still.
   *
   * Bad names, or too many of them, that such a function returns come from the request: they are a 400.
   *
   * @throws TypeError when `sse()` is not before it.
   */
  // oxlint-disable-next-line typescript/no-explicit-any -- where TypeScript finds no context to infer, Koa's is as loose
  subscriber<C extends SubscriberContext = SubscriberContext & Record<string, any>>(
    channels: Channels<Events> | ((ctx: C) => Channels<Events> | Promise<Channels<Events>>),
    options: SubscribeOptions = {},
  ): SubscriberMiddleware<C> {
    const fixed = typeof channels === 'function' ? undefined : this.#checkChannels(channels)
    const checked = checkSubscribeOptions(options)
    return async ctx => {
      if (!(ctx.sse instanceof EventStream))
        throw new TypeError('hub.subscriber() found no ctx.sse: put sse() before it, as in router.get(path, sse(), hub.subscriber(…))')
      const names = fixed ?? this.#requested(ctx, await (channels as (ctx: C) => Channels<Events> | Promise<Channels<Events>>)(ctx))
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
    return this.#channels.has(channel)
  }

  /** Subscriptions in this process, to a channel or in all. */
  count(channel?: Channel<Events>): number {
    return channel === undefined ? this.#subscribers.size : (this.#channels.get(channel)?.size ?? 0)
  }

  /** The channels that somebody in this process is subscribed to. */
  channels(): IterableIterator<string> {
    return this.#channels.keys()
  }

  /**
   * Ends the streams of all subscriptions that `match`: after a logout, say, or when rights were revoked.
   *
   * @returns how many there were.
   */
  disconnect(match: (subscription: Subscription) => boolean): number {
    checkFunction('match', match)
    const matching = [...this.#subscribers.values()].filter(subscriber => match(subscriber))
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
    this.#farewell ??= checkCloseOptions(options)
    return (this.#closing ??= this.#shutDown(this.#farewell))
  }

  /**
   * The newest id in the log. Put it into a page beside the state that it shows, and connect with `?lastEventId=…`: nothing is
   * missed between the two. Undefined before the broker has started.
   */
  get position(): string | undefined {
    return this.#closing === undefined ? this.#log.position : undefined
  }

  /** Figures for monitoring. */
  stats(): HubStats {
    const now = performance.now()
    this.#log.trim(now)
    return {
      subscribers: this.#subscribers.size,
      channels: this.#channels.size,
      published: this.#published,
      delivered: this.#delivered,
      resets: { ...this.#resets },
      window: { events: this.#log.events, bytes: this.#log.bytes, ms: Math.round(this.#log.age(now)) },
      broker: this.#broker.stats?.() ?? { up: this.#ready && this.#closing === undefined },
    }
  }

  async #start(): Promise<void> {
    const sink: BrokerSink = {
      event: entry => this.#inOrder(() => this.#receive(entry)),
      position: id =>
        this.#inOrder(() => {
          this.#log.move(id, performance.now())
          this.#resumeParked()
        }),
      gap: (reason, position) =>
        this.#inOrder(() => {
          this.#log.reset(position)
          this.#parked.clear()
          for (const subscriber of this.#subscribers.values()) subscriber.gap(reason)
        }),
      error: error => this.#error(error),
    }
    await this.#broker.start(sink)
    // All at once: what is published from now on comes after them.
    for (const join of this.#joins.splice(0)) join()
    this.#ready = true
  }

  /** A filter or a listener may publish in the middle of a delivery; what comes of it comes after. */
  #inOrder(action: () => void): void {
    if (this.#delivering) {
      this.#backlog.push(action)
      return
    }
    this.#delivering = true
    try {
      action()
      for (let next = this.#backlog.shift(); next !== undefined; next = this.#backlog.shift()) next()
    } finally {
      this.#delivering = false
    }
  }

  #receive(entry: BrokerEntry): void {
    let event: SharedEvent
    try {
      event = new SharedEvent(entry)
    } catch (error) {
      // Only a broker that somebody else writes to has such.
      this.#log.move(entry.id, performance.now())
      return this.#error(error)
    }
    this.#published++
    const number = this.#log.append(entry.id, event, event.frame('\n').bytes, performance.now(), entry.event.id)
    for (const subscriber of (entry.channel === null ? this.#subscribers.values() : this.#channels.get(entry.channel)) ?? []) {
      subscriber.deliver(event, number)
    }
    this.#resumeParked()
  }

  #resumeParked(): void {
    if (this.#parked.size === 0) return
    const parked = [...this.#parked]
    this.#parked.clear()
    for (const subscriber of parked) subscriber.resume()
  }

  #publish(channel: string | null, event: string | SseEvent): Promise<string> {
    const text = this.#textOf(event)
    const bytes = Buffer.byteLength(encode(text))
    if (bytes > this.#maxEventBytes) {
      throw new SseError('ERR_SSE_EVENT_TOO_LARGE', `The event has ${bytes} bytes on the wire, and maxEventBytes is ${this.#maxEventBytes}`)
    }
    return this.#closing === undefined ? this.#hand(channel, text) : Promise.reject(closedError())
  }

  /** The event with its data serialised, once and for all. */
  #textOf(event: string | SseEvent): SseEvent {
    if (typeof event === 'string') return { data: event }
    if (!isObject(event)) throw new TypeError(expected('event', 'a string or an object', event))
    // It would clear the client's memory, and its next connect would miss events without a word.
    if (event.id === '') throw new TypeError(expected('id', 'absent or non-empty in a hub', event.id))
    return event.data === undefined ? event : { ...event, data: dataText(event.data) }
  }

  async #hand(channel: string | null, event: SseEvent): Promise<string> {
    this.#publishing++
    try {
      if (!this.#ready || this.#early > 0) {
        this.#early++
        await this.#soon.finally(() => this.#early--)
      }
      const id = await this.#broker.publish(channel, event)
      return event.id ?? id
    } finally {
      if (--this.#publishing === 0) this.#onIdle?.()
    }
  }

  async #pipe(
    channel: string,
    source: Source<never>,
    map: ((item: never) => string | SseEvent) | undefined,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    if (this.#closing !== undefined || signal?.aborted === true) {
      releaseSource(source)
      if (this.#closing !== undefined) throw closedError()
      return
    }
    const controller = new AbortController()
    const drain = new Drain(source, map, {
      signal: () => controller.signal,
      take: event => this.#publish(channel, event),
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
    if (this.#closing !== undefined) throw closedError()
  }

  #checkChannels(channels: Channels<Events>): Set<string> {
    if (typeof channels === 'string') return new Set([checkChannel(channels)])
    if (!isObject(channels) || typeof channels[Symbol.iterator] !== 'function')
      throw new TypeError(expected('channels', 'a string or an iterable of strings', channels))
    const names = new Set<string>()
    for (const channel of channels) {
      names.add(checkChannel(channel))
      if (names.size > this.#maxChannels) throw new RangeError(expected('channels', `at most ${this.#maxChannels} (maxChannels)`, channels))
    }
    return names
  }

  #requested(ctx: SubscriberContext, channels: Channels<Events>): Set<string> {
    try {
      return this.#checkChannels(channels)
    } catch {
      return ctx.throw(400, 'Bad channels')
    }
  }

  // Not async: no await on this way when the broker is there, and so no race with what is published.
  #subscribe(stream: EventStream, channels: Set<string>, { filter, replay, from }: CheckedSubscribeOptions): Subscription {
    if (this.#closing !== undefined) {
      control.turnAway(stream, true)
      throw closedError()
    }
    const subscriber = new Subscriber(stream, channels, filter, this.#home)
    if (this.#subscribers.size >= this.#maxSubscribers) {
      control.turnAway(stream, false)
      return subscriber
    }
    // Its Last-Event-ID is where it was before its first subscription.
    const returns = replay && !control.wasFed(stream)
    if (!control.feed(stream, subscriber)) throw new SseError('ERR_SSE_NOT_OPEN', `The stream has ended, so it cannot be subscribed`)
    this.#subscribers.set(stream, subscriber)
    for (const channel of channels) {
      const members = this.#channels.get(channel)
      if (members === undefined) this.#channels.set(channel, new Set([subscriber]))
      else members.add(subscriber)
    }
    this.#tell('subscribe', subscriber)
    if (this.#ready) subscriber.join(returns, from)
    else this.#joins.push(() => subscriber.join(returns, from))
    return subscriber
  }

  #remove(subscriber: Subscriber): void {
    this.#parked.delete(subscriber)
    if (this.#subscribers.get(subscriber.stream) !== subscriber) return
    this.#subscribers.delete(subscriber.stream)
    for (const channel of subscriber.channels) {
      const members = this.#channels.get(channel)
      members?.delete(subscriber)
      if (members?.size === 0) this.#channels.delete(channel)
    }
    this.#tell('unsubscribe', subscriber)
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
    for (const drain of this.#pipes) drain.stop()
    if (this.#publishing > 0) {
      // A quarter of the grace for the broker; the rest is the clients'.
      await within(farewell.graceMs / 4, new Promise<void>(resolve => (this.#onIdle = resolve)))
    }
    await shutDown(this.#subscribers.keys(), { ...farewell, graceMs: Math.max(0, deadline - performance.now()) })
    await within(
      Math.max(0, deadline - performance.now()),
      this.#broker.close().catch(error => this.#error(error)),
    )
    const { position } = this.#log
    if (position !== undefined) this.#log.reset(position)
  }
}

const closedError = (): SseError => new SseError('ERR_SSE_HUB_CLOSED', 'The hub is closed')

const within = async (ms: number, promise: Promise<unknown>): Promise<void> => {
  let timer: NodeJS.Timeout | undefined
  await Promise.race([promise, new Promise<void>(resolve => (timer = setTimeout(resolve, ms)))])
  clearTimeout(timer)
}
