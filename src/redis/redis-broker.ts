import type { Broker, BrokerEntry, BrokerSink, BrokerStats } from '../broker.ts'
import type { SseEvent } from '../event.ts'
import { isReply, type Load } from './connection.ts'
import { compare, formatCursor, type Cursor } from './cursor.ts'
import { ErrorGate } from './error-gate.ts'
import { closedError, Link } from './link.ts'
import { evictionFault, readPage, type PageReader } from './page.ts'
import { Pulse } from './pulse.ts'
import { Reader, type GapReason } from './reader.ts'
import { checkRedisBrokerOptions, type RedisBrokerOptions } from './redis-options.ts'
import { Replay } from './replay.ts'
import { Route } from './route.ts'
import { Writer } from './writer.ts'

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

// Between two heartbeats of a process.
const HEARTBEAT = 5_000
// How long a read waits for the next entry, before it looks whether the last one is there still.
const BLOCK = 5_000
// What a message may take on its way once its time is over, beside that time.
const SLACK = 5_000

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
    const { server, key, retention, maxEntries, publishTimeout, maxPending, strict } = checkRedisBrokerOptions(options)
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
        for (const each of [reads, writes]) each.recycle(error)
      },
      housekeep: async () => {
        // All together once per period, about, whoever it is.
        if (Math.random() * Math.max(1, this.#reader?.publishers(3 * HEARTBEAT) ?? 1) >= 1) return
        try {
          await writes.current?.call('XTRIM', key, 'MAXLEN', '~', maxEntries)
        } catch (error) {
          // A connection's end is told by others; a right that is missing would be by nobody.
          if (isReply(error)) this.#errors.tell(error)
        }
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
      const fault = await evictionFault(await this.#links[0]!.get())
      if (fault !== undefined) this.#errors.tell(new Error(fault))
    } catch {
      // INFO may be forbidden.
    }
  }

  #throwIfClosed(): void {
    if (this.#closing !== undefined) throw closedError()
  }
}
