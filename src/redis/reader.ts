import { setTimeout } from 'node:timers/promises'
import type { BrokerSink } from '../broker.ts'
import type { Connection } from './connection.ts'
import { Copies } from './copies.ts'
import { compare, formatCursor, parseCursor, redisIdOf, type Cursor } from './cursor.ts'
import type { LogEntry, MessageId } from './entry.ts'
import type { Link } from './link.ts'
import { isTrimmed, raise, readTail, serverTime, type PageReader } from './page.ts'
import { PageSize } from './page-size.ts'

// Milliseconds between two rounds, at least.
const CLOSE = 1
// How much longer than it was told the bell may take.
const BELL_GRACE = 2_000

/** Why the log has no continuity: it lost something, or let go of it. */
export type GapReason = 'lost' | 'trimmed'

/** How a {@link Reader} is made. */
export interface ReaderOptions {
  readonly link: Link
  readonly key: string
  /** How long before a place in the log messages are learned, so that copies of them are known after it. Milliseconds. */
  readonly lookBack: number
  /** How long the bell waits for the next entry. Milliseconds. */
  readonly block: number
  readonly nextId: () => MessageId
  readonly readPage: PageReader
  readonly sink: BrokerSink
  /** Told of each entry that is no copy, before the sink. */
  readonly onEntry: (entry: LogEntry) => void
  /** Told that the log begins anew, before the sink. `fork`: the entry that is gone from a log that holds older ones still. */
  readonly onGap: (reason: GapReason, fork: Cursor | undefined) => void
  /** Told of the newest entry, each time that something was read. */
  readonly onRead: (newest: Cursor) => void
}

/**
 * Follows the log, and tells the sink.
 *
 * The bell (XREAD) never carries data: it only says that something is there, or that time has passed. What is there is read by
 * pages that are anchored in the newest entry known, so that continuity is proved at the moment of reading.
 */
export class Reader {
  readonly #options: ReaderOptions
  readonly #size = new PageSize()
  #newest: Cursor | undefined
  #since: Cursor | undefined
  #source: Connection | undefined
  /** The server's time when the log began anew for us: who announces later that something older is gone tells us nothing new. */
  #begun = 0
  #waiting: { cursor: Cursor; tell: (passed: boolean) => void }[] = []
  #ready!: () => void
  #failed!: (error: unknown) => void
  /** Resolves at the first position. Rejects when there will be none: closed, or no ioredis. */
  readonly ready: Promise<void> = new Promise((resolve, reject) => {
    this.#ready = resolve
    this.#failed = reject
  })
  /** Those that are known from some place on. */
  readonly copies: Copies
  /** Copies that were dropped. */
  duplicates = 0
  /** Entries of somebody else's that were passed over. */
  poison = 0

  constructor(options: ReaderOptions) {
    this.#options = options
    this.copies = new Copies(options.lookBack)
    this.ready.catch(() => {})
  }

  /** The newest entry that the sink was told of. */
  get newest(): Cursor | undefined {
    return this.#newest
  }

  /** What led to the server that was last seen to have {@link newest}. */
  get source(): Connection | undefined {
    return this.#source
  }

  /** The oldest entry from which on the log is known to have gone on without a break. */
  get since(): Cursor | undefined {
    return this.#since
  }

  /** Publishers that were heard of within so many milliseconds. */
  publishers(within: number): number {
    return this.#newest === undefined ? 0 : this.copies.publishers(this.#newest.ms, within)
  }

