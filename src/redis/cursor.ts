/** A place in the log in Redis: the id of an entry, and a tag of what stands there. */
export interface Cursor {
  readonly ms: number
  readonly seq: number
  /** The id as Redis has it, where these two are rounded: no clock made that one. */
  readonly exact?: string
  /** Two masters of a split brain can both make the entry `1-0`; the tag tells one from the other. */
  readonly tag: string
}

const CURSOR = /^((?:0|[1-9]\d{0,19})-(?:0|[1-9]\d{0,19}))\.([0-9a-z]{4})$/
// Redis has 64 bits for each part, and answers with an error to more.
const LARGEST = 2n ** 64n - 1n
const TAGS = 36 ** 4

/** Four characters that stand for a text (FNV-1a, unsigned). */
export const tagOf = (text: string): string => {
  let hash = 0x81_1c_9d_c5
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01_00_01_93)
  return ((hash >>> 0) % TAGS).toString(36).padStart(4, '0')
}

/** The cursor of an entry of Redis. */
export const cursorOf = (redisId: string, tag: string): Cursor => {
  const dash = redisId.indexOf('-')
  const [ms, seq] = [Number(redisId.slice(0, dash)), Number(redisId.slice(dash + 1))]
  return ms <= Number.MAX_SAFE_INTEGER && seq <= Number.MAX_SAFE_INTEGER ? { ms, seq, tag } : { ms, seq, tag, exact: redisId }
}

/** A cursor as clients know it: `<ms>-<seq>.<tag>`. */
export const formatCursor = (cursor: Cursor): string => `${redisIdOf(cursor)}.${cursor.tag}`

/** What {@link formatCursor} gave. Undefined for anything else. */
export const parseCursor = (id: string): Cursor | undefined => {
  const [, redisId, tag] = CURSOR.exec(id) ?? []
  if (redisId === undefined || tag === undefined) return undefined
  const cursor = cursorOf(redisId, tag)
  return cursor.exact === undefined || partsOf(cursor).every(part => part <= LARGEST) ? cursor : undefined
}

/** The id that Redis knows it by. */
export const redisIdOf = ({ ms, seq, exact }: Cursor): string => exact ?? `${ms}-${seq}`

const partsOf = (cursor: Cursor): bigint[] => redisIdOf(cursor).split('-').map(BigInt)

/** Negative: `a` is older than `b`. The tag is no part of the order. */
export const compare = (a: Cursor, b: Cursor): number =>
  a.exact === undefined && b.exact === undefined ? a.ms - b.ms || a.seq - b.seq : compareExactly(a, b)

const compareExactly = (a: Cursor, b: Cursor): number => {
  const [[ms, seq], [otherMs, otherSeq]] = [partsOf(a), partsOf(b)] as [[bigint, bigint], [bigint, bigint]]
  return Number(ms - otherMs || seq - otherSeq)
}

/** The same place with the same entry. */
export const same = (a: Cursor, b: Cursor): boolean => a.ms === b.ms && a.seq === b.seq && a.tag === b.tag && a.exact === b.exact
