import type { BrokerEntry } from '../broker.ts'
import type { Connection } from './connection.ts'
import type { ReadMarks } from './copies.ts'
import { compare, formatCursor, parseCursor, redisIdOf, same, type Cursor } from './cursor.ts'
import { decode } from './entry.ts'
import { closedError, type Link } from './link.ts'
import { busy } from './message.ts'
import { range, readMarks, type PageReader } from './page.ts'
import { PageSize } from './page-size.ts'
import type { Reader } from './reader.ts'

// Reads at the same time; the others wait.
const MOST_AT_ONCE = 8
// Of those that wait. While Redis is away they are kept, also for clients that have left.
const MOST_WAITING = 10_000
const MOST_GIVEN = 10_000
// Pages for one read: an event that comes later is not proved to be the next.
const MOST_PAGES = 25

/** How a {@link Replay} is made. */
export interface ReplayOptions {
  readonly link: Link
  readonly key: string
  readonly readPage: PageReader
  readonly reader: Reader
}

interface Answer {
  readonly entries: BrokerEntry[]
  /** Nothing newer was looked for. */
  readonly upTo: Cursor
}

/** Reads what is no longer in the hub's window, on a connection of its own: the others must not wait for it. */
export class Replay {
  readonly #options: ReplayOptions
  readonly #running = new Map<string, Promise<Answer | undefined>>()
  readonly #size = new PageSize()
  readonly #waiting: (() => void)[] = []
  /** Ids that are real, lately: those that were proved, and those that answers ended with, from where one goes on. */
  readonly #given = new Set<string>()
  #free = MOST_AT_ONCE
  /** What leads to the same server as the connection that the reader reads through, and that one: until one of them is another. */
  #proved: { readonly connection: Connection; readonly source: Connection | undefined } | undefined
  /** The oldest entry that was kept when somebody last asked for one that was not. */
  #oldest: Cursor | undefined

  constructor(options: ReplayOptions) {
    this.#options = options
  }

