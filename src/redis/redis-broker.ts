import type { RedisOptions } from 'ioredis'
import type { Broker, BrokerEntry, BrokerSink, BrokerStats } from '../broker.ts'
import type { SseEvent } from '../event.ts'
import { checkKeys, checkString, expected, isObject, milliseconds, positiveInteger } from '../validate.ts'
import type { Load, Server } from './connection.ts'
import { compare, formatCursor, type Cursor } from './cursor.ts'
import { ErrorGate } from './error-gate.ts'
import { closedError, Link } from './link.ts'
import { evictionFault, readPage, type PageReader } from './page.ts'
import { Pulse } from './pulse.ts'
import { Reader, type GapReason } from './reader.ts'
import { Replay } from './replay.ts'
import { Route } from './route.ts'
import { MOST_UNDER_WAY } from './seen.ts'
import { Writer } from './writer.ts'

/** What a {@link RedisBroker} is made of. Times are milliseconds. */
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
  /** How long events are kept in Redis, at least. Default 300 000. */
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

/** What {@link RedisBroker.stats} says. */
export interface RedisBrokerStats extends BrokerStats {
  /** True while our own heartbeat has come back through the log within 15 s. */
  readonly up: boolean
  /** Milliseconds that the last heartbeat took, through writer and reader. Undefined before the first. */
  readonly lag: number | undefined
  /** Publishes that Redis has not acknowledged. */
  readonly pending: number
  /** Connections that were made beyond the first of each kind, attempts included. */
  readonly reconnects: number
  /** Entries dropped since they repeat another whose acknowledgement was lost. */
  readonly duplicates: number
  /** Entries passed over since no hub wrote them. */
  readonly poison: number
  /** Losses of continuity, by reason. */
  readonly gaps: Readonly<Record<GapReason, number>>
  /** The newest id, and its age in milliseconds by this process's clock. */
  readonly window: { readonly position: string | undefined; readonly age: number | undefined }
}

/**
 * What tests exchange. No part of the API.
 *
 * @internal
 */
export interface Parts {
  load?: Load | undefined
  readPage?: PageReader
  /** How long the bell waits. */
  block?: number
  /** Between two heartbeats. */
  heartbeat?: number
}

const KEYS = ['redis', 'prefix', 'retention', 'maxEntries', 'publishTimeout', 'maxPending', 'strict']
// Between two heartbeats of a process.
const HEARTBEAT = 5_000
// How long a read waits for the next entry, before it looks whether the last one is there still.
const BLOCK = 5_000
// What a message may take on its way once its time is over, beside that time.
const SLACK = 5_000

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

/**
 * A {@link Broker} on a Redis stream: one log, which every process appends to and follows, so that a client may come back to any
 * process. Needs ioredis, version 5 or 6, and Redis 6.2 or newer.
 *
 * While Redis is away, publishes wait and are sent again, then reject `ERR_SSE_BROKER_UNAVAILABLE`; readers go on from where they
 * were, and prove that nothing is missing. What Redis has lost is told as a gap, never passed over.
 *
 * @throws TypeError or RangeError for wrong options, at once. Without ioredis `start` and `publish` reject with an `SseError` that
 * says what to install.
 */
export class RedisBroker implements Broker {
  /** It queues them itself, for `publishTimeout` at most. */
  readonly takesEarly = true
  readonly #links: readonly Link[]
  readonly #writer: Writer
  readonly #makeReader: (sink: BrokerSink) => Reader
  readonly #makeReplay: (reader: Reader) => Replay
  readonly #pulse: Pulse
  readonly #gaps: Record<GapReason, number> = { lost: 0, trimmed: 0 }
  readonly #errors = new ErrorGate()
  #reader: Reader | undefined
  #replay: Replay | undefined
  /** The newest entry that is gone, until the log says so. */
  #fork: Cursor | undefined
  #closing: Promise<void> | undefined

