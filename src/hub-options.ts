import type { Broker, BrokerStats } from './broker.ts'
import { encode, type SseEvent } from './event.ts'
import type { EventStream } from './event-stream.ts'
import { checkLimits, type LogLimits } from './log.ts'
import type { Begin, SubscribeOptions, Subscription } from './subscription.ts'
import { checkFunction, checkKeys, checkString, expected, isObject, limit, oneOf } from './validate.ts'

/** What a `Hub` keeps in memory, in this process, for clients that come back. Whatever is reached first counts. */
export interface HistoryOptions {
  /** Events. Default 10 000. */
  events?: number | undefined
  /** Milliseconds. Default 300 000. */
  ms?: number | undefined
  /** Bytes on the wire. Default 67 108 864. */
  bytes?: number | undefined
}

/** Options of a `Hub`. All sizes are bytes. */
export interface HubOptions {
  /** What orders and keeps the events. Default: a new {@link MemoryBroker}, for one process, which keeps none: the window does. */
  broker?: Broker | undefined
  /** The window of recent events. `false`: none; what a client missed then comes from the broker, if that keeps it, or it is told so. */
  history?: HistoryOptions | false | undefined
  /** Subscriptions at once; one more is turned away as its `sse()`'s `whenFull` says. Default: unlimited. */
  maxSubscribers?: number | undefined
  /** Channels of one subscription. Default 100. */
  maxChannels?: number | undefined
  /** Of one event on the wire, a broker's id apart. Default 1 048 576. */
  maxEventBytes?: number | undefined
  /**
   * The type of the event that tells a client its position: at first, and in place of a heartbeat when that has moved. `false`: a mere `id:` tells it, which
   * reaches no handler, for clients that take every event for one of their own protocol. A browser's EventSource keeps it; others may not. Default `'stream-position'`.
   */
  positionEvent?: string | false | undefined
  /** The type of the event that tells a client that it has missed something. Default `'stream-reset'`. */
  resetEvent?: string | undefined
}

/** What `hub.stats()` tells. */
export interface HubStats {
  /** Subscriptions in this process now. */
  readonly subscribers: number
  /** Channels that somebody here is subscribed to now. */
  readonly channels: number
  /** Events that came from the broker, whichever process published them. */
  readonly published: number
  /** Events sent to streams. */
  readonly delivered: number
  /** Resets so far, by reason. */
  readonly resets: Readonly<Record<string, number>>
  /** What is kept in memory; `ms` is the age of the oldest. */
  readonly window: { readonly events: number; readonly bytes: number; readonly ms: number }
  readonly broker: BrokerStats
}

/** An event whose data fits its channel. */
export type EventOf<T> = unknown extends T ? string | SseEvent : (T extends string ? T : never) | (Omit<SseEvent, 'data'> & { data: T })

/** How `hub.pipe` takes a source. */
export interface HubPipeOptions<T, E = string | SseEvent> {
  /** Makes an event of an item. Without it an item is a string, an `SseEvent`, or bytes of UTF-8 text. */
  map?: ((item: T) => E) | undefined
  /** Stops it when aborted; the source is released, and the promise resolves. */
  signal?: AbortSignal | undefined
}

/** What `hub.subscriber` needs of a Koa context. */
export interface SubscriberContext {
  readonly sse: EventStream
  throw(status: number, message: string, properties: object): never
}

/** Koa middleware, by its shape. */
export type SubscriberMiddleware<C> = (ctx: C, next: () => Promise<unknown>) => Promise<void>

/** The events that a `Hub` emits. */
export interface HubEvents {
  /** One in this process has begun. What a listener publishes reaches it, after its position. */
  subscribe: [subscription: Subscription]
  /** One in this process has ended, by itself or with its stream. */
  unsubscribe: [subscription: Subscription]
  /** Faults of the broker, filters and listeners that throw, sources of `hub.pipe` that fail. Emitted only if somebody listens. */
  error: [error: unknown]
}

/** {@link HubPipeOptions} with a `map`, for a source of anything. */
export interface MappedHubPipeOptions<T, E> extends HubPipeOptions<T, E> {
  map: (item: T) => E
}

