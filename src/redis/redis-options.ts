import type { RedisOptions } from 'ioredis'
import { checkKeys, checkString, expected, isObject, milliseconds, positiveInteger } from '../validate.ts'
import type { Server } from './connection.ts'
import { MOST_UNDER_WAY } from './seen.ts'

/** What a `RedisBroker` is made of. Times are milliseconds. */
export interface RedisBrokerOptions {
  /**
   * Where Redis is: a URL, or the options of ioredis, Sentinels included. Default `'redis://localhost:6379'`. Of a Redis Cluster any
   * node will do. The broker makes its own connections; it overrides what concerns reconnecting, queueing and time limits of commands,
   * and `keyPrefix`.
   */
  redis?: string | RedisOptions | undefined
  /**
   * Hubs with the same prefix share one log, the stream `{<prefix>:0}:log`. Default `'sse'`. The shortest `retention` and the smallest
   * `maxEntries` of them hold for all, so these must agree.
   */
  prefix?: string | undefined
  /** How long events are kept in Redis, as far as `maxEntries` allows; no less than `publishTimeout`. Default 300 000. */
  retention?: number | undefined
  /** How many are kept in Redis, about. Default 200 000. */
  maxEntries?: number | undefined
  /**
   * How long a publish waits for Redis, sent again as often as that takes, before it rejects. Default 10 000. The same in all hubs with the
   * prefix: one knows copies of an event no longer than its own publishes take, and would deliver those of a more patient hub twice.
   */
  publishTimeout?: number | undefined
  /** Publishes that may wait at the same time; the next rejects. Default 10 000, at most 100 000. */
  maxPending?: number | undefined
  /** Publish resolves only when a replica has the event, too. Default `false`. */
  strict?: boolean | undefined
}

const KEYS = ['redis', 'prefix', 'retention', 'maxEntries', 'publishTimeout', 'maxPending', 'strict']

// ioredis selects what is no number unasked, and nobody catches what comes of it.
const isDatabase = (db: unknown): boolean => db === undefined || db === null || /^\d+$/.test(String(db))

const isUrl = (text: string): boolean => {
  // ioredis takes a port, and the path of a socket, too.
  const url = text.replace(/^(?:\d+$|(?:unix:\/\/)?\/(?!\/)[^?]*)/, 'redis://')
  try {
    const { username, password, pathname, searchParams } = new URL(/^rediss?:\/\//.test(url) ? url : `redis://${url}`)
    decodeURIComponent(`${username}:${password}`)
    return text !== '' && /^\/?\d*$/.test(pathname) && isDatabase(searchParams.get('db'))
  } catch {
    return false
  }
}

const checkServer = (server: unknown): Server => {
  if (server === undefined) return server
  if (typeof server === 'string') {
    if (isUrl(server)) return server
    // Not what it is: there may be a password in it.
    throw new TypeError('Expected `redis` to be a URL as redis://user:password@host:6379/0, its user and password encoded by encodeURIComponent()')
  }
  if (!isObject(server) || Array.isArray(server)) throw new TypeError(expected('redis', 'a URL or the options of ioredis', server))
  if ('duplicate' in server) {
    throw new TypeError(
      'Expected `redis` to be a URL or the options of ioredis, got a client; give what that was made of: the broker makes its own connections',
    )
  }
  const { db } = server as RedisOptions
  if (!isDatabase(db)) throw new TypeError(expected('redis.db', 'the number of a database', db))
  return server
}

const checkPrefix = (prefix: unknown): string => {
  // Braces would move the part that Redis Cluster hashes.
  if (!/^[^{}]+$/.test(checkString('prefix', prefix))) throw new RangeError(expected('prefix', 'a non-empty string without braces', prefix))
  return prefix as string
}

/** {@link RedisBrokerOptions}, checked, with their defaults. */
export interface CheckedRedisOptions {
  readonly server: Server
  /** Of the log. */
  readonly key: string
  readonly retention: number
  readonly maxEntries: number
  readonly publishTimeout: number
  readonly maxPending: number
  readonly strict: boolean
}

export const checkRedisBrokerOptions = (options: RedisBrokerOptions): CheckedRedisOptions => {
  checkKeys('options', options, KEYS)
  const { prefix = 'sse', retention = 300_000, maxEntries = 200_000, publishTimeout = 10_000, maxPending = 10_000, strict = false } = options
  const server = checkServer(options.redis)
  const key = `{${checkPrefix(prefix)}:0}:log`
  milliseconds('publishTimeout', publishTimeout)
  if (milliseconds('retention', retention) < publishTimeout) {
    throw new RangeError(expected('retention', `at least publishTimeout (${publishTimeout})`, retention))
  }
  positiveInteger('maxEntries', maxEntries)
  if (positiveInteger('maxPending', maxPending) > MOST_UNDER_WAY) {
    throw new RangeError(expected('maxPending', `at most ${MOST_UNDER_WAY}`, maxPending))
  }
  if (typeof strict !== 'boolean') throw new TypeError(expected('strict', 'a boolean', strict))
  return { server, key, retention, maxEntries, publishTimeout, maxPending, strict }
}
