import type { RawEntry } from './entry.ts'

const FIRST = 50
// One of them is the proof, in most.
const LEAST = 2
const MOST = 1_000
// Characters.
const AIM = 4_194_304
// Milliseconds. A page that takes five times as long is given up, with the connection.
const SLOW = 1_000
// Characters of a page that has taken so long: where fewer do, it is not because of them, but by the length of the way, or how busy we are. With
// smaller pages yet, down to a single new entry each, nobody would catch up.
const AIM_SLOW = 131_072
// Milliseconds for which pages stay below one that failed: it may have been more than Redis lets wait for one client.
const CAREFUL = 60_000

/** Characters of an entry, about. */
export const sizeOf = ([, fields]: RawEntry): number => {
  let size = 0
  for (let i = 0; i < fields.length; i++) size += fields[i]!.length
  return size + 50
}

/**
 * How many entries make a page: about 4 MB, by the size of those that came before, and fewer on a narrow link. Pages that are counted
 * in entries alone never arrive where events are large, and each that was given up would be asked for again.
 */
export class PageSize {
  #count = FIRST
  #aim = AIM
  /** When a page last failed. */
  #failed = 0
  /** Characters of an entry, by the last page that had any. */
  #average = 0

  /** Whether entries are so large, or the link so narrow, that a page is less than one begins with. */
  get isSmall(): boolean {
    return this.#count < FIRST
  }

  /** Reads a page of so many entries, or of `most`. `more`: it is full. */
  async read(most: number, read: (count: number) => Promise<RawEntry[]>): Promise<{ raw: RawEntry[]; more: boolean }> {
    const asked = Math.max(LEAST, Math.min(this.#count, most))
    const begin = performance.now()
    try {
      const raw = await read(asked)
      this.#learn(asked, raw, performance.now() - begin)
      return { raw, more: raw.length === asked }
    } catch (error) {
      this.#failed = performance.now()
      if (this.#average > 0) this.#aim = Math.max(AIM_SLOW, Math.min(this.#aim, (this.#average * asked) / 2))
      this.#set(this.#count / 2)
      throw error
    }
  }

  #learn(asked: number, raw: readonly RawEntry[], ms: number): void {
    let size = 0
    for (const entry of raw) size += sizeOf(entry)
    if (performance.now() - this.#failed > CAREFUL) this.#aim = AIM
    const aim = ms > SLOW ? Math.max(AIM_SLOW, size / 2) : this.#aim
    const fitting = (aim * raw.length) / size
    // Many small entries say nothing of those that come a while later.
    const most = raw.length === asked ? Math.max(this.#count, asked * 2) : Math.max(FIRST, this.#count / 2)
    if (raw.length === 0) return
    this.#average = size / raw.length
    this.#set(Math.min(fitting, most))
  }

  #set(count: number): void {
    this.#count = Math.min(MOST, Math.max(LEAST, Math.floor(count)))
  }
}