const KEYS = ['broker', 'history', 'maxSubscribers', 'maxChannels', 'maxEventBytes', 'positionEvent', 'resetEvent']
// Control characters, and halves of surrogate pairs: in UTF-8, on the way through a broker, all of these are the same U+FFFD.
const UNFIT = /[\p{Cc}\p{Cs}]/u

export const checkChannel = (channel: unknown): string => {
  if (typeof channel !== 'string' || channel === '' || UNFIT.test(channel) || Buffer.byteLength(channel) > 255) {
    throw new TypeError(expected('channel', 'a non-empty, well-formed string of at most 255 bytes without control characters', channel))
  }
  return channel
}

/** The channels of one subscription. */
export const checkChannels = (channels: string | Iterable<string>, most: number): Set<string> => {
  if (typeof channels === 'string') return new Set([checkChannel(channels)])
  if (!isObject(channels) || typeof channels[Symbol.iterator] !== 'function')
    throw new TypeError(expected('channels', 'a string or an iterable of strings', channels))
  const names = new Set<string>()
  for (const channel of channels) {
    names.add(checkChannel(channel))
    if (names.size > most) throw new RangeError(expected('channels', `at most ${most} (maxChannels)`, channels))
  }
  return names
}

/** The same, where they come from a request: bad ones are a 400. */
export const requestedChannels = (ctx: SubscriberContext, channels: string | Iterable<string>, most: number): Set<string> => {
  try {
    return checkChannels(channels, most)
  } catch (error) {
    // What else an iterable of the app's own throws is no fault of the request.
    if (!(error instanceof TypeError) && !(error instanceof RangeError)) throw error
    // Which, and why, is for the app alone: a function that has forgotten its `return` ends here, too.
    return ctx.throw(400, 'Bad channels', { cause: error })
  }
}

const checkBroker = (broker: unknown): Broker => {
  const methods = ['start', 'publish', 'read', 'close']
  if (!isObject(broker) || !methods.every(method => typeof Reflect.get(broker, method) === 'function')) {
    throw new TypeError(expected('broker', `an object with ${methods.join(', ')}`, broker))
  }
  return broker as Broker
}

/** An event type that clients can listen for. */
const checkType = (name: string, type: string): string => {
  if (checkString(name, type) === '') throw new TypeError(expected(name, 'a non-empty string', type))
  encode({ event: type })
  return type
}

export const checkSubscribeOptions = (options: SubscribeOptions): Begin => {
  checkKeys('options', options, ['filter', 'replay', 'from'])
  const { filter, replay = true, from = 'now' } = options
  if (filter !== undefined) checkFunction('filter', filter)
  if (typeof replay !== 'boolean') throw new TypeError(expected('replay', 'a boolean', replay))
  return { filter, replay, from: oneOf('from', from, ['now', 'earliest']) }
}

/** {@link HubOptions}, checked, with their defaults; no broker means a new one in memory. */
export interface CheckedHubOptions {
  readonly broker: Broker | undefined
  readonly history: LogLimits
  readonly maxSubscribers: number
  readonly maxChannels: number
  readonly maxEventBytes: number
  readonly positionEvent: string | false
  readonly resetEvent: string
}

export const checkHubOptions = (options: HubOptions): CheckedHubOptions => {
  checkKeys('options', options, KEYS)
  const { broker, history = {}, maxSubscribers = Infinity, maxChannels = 100, maxEventBytes = 1_048_576 } = options
  const { positionEvent = 'stream-position', resetEvent = 'stream-reset' } = options
  return {
    broker: broker === undefined ? undefined : checkBroker(broker),
    history: history === false ? { events: 0, ms: 0, bytes: 0 } : checkLimits('history', history),
    maxSubscribers: limit('maxSubscribers', maxSubscribers),
    maxChannels: limit('maxChannels', maxChannels),
    maxEventBytes: limit('maxEventBytes', maxEventBytes),
    positionEvent: positionEvent === false ? false : checkType('positionEvent', positionEvent),
    resetEvent: checkType('resetEvent', resetEvent),
  }
}
