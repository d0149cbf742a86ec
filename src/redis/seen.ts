import type { MessageId } from './entry.ts'

// Messages that wait at the same time lie within so many of each other, however often they are sent again.
const WINDOW = 131_072
// Words of the bits that a publisher begins with: most publish little.
const FIRST = 8

/** The most messages that one publisher may have under way. A copy that lags behind by more is taken for one by its number alone. */
export const MOST_UNDER_WAY = 100_000

interface Publisher {
  lowest: number
  highest: number
  /** Of the numbers from the lowest to the highest, each at its place modulo their length, which is a power of two. */
  bits: Uint32Array
  at: number
}

/**
 * Which messages have been in the log: one that comes a second time is a copy, sent because the reply to the first was lost.
 *
 * A window of bits for each publisher, as IPsec has against replays (RFC 4303, 3.4.3): a set of all messages would grow with the rate.
 */
export class Seen {
  readonly #publishers = new Map<string, Publisher>()
  readonly #horizon: number
  /** When those that had gone were last looked for. */
  #swept = 0

  /** `horizon`: a publisher that is silent for longer, by the log's time in milliseconds, has gone, and its messages will not come again. */
  constructor(horizon: number = Infinity) {
    this.#horizon = horizon
  }

  /** Publishers heard of within so many milliseconds of the log's time before `ms`. */
  alive(ms: number, within: number): number {
    let alive = 0
    for (const { at } of this.#publishers.values()) if (ms - at <= within) alive++
    return alive
  }

  /** Notes a message, at the log's time `ms`. False: it had been noted before. */
  add({ publisher, count }: MessageId, ms: number): boolean {
    let known = this.#publishers.get(publisher)
    if (known === undefined) {
      this.#forget(ms)
      known = { lowest: count, highest: count, bits: new Uint32Array(FIRST), at: ms }
      this.#publishers.set(publisher, known)
    } else {
      known.at = ms
      if (count <= known.highest - WINDOW) return false
      if (count >= known.lowest && count <= known.highest && isSet(known.bits, count)) return false
      reach(known, count)
    }
    known.bits[wordOf(known.bits, count)]! |= 1 << (count & 31)
    return true
  }

  /** Once in a while: publishers that come by the thousand would each have all others looked at. */
  #forget(ms: number): void {
    if (ms - this.#swept <= this.#horizon / 2) return
    this.#swept = ms
    for (const [name, { at }] of this.#publishers) if (ms - at > this.#horizon) this.#publishers.delete(name)
  }
}

const wordOf = (bits: Uint32Array, count: number): number => (count >>> 5) & (bits.length - 1)

const isSet = (bits: Uint32Array, count: number): boolean => ((bits[wordOf(bits, count)]! >>> (count & 31)) & 1) === 1

/** Makes room for a number beside those from the lowest to the highest, as far as the window goes. */
const reach = (known: Publisher, count: number): void => {
  const { bits, highest } = known
  known.highest = Math.max(highest, count)
  const from = Math.max(known.lowest, known.highest - WINDOW + 1)
  known.lowest = Math.min(from, count)
  const words = Math.ceil((known.highest - known.lowest + 1) / 32)
  if (words > bits.length) {
    let { length } = bits
    while (length < words) length *= 2
    known.bits = new Uint32Array(length)
    for (let each = from; each <= highest; each++) if (isSet(bits, each)) known.bits[wordOf(known.bits, each)]! |= 1 << (each & 31)
  } else {
    for (let between = Math.max(highest + 1, count - WINDOW + 1); between < count; between++) {
      bits[wordOf(bits, between)]! &= ~(1 << (between & 31))
    }
  }
}