  constructor(options?: RedisBrokerOptions)
  /** @internal */
  constructor(options: RedisBrokerOptions | undefined, parts: Parts)
  constructor(options: RedisBrokerOptions = {}, parts: Parts = {}) {
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

    const onFailure = (error: unknown): void => {
      this.#errors.tell(error)
      writer.unreachable(error)
    }
    const route = new Route()
    const link = (): Link => new Link({ server, route, load: parts.load, onFailure })
    const [writes, reads, replays] = [link(), link(), link()]
    this.#links = [writes, reads, replays]
    const writer = new Writer({ link: writes, key, retention, publishTimeout, maxPending, strict, onFailure })
    const lookBack = publishTimeout + SLACK
    const page = parts.readPage ?? readPage
    this.#writer = writer
    this.#pulse = new Pulse({
      period: parts.heartbeat ?? HEARTBEAT,
      beat: () => {
        this.#announce()
        return writer.write({ heartbeat: true })
      },
      onLate: error => {
        this.#errors.tell(error)
        this.#reader?.recycle(error)
        writer.recycle(error)
      },
      housekeep: async () => {
        // All together once per period, about, whoever it is.
        if (Math.random() * Math.max(1, this.#reader?.publishers(3 * HEARTBEAT) ?? 1) >= 1) return
        await writes.current?.call('XTRIM', key, 'MAXLEN', '~', maxEntries)
      },
    })
    this.#makeReader = sink =>
      new Reader({
        link: reads,
        key,
        lookBack,
        block: parts.block ?? BLOCK,
        nextId: () => writer.nextId(),
        readPage: page,
        sink,
        onEntry: ({ message, cursor, kind }) => {
          if (message === undefined) return
          if (kind === 'heartbeat' && writer.isOwn(message)) this.#pulse.heard()
          writer.saw(message, cursor)
        },
        onGap: (reason, fork) => this.#gap(reason, fork),
        onRead: newest => (writer.newest = newest.ms),
      })
    this.#makeReplay = reader => new Replay({ link: replays, key, readPage: page, reader })
  }

  async start(sink: BrokerSink): Promise<void> {
    this.#throwIfClosed()
    this.#errors.open(error => sink.error(error))
    const reader = (this.#reader = this.#makeReader(sink))
    this.#replay = this.#makeReplay(reader)
    void reader.run()
    try {
      await reader.ready
    } catch (error) {
      this.#writer.fail(error)
      throw error
    }
    this.#throwIfClosed()
    this.#writer.open()
    this.#pulse.start()
    void this.#checkEviction()
  }

  async publish(channel: string | null, event: SseEvent): Promise<string> {
    return this.#writer.write({ channel, event })
  }

  async read(after: string, limit: number): Promise<BrokerEntry[] | undefined> {
    this.#throwIfClosed()
    try {
      return await this.#replay?.read(after, limit)
    } catch (error) {
      // Too many wait. Once closed, the gate is too.
      this.#errors.tell(error)
      throw error
    }
  }

  trimmed(id: string): boolean {
    return this.#replay?.trimmed(id) === true
  }

  stats(): RedisBrokerStats {
    const newest = this.#reader?.newest
    return {
      up: this.#closing === undefined && this.#pulse.up,
      lag: this.#pulse.lag,
      pending: this.#writer.pending,
      reconnects: this.#links.reduce((sum, { attempts }) => sum + Math.max(0, attempts - 1), 0),
      duplicates: this.#reader?.duplicates ?? 0,
      poison: this.#reader?.poison ?? 0,
      gaps: { ...this.#gaps },
      window: { position: newest && formatCursor(newest), age: newest && Math.max(0, Date.now() - newest.ms) },
    }
  }

  /** Lets what was published arrive, for half a second at most; then ends every connection. */
  async close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    this.#errors.close()
    this.#pulse.stop()
    this.#reader?.close()
    this.#replay?.close()
    await this.#writer.close()
    for (const link of this.#links) link.close()
  }

  #gap(reason: GapReason, fork: Cursor | undefined): void {
    this.#gaps[reason]++
    this.#pulse.lost()
    this.#writer.lost()
    if (fork === undefined) return
    if (this.#fork === undefined || compare(this.#fork, fork) < 0) this.#fork = fork
    this.#announce()
  }

  /** Those that had not read so far see nothing missing. */
  #announce(): void {
    const fork = this.#fork
    if (fork === undefined) return
    this.#writer.write({ fork: formatCursor(fork) }).then(
      () => {
        if (this.#fork === fork) this.#fork = undefined
      },
      // Again with the next heartbeat.
      () => {},
    )
  }

  async #checkEviction(): Promise<void> {
    try {
      const connection = this.#links[0]!.current ?? (await this.#links[0]!.get())
      const fault = await evictionFault(connection)
      if (fault !== undefined) this.#errors.tell(new Error(fault))
    } catch {
      // INFO may be forbidden.
    }
  }

  #throwIfClosed(): void {
    if (this.#closing !== undefined) throw closedError()
  }
}
