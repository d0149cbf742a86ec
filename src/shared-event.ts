import type { BrokerEntry } from './broker.ts'
import { encode, encodeAs, type Newline } from './event.ts'
import { Frame, type Slabs } from './frame.ts'

/** An event of a hub, as a filter sees it. */
export interface HubEvent {
  /** The id that stands on the wire. */
  readonly id: string
  /** `null`: a broadcast. */
  readonly channel: string | null
  readonly event?: string
  /** As on the wire, whatever the broker. */
  readonly data?: string
}

/**
 * A published event, encoded once for each newline in use, for whoever it goes to. Where nobody here wants it, as is most often so
 * with one process of many, no bytes are made or kept.
 */
export class SharedEvent {
  readonly entry: BrokerEntry
  /** The id that stands on the wire: the event's own, if it has one. */
  readonly id: string
  /** On the wire, with LF. */
  readonly bytes: number
  #text: string | undefined
  #frame: Frame | undefined
  /** For newlines other than LF. */
  #others: { [N in Newline]?: Frame } | undefined
  #view: HubEvent | undefined
  readonly #slabs: Slabs | undefined

  /** `slabs`: of those that are kept. Throws a TypeError for what cannot be encoded. */
  constructor(entry: BrokerEntry, slabs?: Slabs) {
    this.entry = entry
    this.#slabs = slabs
    this.id = entry.event.id ?? entry.id
    this.#text = this.#encoded('\n')
    this.bytes = Buffer.byteLength(this.#text)
  }

  frame(newline: Newline): Frame {
    if (newline !== '\n') return ((this.#others ??= {})[newline] ??= new Frame(this.#encoded(newline), this.#slabs))
    if (this.#frame === undefined) {
      this.#frame = new Frame(this.#text ?? this.#encoded('\n'), this.#slabs)
      this.#text = undefined
    }
    return this.#frame
  }

  /** All who wanted it at once have it. Who comes back for it has it encoded again, if nobody had. */
  settle(): void {
    this.#text = undefined
  }

  #encoded(newline: Newline): string {
    return encodeAs(this.id, this.entry.event, newline)
  }

  /** The event for filters. */
  get view(): HubEvent {
    if (this.#view === undefined) {
      const { channel, event } = this.entry
      this.#view = Object.freeze({
        id: this.id,
        channel,
        ...(event.event !== undefined && { event: event.event }),
        ...(event.data !== undefined && { data: event.data as string }),
      })
    }
    return this.#view
  }
}

let last = { event: '' as string | false, id: '', data: '', newline: '\n', text: '' }

/** What one subscription is told, and not published; a crowd that comes at once, or is reset, is told the same. `event`: its type; `false`: the id alone. */
export const notice = (event: string | false, id: string, data: string, newline: Newline): string => {
  if (last.event !== event || last.id !== id || last.data !== data || last.newline !== newline) {
    last = { event, id, data, newline, text: encode(event === false ? { id } : { id, event, data }, newline) }
  }
  return last.text
}
