import type { BrokerEntry } from './broker.ts'
import { encode, encodeAs, type Newline } from './event.ts'
import { Frame } from './frame.ts'

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

/** A published event, encoded once for each newline in use, for whoever it goes to. */
export class SharedEvent {
  readonly entry: BrokerEntry
  /** The id that stands on the wire: the event's own, if it has one. */
  readonly id: string
  readonly #frame: Frame
  /** For newlines other than LF. */
  #others: { [N in Newline]?: Frame } | undefined
  #view: HubEvent | undefined

  /** Throws a TypeError for what cannot be encoded. */
  constructor(entry: BrokerEntry) {
    this.entry = entry
    this.id = entry.event.id ?? entry.id
    this.#frame = this.#encoded('\n')
  }

  frame(newline: Newline): Frame {
    return newline === '\n' ? this.#frame : ((this.#others ??= {})[newline] ??= this.#encoded(newline))
  }

  #encoded(newline: Newline): Frame {
    return new Frame(encodeAs(this.id, this.entry.event, newline))
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

let last = { event: '', id: '', data: '', newline: '\n', text: '' }

/** What one subscription is told, and not published; a crowd that comes at once, or is reset, is told the same. */
export const notice = (event: string, id: string, data: string, newline: Newline): string => {
  if (last.event !== event || last.id !== id || last.data !== data || last.newline !== newline) {
    last = { event, id, data, newline, text: encode({ event, id, data }, newline) }
  }
  return last.text
}
