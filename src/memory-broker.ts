import { randomBytes } from 'node:crypto'
import type { Broker, BrokerEntry, BrokerSink } from './broker.ts'
import { SseError } from './errors.ts'
import type { SseEvent } from './event.ts'
import { checkLimits, Log } from './log.ts'

/** What a {@link MemoryBroker} keeps, whatever is reached first. */
export interface MemoryBrokerOptions {
  /** Events. Default 10 000. */
  events?: number | undefined
  /** Milliseconds. Default 300 000. */
  ms?: number | undefined
  /** Bytes. Default 67 108 864. */
  bytes?: number | undefined
}

/**
 * A broker for one process. Its ids are `<epoch>-<sequence>`; the epoch is random, so that a process that was restarted does not
 * take an id of its former life for one of its own.
 */
export class MemoryBroker implements Broker {
  readonly #epoch = randomBytes(6).toString('hex')
  readonly #log: Log<BrokerEntry>
  #sequence = 0
  #sink: BrokerSink | undefined
  #closed = false

  /** @throws TypeError for a wrong type or an unknown option, RangeError for a number below 0; at once. */
  constructor(options: MemoryBrokerOptions = {}) {
    this.#log = new Log(checkLimits('options', options))
    this.#log.move(this.#id(0), performance.now())
  }

  // The rest is async so that wrong use rejects, as with a broker that has to ask a server.

  async start(sink: BrokerSink): Promise<void> {
    this.#throwIfClosed()
    if (this.#sink !== undefined) throw new TypeError('This MemoryBroker has a hub already: make one for each')
    this.#sink = sink
    const { floorId } = this.#log
    if (floorId !== undefined) sink.position(floorId)
    for (let number = this.#log.floor + 1; number <= this.#log.newest; number++) {
      const entry = this.#log.at(number)
      if (entry !== undefined) sink.event(entry)
    }
  }

  async publish(channel: string | null, event: SseEvent): Promise<string> {
    this.#throwIfClosed()
    const entry: BrokerEntry = { id: this.#id(++this.#sequence), channel, event }
    this.#log.append(entry.id, entry, size(entry), performance.now())
    this.#sink?.event(entry)
    return entry.id
  }

  async read(after: string, limit: number): Promise<BrokerEntry[] | undefined> {
    this.#throwIfClosed()
    this.#log.trim(performance.now())
    const number = this.#log.locate(after)
    if (number === undefined) return
    const entries: BrokerEntry[] = []
    for (let next = number + 1; next <= this.#log.newest && entries.length < limit; next++) {
      const entry = this.#log.at(next)
      if (entry !== undefined) entries.push(entry)
    }
    return entries
  }

  trimmed(id: string): boolean {
    const [epoch, sequence = ''] = id.split('-')
    return epoch === this.#epoch && /^(?:0|[1-9]\d{0,15})$/.test(sequence) && Number(sequence) <= this.#sequence && this.#log.locate(id) === undefined
  }

  async close(): Promise<void> {
    this.#closed = true
    this.#sink = undefined
  }

  #id(sequence: number): string {
    return `${this.#epoch}-${sequence}`
  }

  #throwIfClosed(): void {
    if (this.#closed) throw new SseError('ERR_SSE_BROKER_CLOSED', 'The broker is closed')
  }
}

const size = ({ channel, event }: BrokerEntry): number =>
  Buffer.byteLength(`${channel ?? ''}${event.id ?? ''}${event.event ?? ''}${String(event.data ?? '')}${event.comment ?? ''}`)
