import { request, type ClientRequest } from 'node:http'
import { createParser } from 'eventsource-parser'

/** A place in the log: milliseconds and sequence. */
export type Place = readonly [ms: number, seq: number]

export const placeOf = (id: string): Place => {
  const [, ms, seq] = /^(\d+)-(\d+)\./.exec(id) ?? []
  return [Number(ms), Number(seq)]
}

export const compare = (a: Place, b: Place): number => a[0] - b[0] || a[1] - b[1]

/** The data of the last event of all. */
export const END = 'end'

/** What a client was told between two resets. */
export interface Stretch {
  /** When it began, by the oracle's clock. */
  readonly at: number
  readonly from: Place
  /** Up to here it was told everything, if nothing was lost. */
  to: Place
  readonly got: [place: Place, data: string][]
}

/** A browser, as far as the log is concerned: it comes back with the last id that it has seen, to any node. */
export class Client {
  readonly channels: string[]
  readonly stretches: Stretch[] = []
  readonly resets: { at: number; reason: string }[] = []
  #lastId: string | undefined
  #request: ClientRequest | undefined
  #timer: NodeJS.Timeout | undefined
  #stopped = false
  readonly #port: () => number | undefined
  readonly #random: () => number
  /** Whether the last event of all has come. */
  ended = false
  delivered = 0
  connections = 0

  constructor(channels: string[], port: () => number | undefined, random: () => number) {
    this.channels = channels
    this.#port = port
    this.#random = random
    this.connect()
  }

  /** Up to here it has been told everything, or that something is gone. */
  get place(): Place | undefined {
    return this.stretches.at(-1)?.to
  }

  connect(): void {
    if (this.#stopped) return
    const port = this.#port()
    if (port === undefined) return this.#later(100)
    this.connections++
    const headers = this.#lastId === undefined ? {} : { 'Last-Event-ID': this.#lastId }
    const mine = (this.#request = request({ host: '127.0.0.1', port, path: `/?c=${this.channels.join(',')}`, headers, agent: false }, response => {
      const parser = createParser({ onEvent: event => mine === this.#request && this.#take(event.event ?? 'message', event.data, event.id) })
      response.setEncoding('utf8')
      response.on('data', (chunk: string) => parser.feed(chunk))
      response.on('error', () => {})
      response.on('close', () => mine === this.#request && this.#later(20 + this.#random() * 200))
    }))
    mine.on('error', () => mine === this.#request && this.#later(20 + this.#random() * 200))
    mine.end()
  }

  /** Is cut, and comes back to another node after a while. */
  move(ms: number): void {
    this.#request?.destroy()
    this.#request = undefined
    this.#later(ms)
  }

  stop(): void {
    this.#stopped = true
    clearTimeout(this.#timer)
    this.#request?.destroy()
  }

  #later(ms: number): void {
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => this.connect(), ms)
  }

  #take(type: string, data: string, id: string | undefined): void {
    if (id === undefined) return
    this.#lastId = id
    const place = placeOf(id)
    const last = this.stretches.at(-1)
    if (type === 'stream-reset') {
      this.resets.push({ at: Date.now(), reason: (JSON.parse(data) as { reason: string }).reason })
      this.stretches.push({ at: Date.now(), from: place, to: place, got: [] })
    } else if (last === undefined) {
      // Whatever comes first without a reset begins the first stretch.
      this.stretches.push({ at: Date.now(), from: place, to: place, got: [] })
    } else if (type === 'stream-position') {
      if (compare(place, last.to) > 0) last.to = place
    } else {
      last.got.push([place, data])
      if (compare(place, last.to) > 0) last.to = place
      if (data === END) this.ended = true
      else this.delivered++
    }
  }
}