  /** As `Broker.read()`: while Redis is away it waits, since nothing is proved or disproved by that. */
  async read(after: string, limit: number): Promise<BrokerEntry[] | undefined> {
    if (this.#options.link.closed) throw closedError()
    const cursor = parseCursor(after)
    if (cursor === undefined) return undefined
    const asked = this.#options.reader.newest
    // A thousand clients that were cut at the same place ask for the same.
    const key = `${after} ${limit}`
    let running = this.#running.get(key)
    if (running === undefined) {
      if (this.#running.size >= MOST_WAITING) throw busy(`${MOST_WAITING} reads`)
      running = this.#answer(cursor, limit).finally(() => this.#running.delete(key))
      this.#running.set(key, running)
    }
    const answer = await running
    // The sink may have been told more since that read began, and who asks takes it that nothing of it comes after the id.
    if (answer?.entries.length === 0 && asked !== undefined && compare(answer.upTo, asked) < 0) return this.read(after, limit)
    return answer?.entries
  }

  /** As `Broker.trimmed()`. The entry is gone, and with it what its tag could be compared with: so it is the place alone that counts. */
  trimmed(id: string): boolean {
    const { since } = this.#options.reader
    const [cursor, oldest] = [parseCursor(id), this.#oldest]
    return cursor !== undefined && since !== undefined && oldest !== undefined && compare(since, cursor) <= 0 && compare(cursor, oldest) < 0
  }

  close(): void {
    this.#options.link.close()
  }

  async #answer(after: Cursor, limit: number): Promise<Answer | undefined> {
    const { key, reader } = this.#options
    const id = formatCursor(after)
    const isAhead = reader.newest === undefined || compare(after, reader.newest) > 0
    if (isAhead || !this.#given.has(id)) {
      // A page would be sent also to who asks for what is not there: a hundred events, for the asking.
      if (!(await this.#inTurn(async connection => this.#isThere(connection, after)))) return undefined
      // A client may be ahead of the process that it comes back to. It waits, and is never rewound.
      if (!(await reader.passed(after))) {
        if (this.#options.link.closed) throw closedError()
        return undefined
      }
      this.#give(id)
    }
    // Not in turn: those whose places are known need not wait for it.
    const size = new PageSize()
    const read: ReadMarks = async (from, to) =>
      this.#persist(async connection => this.#ofOurs(connection, async () => readMarks(connection, key, from, to, size)))
    if (!(await reader.copies.reach(after, read))) return undefined
    const answer = await this.#inTurn(async connection => this.#ofOurs(connection, async () => this.#read(connection, after, limit)))
    const last = answer?.entries.at(-1)
    if (last !== undefined) this.#give(last.id)
    return answer
  }

  #give(id: string): void {
    this.#given.add(id)
    if (this.#given.size > MOST_GIVEN) this.#given.delete(this.#given.values().next().value!)
  }

  async #inTurn<T>(work: (connection: Connection) => Promise<T>): Promise<T> {
    if (this.#free === 0) await new Promise<void>(resolve => this.#waiting.push(resolve))
    else this.#free--
    try {
      return await this.#persist(work)
    } finally {
      const next = this.#waiting.shift()
      if (next === undefined) this.#free++
      else next()
    }
  }

  async #persist<T>(work: (connection: Connection) => Promise<T>): Promise<T> {
    const { link } = this.#options
    for (;;) {
      const connection = await link.get()
      try {
        const result = await work(connection)
        link.proven()
        return result
      } catch (error) {
        link.drop(connection, error)
      }
    }
  }

  /**
   * What is read where the newest entry is that the reader knows. A connection that was made before a failover may lead to what was
   * the master then, whose log has gone another way.
   */
  async #ofOurs<T>(connection: Connection, read: () => Promise<T>): Promise<T> {
    const { key, reader } = this.#options
    const { newest, source } = reader
    if (this.#proved?.connection === connection && this.#proved.source === source) return read()
    const id = redisIdOf(newest!)
    // In one go: what could come in between, the reader would notice.
    const [[raw], result] = await Promise.all([range(connection, 'XRANGE', key, id, id, 1), read()])
    if (raw !== undefined && same(decode(raw).cursor, newest!)) this.#proved = { connection, source }
    // To find nothing is an answer anywhere.
    else if (result !== undefined) throw new Error('Redis has another log here than the one that is followed')
    return result
  }

  async #isThere(connection: Connection, cursor: Cursor): Promise<boolean> {
    const id = redisIdOf(cursor)
    // With what comes before it, if it is not: when there is nothing, it may be gone.
    const [raw] = await range(connection, 'XREVRANGE', this.#options.key, id, '-', 1)
    if (raw === undefined) await this.#lookForOldest(connection)
    return raw !== undefined && same(decode(raw).cursor, cursor)
  }

  async #read(connection: Connection, after: Cursor, limit: number): Promise<Answer | undefined> {
    const { key, readPage, reader } = this.#options
    // What comes later the hub is told as it comes.
    const upTo = reader.newest!
    const entries: BrokerEntry[] = []
    const answer = { entries, upTo }
    let at = after
    for (let pages = 0; pages < MOST_PAGES; pages++) {
      // Some entries are no events: a few, or nearly all where little is published.
      const most = (limit + Math.floor(limit / 5)) * 2 ** pages
      const page = await readPage(connection, key, at, this.#size, most)
      if (page === undefined) {
        await this.#lookForOldest(connection)
        return undefined
      }
      // The log has begun anew meanwhile.
      if (!reader.copies.knows(after)) return undefined
      for (const entry of page.entries) {
        at = entry.cursor
        if (compare(at, upTo) > 0) return answer
        if (reader.copies.has(at) || entry.event === undefined) continue
        entries.push({ id: formatCursor(at), channel: entry.channel, event: entry.event })
        if (entries.length === limit) return answer
      }
      // Not the rest of them as well, where they are large.
      if (!page.more || (entries.length > 0 && this.#size.isSmall)) return answer
    }
    return entries.length > 0 ? answer : undefined
  }

  async #lookForOldest(connection: Connection): Promise<void> {
    const { key, reader } = this.#options
    const [first] = await range(connection, 'XRANGE', key, '-', '+', 1)
    const oldest = first && decode(first).cursor
    // What begins after all that we know is another log.
    if (oldest !== undefined && reader.newest !== undefined && compare(oldest, reader.newest) <= 0) this.#oldest = oldest
  }
}
