import { checkKeys, expected } from './validate.ts'

/** What a {@link Log} keeps at most. Whatever is reached first counts. */
export interface LogLimits {
  readonly events: number
  readonly ms: number
  readonly bytes: number
}

const checkLimit = (name: string, value: number): number => {
  if (typeof value !== 'number') throw new TypeError(expected(name, 'a number', value))
  if (!(value >= 0)) throw new RangeError(expected(name, 'a number from 0 up', value))
  return value
}

/** The limits of options, with their defaults. */
export const checkLimits = (name: string, options: { [K in keyof LogLimits]?: number | undefined }): LogLimits => {
  checkKeys(name, options, ['events', 'ms', 'bytes'])
  const { events = 10_000, ms = 300_000, bytes = 67_108_864 } = options
  return { events: checkLimit('events', events), ms: checkLimit('ms', ms), bytes: checkLimit('bytes', bytes) }
}

interface Record<T> {
  readonly id: string
  /** Its value's own id, where it has one beside the log's. */
  readonly alias: string | undefined
  /** Absent in a record that only moves the position. */
  readonly value: T | undefined
  readonly bytes: number
  readonly at: number
}

// What a record takes beside its bytes, about.
const OVERHEAD = 200

/**
 * A bounded window of the newest values, in order. Each has an id, and a number one higher than the one before it. A reader is
 * such a number: the last one that it has seen.
 *
 * Pure: the time is passed in, milliseconds of any clock that does not go back.
 */
export class Log<T> {
  readonly #limits: LogLimits
  #records: (Record<T> | undefined)[] = []
  /** Records before this index are gone; the array itself is shortened now and then. */
  #head = 0
  /** The number of the record at index 0. */
  #base = 1
  #events = 0
  #bytes = 0
  #floor: string | undefined
  #lost = 0
  readonly #numbers = new Map<string, number>()
  /** Ids that were used again in the window, and how many uses are in it still: they prove nothing, until the last has gone. */
  readonly #reused = new Map<string, number>()

  constructor(limits: LogLimits) {
    this.#limits = limits
  }

  /** The newest id. Undefined before the first. */
  get position(): string | undefined {
    return this.#records.at(-1)?.id ?? this.#floor
  }

  /** The number of the newest record. */
  get newest(): number {
    return this.#base + this.#records.length - 1
  }

  /** Everything after this number is held. */
  get floor(): number {
    return this.#base + this.#head - 1
  }

  /** The newest number whose value was let go of: whoever has not seen it has missed something. Up to {@link floor}, the rest only moved the position. */
  get lost(): number {
    return this.#lost
  }

  /** The id that stands at {@link floor}: whoever has seen it can be told the rest. */
  get floorId(): string | undefined {
    return this.#floor
  }

  /** Values held. */
  get events(): number {
    return this.#events
  }

  get bytes(): number {
    return this.#bytes
  }

  /** Milliseconds since the oldest value. */
  age(now: number): number {
    const oldest = this.#records[this.#head]
    return oldest === undefined ? 0 : now - oldest.at
  }

  /** Adds a value, and returns its number. `alias`: the value's own id, by which it is found too, unless that is used twice. */
  append(id: string, value: T, bytes: number, now: number, alias?: string): number {
    this.#add({ id, alias, value, bytes: bytes + OVERHEAD, at: now })
    this.trim(now)
    return this.newest
  }

  /** Moves the position to `id`, without a value. */
  move(id: string, now: number): void {
    if (this.position === undefined) this.#floorAt(id)
    // It says again where it stands. An id that stood for two places would prove nothing.
    else if (id !== this.position) this.#add({ id, alias: undefined, value: undefined, bytes: OVERHEAD, at: now })
    this.trim(now)
  }

  /** Forgets everything, and begins anew at `id`. Numbers go on: no reader of before is mistaken for one of after. */
  reset(id: string): void {
    const next = this.newest + 1
    this.#records = []
    this.#head = 0
    // One number stands for the gap, so that who had read all of the old log is behind the floor of the new one.
    this.#base = next + 1
    this.#lost = next
    this.#events = this.#bytes = 0
    this.#numbers.clear()
    this.#reused.clear()
    this.#floorAt(id)
  }

  /** The number that `id` stands for. Undefined when it is not in the window (any more), or stands for several. */
  locate(id: string): number | undefined {
    return this.#reused.has(id) ? undefined : this.#numbers.get(id)
  }

  /** True when `id` stands for several, and so proves nothing. */
  isReused(id: string): boolean {
    return this.#reused.has(id)
  }

  /** The value of a number; undefined when it is none, or out of the window. */
  at(number: number): T | undefined {
    return this.#records[number - this.#base]?.value
  }

  /** Lets go of what the limits no longer cover. */
  trim(now: number): void {
    const { events, ms, bytes } = this.#limits
    let oldest: Record<T> | undefined
    while ((oldest = this.#records[this.#head]) !== undefined) {
      if (this.#events <= events && this.#bytes <= bytes && now - oldest.at <= ms) break
      this.#drop(oldest)
    }
    if (this.#head > 1_024 && this.#head * 2 > this.#records.length) {
      this.#records = this.#records.slice(this.#head)
      this.#base += this.#head
      this.#head = 0
    }
  }

  #add(record: Record<T>): void {
    this.#records.push(record)
    this.#bytes += record.bytes
    if (record.value !== undefined) this.#events++
    this.#index(record.id, this.newest)
    if (record.alias !== undefined && record.alias !== record.id) this.#index(record.alias, this.newest)
  }

  #drop(record: Record<T>): void {
    const floor = this.#floor
    if (record.value !== undefined) this.#lost = this.#base + this.#head
    this.#records[this.#head++] = undefined
    this.#bytes -= record.bytes
    if (record.value !== undefined) this.#events--
    if (record.alias !== undefined && record.alias !== record.id) this.#unindex(record.alias)
    if (floor !== undefined) this.#unindex(floor)
    // Its id stays: it is the floor now.
    this.#floor = record.id
  }

  #floorAt(id: string): void {
    this.#floor = id
    this.#index(id, this.floor)
  }

  #index(id: string, number: number): void {
    if (this.#numbers.has(id)) this.#reused.set(id, (this.#reused.get(id) ?? 1) + 1)
    else this.#numbers.set(id, number)
  }

  #unindex(id: string): void {
    const uses = this.#reused.get(id) ?? 1
    if (uses > 1) {
      this.#reused.set(id, uses - 1)
    } else {
      this.#reused.delete(id)
      this.#numbers.delete(id)
    }
  }
}
