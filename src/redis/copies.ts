import { compare, redisIdOf, type Cursor } from './cursor.ts'
import type { Mark } from './entry.ts'
import { Seen } from './seen.ts'

// How long a silent publisher is remembered, at least: those that live are counted, and a server's clock may be set forward.
const SHORTEST_MEMORY = 60_000
// Ids remembered, at most.
const MOST = 100_000
// Read at once to know more: about 200 000 entries. What lies further back is not proved.
const MOST_PAGES = 200

/** Reads the oldest entries of a range, both ends included as Redis has it. None: there are no more. */
export type ReadMarks = (from: string, to: string) => Promise<readonly Mark[]>

/**
 * Which entries repeat an older one, from some place of the log on.
 *
 * That place moves back when somebody asks for what is older, once for all who do: a crowd that comes back after a deploy would have
 * the same part of the log read for each of its pages.
 */
export class Copies {
  readonly #lookBack: number
  #seen = new Seen()
  #ids = new Set<string>()
  #known: Cursor | undefined
  /** From here back it would take too long. */
  #tooFar: Cursor | undefined
  #reaching: Promise<void> | undefined

  constructor(lookBack: number) {
    this.#lookBack = lookBack
  }

  /** The log begins anew, with these entries; what repeats an older one is known from `known` on. */
  begin(entries: readonly Mark[], known: Cursor): void {
    this.#seen = new Seen(Math.max(this.#lookBack, SHORTEST_MEMORY))
    this.#knowFrom(known, new Set())
    for (const entry of entries) this.note(entry)
  }

  /** The next entry of the log. */
  note({ message, cursor }: Mark): void {
    if (message === undefined || this.#seen.add(message, cursor.ms)) return
    if (this.#ids.size >= MOST) this.#knowFrom(cursor, new Set())
    this.#ids.add(redisIdOf(cursor))
  }

  /** Whether an entry repeats an older one, so far as is known. */
  has(cursor: Cursor): boolean {
    return this.#ids.has(redisIdOf(cursor))
  }

  /** Whether {@link has} knows everything after this place. */
  knows(place: Cursor): boolean {
    return this.#known !== undefined && compare(place, this.#known) >= 0
  }

  /** Publishers heard of within so many milliseconds of the log's time before `ms`. */
  publishers(ms: number, within: number): number {
    return this.#seen.alive(ms, within)
  }

  /** Has {@link has} know everything after a place, which must be there. False: that would take too long to find out. */
  async reach(place: Cursor, read: ReadMarks): Promise<boolean> {
    while (!this.knows(place)) {
      if (this.#tooFar !== undefined && compare(place, this.#tooFar) <= 0) return false
      this.#reaching ??= this.#reach(place, read).finally(() => (this.#reaching = undefined))
      await this.#reaching
    }
    return true
  }

  async #reach(place: Cursor, read: ReadMarks): Promise<void> {
    const [known, seen, found] = [this.#known!, new Seen(), new Set<string>()]
    const end = redisIdOf(known)
    let from = `${Math.max(0, place.ms - this.#lookBack)}-0`
    for (let pages = 0; pages < MOST_PAGES; pages++) {
      const page = await read(from, end)
      // The log has begun anew meanwhile: so does this, if it is wanted still.
      if (this.#known !== known) return
      for (const { message, cursor } of page) {
        if (message !== undefined && !seen.add(message, cursor.ms) && compare(cursor, place) > 0) found.add(redisIdOf(cursor))
      }
      const last = page.at(-1)?.cursor
      if (found.size + this.#ids.size > MOST) break
      if (last === undefined || compare(last, known) >= 0) {
        for (const id of found) this.#ids.add(id)
        return this.#knowFrom(place, this.#ids)
      }
      from = `(${redisIdOf(last)}`
    }
    this.#tooFar = place
  }

  #knowFrom(place: Cursor, ids: Set<string>): void {
    this.#known = place
    this.#ids = ids
    this.#tooFar = undefined
  }
}
