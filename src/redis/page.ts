import { isReply, type Connection } from './connection.ts'
import { redisIdOf, same, type Cursor } from './cursor.ts'
import { decode, decodeMark, encodeFields, type LogEntry, type Mark, type MessageId, type RawEntry } from './entry.ts'
import { sizeOf, type PageSize } from './page-size.ts'

// How long a read may take.
const REPLY_TIMEOUT = 5_000
// What the hub gets at start, at most: its own window is no larger by default.
const WINDOW = 10_000
const WINDOW_SIZE = 67_108_864
// Read backwards at start, at most.
const MOST = 200_000

const ask = async (connection: Connection, command: string, ...args: (string | number)[]): Promise<unknown> =>
  connection.within(REPLY_TIMEOUT, async () => connection.call(command, ...args))

/** Entries that follow another. `more`: there may be. */
export interface Page {
  readonly entries: LogEntry[]
  readonly more: boolean
}

/** Reads what follows an entry, at most so many. Undefined: that one is not there. */
export type PageReader = (connection: Connection, key: string, after: Cursor, size: PageSize, most?: number) => Promise<Page | undefined>

/**
 * Reads from the entry on, that one included; only if it comes first, the same by id and by tag, is the rest what follows it. A
 * read that is not anchored so cannot tell a log that went on from one that was wiped and begun anew.
 */
export const readPage: PageReader = async (connection, key, after, size, most = Infinity) => {
  const { raw, more } = await size.read(most + 1, async count => range(connection, 'XRANGE', key, redisIdOf(after), '+', count))
  const [first, ...entries] = raw.map(decode)
  return first !== undefined && same(first.cursor, after) ? { entries, more } : undefined
}

/** Entries, unproved. */
export const range = async (
  connection: Connection,
  command: 'XRANGE' | 'XREVRANGE',
  key: string,
  from: string,
  to: string,
  count: number,
): Promise<RawEntry[]> => (await ask(connection, command, key, from, to, 'COUNT', count)) as RawEntry[]

/** Entries as they are noted. */
export const readMarks = async (connection: Connection, key: string, from: string, to: string, size: PageSize): Promise<readonly Mark[]> => {
  const { raw } = await size.read(Infinity, async count => range(connection, 'XRANGE', key, from, to, count))
  return raw.map(decodeMark)
}

/** The end of the log, without a gap. */
export interface Tail {
  /** Oldest first, at least one. Those before `floor` have lost their events. */
  readonly entries: readonly LogEntry[]
  /** The index of the first of which it is known whether it is a copy. */
  readonly known: number
  /** The index of the one that the hub's window may stand on. */
  readonly floor: number
}

const stripped = (entry: LogEntry): LogEntry => ({ ...entry, event: undefined })

/**
 * Reads the end of the log: what fills a hub's window, and so many milliseconds before it, whose messages tell which of those in the
 * window are copies. An empty log gets an entry first: a position always names one that is there.
 */
export const readTail = async (connection: Connection, key: string, lookBack: number, nextId: () => MessageId, size: PageSize): Promise<Tail> => {
  const entries: LogEntry[] = []
  let whole = false
  // Those that keep their events.
  let [window, left] = [0, WINDOW_SIZE]
  for (let end = '+'; entries.length < MOST; end = `(${redisIdOf(entries.at(-1)!.cursor)}`) {
    const { raw, more } = await size.read(Infinity, async count => range(connection, 'XREVRANGE', key, end, '-', count))
    for (const each of raw) {
      left -= sizeOf(each)
      if (window < WINDOW && left >= 0) window++
      entries.push(window > entries.length ? decode(each) : stripped(decode(each)))
    }
    if (entries.length === 0) {
      await ask(connection, 'XADD', key, '*', ...encodeFields(nextId(), { begin: true }))
      return readTail(connection, key, lookBack, nextId, size)
    }
    whole = !more
    if (whole || (entries.length > window && entries[window]!.cursor.ms - entries.at(-1)!.cursor.ms > lookBack)) break
  }
  entries.reverse()
  const last = entries.length - 1
  const learned = entries[0]!.cursor.ms + lookBack
  const enough = whole ? 0 : entries.findIndex(entry => entry.cursor.ms > learned)
  // A burst that is longer than all of that: the window begins empty.
  const known = enough === -1 ? last : enough
  return { entries, known, floor: Math.max(known, last - window) }
}

/** Has all entries to come follow this one, wherever the server's clock stands. */
export const raise = async (connection: Connection, key: string, above: Cursor): Promise<void> => {
  try {
    await ask(connection, 'XSETID', key, redisIdOf(above))
  } catch (error) {
    // Another process was faster, or it is not allowed. Readers look without being woken, too, if later.
    if (!isReply(error)) throw error
  }
}

/** Whether the log has let go of entries on its own account. Redis before 7 does not say. */
export const isTrimmed = async (connection: Connection, key: string): Promise<boolean> => {
  const info = await ask(connection, 'XINFO', 'STREAM', key)
  // By turns with RESP2, and with RESP3 where the client maps it so.
  const flat: unknown[] = Array.isArray(info) ? info : Object.entries(info as object).flat()
  const figure = (name: string): number => Number(flat[flat.indexOf(name) + 1])
  return flat.includes('entries-added') && figure('entries-added') > figure('length')
}

/** The server's clock, in milliseconds. */
export const serverTime = async (connection: Connection): Promise<number> => {
  const [seconds, micros] = (await ask(connection, 'TIME')) as [string, string]
  return Number(seconds) * 1_000 + Math.floor(Number(micros) / 1_000)
}

/** What is wrong with how the server makes room, if anything. */
export const evictionFault = async (connection: Connection): Promise<string | undefined> => {
  const info = (await ask(connection, 'INFO', 'memory')) as string
  const policy = /^maxmemory_policy:(\S+)/m.exec(info)?.[1]
  const most = Number(/^maxmemory:(\d+)/m.exec(info)?.[1] ?? 0)
  if (most === 0 || policy?.startsWith('allkeys') !== true) return undefined
  return `Redis may evict the log: its maxmemory-policy is ${policy}; set it to noeviction or to one of volatile-*`
}