  /** Resolves with true when the sink has been told of a cursor that is there, with false if the log begins anew before, or ends. */
  async passed(cursor: Cursor): Promise<boolean> {
    if (this.#options.link.closed) return false
    if (this.#newest !== undefined && compare(cursor, this.#newest) <= 0) return true
    return new Promise(tell => this.#waiting.push({ cursor, tell }))
  }

  /** Follows the log until it is closed. Never rejects. */
  async run(): Promise<void> {
    const { link } = this.#options
    try {
      for (;;) {
        const connection = await link.get()
        try {
          await this.#follow(connection)
        } catch (error) {
          link.drop(connection, error)
        }
      }
    } catch (error) {
      this.#failed(error)
    }
  }

  /** The sink hears nothing more. */
  close(): void {
    this.#options.link.close()
    this.#wake(() => false)
  }

  #wake(passed: (cursor: Cursor) => boolean | undefined): void {
    if (this.#waiting.length === 0) return
    const waiting = this.#waiting
    this.#waiting = []
    for (const each of waiting) {
      const answer = passed(each.cursor)
      if (answer === undefined) this.#waiting.push(each)
      else each.tell(answer)
    }
  }

  #read(newest: Cursor): void {
    this.#options.onRead(newest)
    this.#wake(cursor => compare(cursor, newest) <= 0 || undefined)
  }

  async #follow(connection: Connection): Promise<void> {
    const { link, key, block } = this.#options
    for (let last = 0; ;) {
      if (this.#newest === undefined) await this.#begin(connection)
      else if (!(await this.#catchUp(connection, this.#newest))) await this.#beginAgain(connection, this.#newest)
      if (this.#options.link.closed) return
      // Events that follow each other closely are read together: a round for each would cost Redis and us three commands.
      if (performance.now() - last < CLOSE) await setTimeout(CLOSE)
      last = performance.now()
      const from = redisIdOf(this.#newest!)
      await connection.within(block + BELL_GRACE, async () => connection.call('XREAD', 'COUNT', 1, 'BLOCK', block, 'STREAMS', key, from))
      // Not before: a server that lets us read, and not wait, would be asked without a pause.
      link.proven()
    }
  }

  /** Reads what follows `from`. False: `from` is not there any more. */
  async #catchUp(connection: Connection, from: Cursor): Promise<boolean> {
    const { key, readPage } = this.#options
    for (let at = from; ; at = this.#newest!) {
      const page = await readPage(connection, key, at, this.#size)
      if (page === undefined) return false
      if (this.#options.link.closed) return true
      this.#source = connection
      for (const entry of page.entries) this.#take(entry)
      this.#read(this.#newest!)
      if (!page.more) return true
    }
  }

  async #begin(connection: Connection): Promise<void> {
    const begun = await serverTime(connection)
    const { entries, floor } = await this.#learn(connection)
    if (this.#options.link.closed) return
    this.#begun = begun
    this.#options.sink.position(formatCursor(entries[floor]!.cursor))
    for (const entry of entries.slice(floor + 1)) this.#tell(entry)
    this.#source = connection
    this.#newest = entries.at(-1)!.cursor
    this.#read(this.#newest)
    this.#ready()
  }

  async #beginAgain(connection: Connection, lost: Cursor): Promise<void> {
    const begun = await serverTime(connection)
    const { entries } = await this.#learn(connection)
    const isBehind = compare(entries.at(-1)!.cursor, lost) < 0
    // Somebody had put an entry at an id that no clock makes, and the log was deleted because of that.
    const isCured = isBehind && lost.exact !== undefined
    // The server's clock has gone back, perhaps: what is new would have older ids, and wake nobody who waits for what follows the lost one.
    if (isBehind && !isCured) await raise(connection, this.#options.key, lost)
    const isFork = !isCured && compare(entries[0]!.cursor, lost) <= 0
    const reason = !isFork && (await isTrimmed(connection, this.#options.key)) ? 'trimmed' : 'lost'
    if (this.#options.link.closed) return
    this.#begun = isCured ? begun : Math.max(begun, lost.ms)
    this.#source = connection
    // What we published ourselves may be there.
    for (const entry of entries) if (!this.copies.has(entry.cursor)) this.#options.onEntry(entry)
    this.#gap(reason, entries.at(-1)!.cursor, isFork ? lost : undefined)
    this.#read(this.#newest!)
  }

  #gap(reason: GapReason, position: Cursor, fork: Cursor | undefined): void {
    this.#newest = position
    this.#options.onGap(reason, fork)
    this.#options.sink.gap(reason, formatCursor(position))
    this.#wake(() => false)
  }

  /** Reads the end of the log, and which of its entries are copies. The log alone says so: every process comes to the same end. */
  async #learn(connection: Connection): Promise<{ entries: readonly LogEntry[]; floor: number }> {
    const { key, lookBack, nextId } = this.#options
    const { entries, floor, known } = await readTail(connection, key, lookBack, nextId, this.#size)
    this.copies.begin(entries, entries[known]!.cursor)
    this.#since = entries[0]!.cursor
    return { entries, floor }
  }

  #take(entry: LogEntry): void {
    this.#newest = entry.cursor
    this.copies.note(entry)
    const gone = entry.fork === undefined ? undefined : parseCursor(entry.fork)
    if (gone !== undefined && gone.ms > this.#begun) {
      // We may never have seen what others have, and lost.
      this.#begun = entry.cursor.ms
      this.#gap('lost', entry.cursor, undefined)
    } else {
      this.#tell(entry)
    }
  }

  #tell(entry: LogEntry): void {
    const { sink, onEntry } = this.#options
    const id = formatCursor(entry.cursor)
    const copy = this.copies.has(entry.cursor)
    if (copy) this.duplicates++
    else if (entry.kind === 'poison') this.poison++
    else onEntry(entry)
    // Whatever it is, a client may come back with its id.
    if (copy || entry.event === undefined) sink.position(id)
    else sink.event({ id, channel: entry.channel, event: entry.event })
  }
}
