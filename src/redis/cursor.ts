/** A place in the log in Redis: the id of an entry, and a tag of what stands there. */
export interface Cursor {
  readonly ms: number
  readonly seq: number
  /** Two masters of a split brain can both make the entry `1-0`; the tag tells one from the other. */
  readonly tag: string
}

// Redis has 64 bits for each part. Times of this age have 13 digits; what is longer was not made by a clock.
const CURSOR = /^(0|[1-9]\d{0,14})-(0|[1-9]\d{0,14})\.([0-9a-z]{4})$/
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
  return { ms: Number(redisId.slice(0, dash)), seq: Number(redisId.slice(dash + 1)), tag }
}

/** A cursor as clients know it: `<ms>-<seq>.<tag>`. */
export const formatCursor = ({ ms, seq, tag }: Cursor): string => `${ms}-${seq}.${tag}`

/** What {@link formatCursor} gave. Undefined for anything else. */
export const parseCursor = (id: string): Cursor | undefined => {
  const [, ms, seq, tag] = CURSOR.exec(id) ?? []
  return ms === undefined || seq === undefined || tag === undefined ? undefined : { ms: Number(ms), seq: Number(seq), tag }
}

/** The id that Redis knows it by. */
export const redisIdOf = ({ ms, seq }: Cursor): string => `${ms}-${seq}`

/** Negative: `a` is older than `b`. The tag is no part of the order. */
export const compare = (a: Cursor, b: Cursor): number => a.ms - b.ms || a.seq - b.seq

/** The same place with the same entry. */
export const same = (a: Cursor, b: Cursor): boolean => a.ms === b.ms && a.seq === b.seq && a.tag === b.tag
