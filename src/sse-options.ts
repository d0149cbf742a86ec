import type { Context } from 'koa'
import { NEWLINES, type Newline, type SseEvent } from './event.ts'
import { EventStream } from './event-stream.ts'
import type { StreamSettings } from './exchange.ts'
import { checkFunction, checkKeys, checkString, expected, limit, nonNegativeInteger, oneOf, period, positiveInteger } from './validate.ts'

/** Options of `sse()`. All times are milliseconds, all sizes bytes. */
export interface SseOptions {
  /** A comment goes out after so long without a byte written, at most a quarter later. `false`: none. Default 15 000. */
  heartbeat?: number | false | undefined
  /** The text of that comment. Default `'ping'`. */
  heartbeatText?: string | undefined
  /** The reconnection delay that the client is told when the stream opens. Default: none is told. `Retry-After` is the same in seconds (else 2). */
  retry?: number | undefined
  /** What ends a line. With `'\r'` a client may hold an event back until the next byte comes. Default `'\n'`. */
  newline?: Newline | undefined
  /** Bytes that may wait before `send` and `pipe` wait too; text counts by its length, one for each character but the rarest. Default 16 384. */
  highWaterMark?: number | undefined
  /**
   * An event that would make more bytes wait than this ends the stream, reason `slow`. While fewer than `highWaterMark` wait, an
   * event of any size is taken. Default 1 048 576.
   */
  maxBuffer?: number | undefined
  /**
   * Bytes wait, or the stream has ended and its response is not over, and the kernel takes nothing for so long: the connection is destroyed, reason `stalled`.
   * What the kernel has taken already, megabytes perhaps, nobody here sees being read. `false`: never. Default 30 000.
   */
  stallTimeout?: number | false | undefined
  /** The stream ends at a random 80 to 100 % of this, reason `expired`; the client comes back, and is authorised anew. Default `false`. */
  maxAge?: number | false | undefined
  /** Streams open at once through this middleware; one more is turned away, as `whenFull` says. Default: unlimited. */
  maxStreams?: number | undefined
  /**
   * `'refuse'`: 503 with `Retry-After`, after which a browser's EventSource does not come back by itself.
   * `'retry'`: 200, a random `retry:` between the option `retry` (else 2 000) and twice it, and the end. Default `'refuse'`.
   */
  whenFull?: 'refuse' | 'retry' | undefined
  /** A last event for the client of a stream whose handler or source failed. Never send it `error.message` as it is. */
  onError?: ((error: unknown, ctx: Context) => string | SseEvent | undefined) | undefined
  /** A subclass of {@link EventStream}, so that `ctx.sse` has methods of your own. */
  Stream?: typeof EventStream | undefined
}

const KEYS = [
  'heartbeat',
  'heartbeatText',
  'retry',
  'newline',
  'highWaterMark',
  'maxBuffer',
  'stallTimeout',
  'maxAge',
  'maxStreams',
  'whenFull',
  'onError',
  'Stream',
] as const satisfies (keyof SseOptions)[]

/** {@link SseOptions} that were checked, with their defaults. */
export interface Settings extends StreamSettings {
  readonly maxStreams: number
  readonly whenFull: 'refuse' | 'retry'
  readonly onError: ((error: unknown, ctx: Context) => string | SseEvent | undefined) | undefined
  readonly Stream: typeof EventStream
}

/** The settings of `options`, or a TypeError or RangeError. */
export const checkSseOptions = (options: SseOptions): Settings => {
  checkKeys('options', options, KEYS)
  const { heartbeat = 15_000, heartbeatText = 'ping', retry, newline = '\n', highWaterMark = 16_384, maxBuffer = 1_048_576 } = options
  const { stallTimeout = 30_000, maxAge = false, maxStreams = Infinity, whenFull = 'refuse', onError, Stream = EventStream } = options
  const settings: Settings = {
    heartbeat: period('heartbeat', heartbeat),
    heartbeatText: checkString('heartbeatText', heartbeatText),
    retry: retry === undefined ? undefined : nonNegativeInteger('retry', retry),
    newline: oneOf('newline', newline, NEWLINES),
    highWaterMark: positiveInteger('highWaterMark', highWaterMark),
    maxBuffer: positiveInteger('maxBuffer', maxBuffer),
    stallTimeout: period('stallTimeout', stallTimeout),
    maxAge: period('maxAge', maxAge),
    maxStreams: limit('maxStreams', maxStreams),
    whenFull: oneOf('whenFull', whenFull, ['refuse', 'retry']),
    onError: onError === undefined ? undefined : checkFunction('onError', onError),
    Stream,
  }
  if (settings.highWaterMark > settings.maxBuffer) {
    throw new RangeError(expected('highWaterMark', `at most \`maxBuffer\`, ${settings.maxBuffer}`, settings.highWaterMark))
  }
  if (typeof Stream !== 'function' || (Stream !== EventStream && !(Stream.prototype instanceof EventStream))) {
    throw new TypeError(expected('Stream', 'a subclass of EventStream', Stream))
  }
  return settings
}
