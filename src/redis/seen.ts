import type { MessageId } from './entry.ts'

// Messages that wait at the same time lie within so many of each other, however often they are sent again.
const WINDOW = 131_072
// A publisher that is silent for so long has gone: its heartbeat comes every few seconds.
const GONE = 3_600_000

/** The most messages that one publisher may have under way. A copy that lags behind by more is taken for one by its number alone. */
export const MOST_UNDER_WAY = 100_000

interface Publisher {
  highest: number
  readonly bits: Uint32Array
  at: number
}

/**
 * Which messages have been in the log: one that comes a second time is a copy, sent because the reply to the first was lost.
 *
 * A window of bits for each publisher, as IPsec has against replays (RFC 4303, 3.4.3): a set of all messages would grow with the rate.
 */
export class Seen {
  readonly #publishers = new Map<string, Publisher>()

  /** Publishers heard of within so many milliseconds of the log's time before `ms`. */
  alive(ms: number, within: number): number {
    let alive = 0
    for (const { at } of this.#publishers.values()) if (ms - at <= within) alive++
    return alive
  }

  /** Notes a message, at the log's time `ms`. False: it had been noted before. */
  add({ publisher, count }: MessageId, ms: number): boolean {
    const known = this.#publishers.get(publisher)
    if (known === undefined) {
      this.#forget(ms)
      const bits = new Uint32Array(WINDOW / 32)
      this.#publishers.set(publisher, { highest: count, bits, at: ms })
      set(bits, count)
      return true
    }
    known.at = ms
    if (count <= known.highest - WINDOW) return false
    if (count <= known.highest) {
      if (isSet(known.bits, count)) return false
    } else {
      if (count - known.highest >= WINDOW) known.bits.fill(0)
      else for (let between = known.highest + 1; between <= count; between++) clear(known.bits, between)
      known.highest = count
    }
    set(known.bits, count)
    return true
  }

  #forget(ms: number): void {
    for (const [name, { at }] of this.#publishers) if (ms - at > GONE) this.#publishers.delete(name)
  }
}

const isSet = (bits: Uint32Array, count: number): boolean => ((bits[(count % WINDOW) >>> 5]! >>> (count & 31)) & 1) === 1

const set = (bits: Uint32Array, count: number): void => {
  bits[(count % WINDOW) >>> 5]! |= 1 << (count & 31)
}

const clear = (bits: Uint32Array, count: number): void => {
  bits[(count % WINDOW) >>> 5]! &= ~(1 << (count & 31))
}
