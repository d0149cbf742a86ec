import { expected, isObject, oneOf } from './validate.ts'

/**
 * One event, field by field.
 *
 * A field that is absent or `undefined` is not written; an empty string is. At least one field must be there.
 *
 * @see https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
 */
export interface SseEvent {
  /** What the client sends back as `Last-Event-ID` when it reconnects. No CR, LF or NUL. `''` resets the client's memory of it. */
  id?: string | undefined
  /** The event's type, `message` for a client when absent. No CR or LF. */
  event?: string | undefined
  /** A string goes out as it is, a `Buffer` or `Uint8Array` as UTF-8, anything else as JSON. An event without data is not dispatched by clients. */
  data?: unknown
  /** From now on the client waits so many milliseconds before it reconnects. A non-negative integer. */
  retry?: number | undefined
  /** A line, or several, that clients ignore. */
  comment?: string | undefined
}

/** What ends a line on the wire. */
export type Newline = '\n' | '\r\n' | '\r'

/** The line ends that the format knows (WHATWG HTML 9.2.5). */
export const NEWLINES: readonly Newline[] = ['\n', '\r\n', '\r']

const FIELDS = 'comment, id, event, data, retry'

const lines = (prefix: string, text: string, newline: Newline): string =>
  text.includes('\n') || text.includes('\r') ? prefix + text.split(/\r\n|\r|\n/).join(newline + prefix) + newline : prefix + text + newline

const oneLine = (name: 'id' | 'event', value: unknown): string => {
  if (typeof value !== 'string') throw new TypeError(expected(name, 'a string', value))
  if (value.includes('\n') || value.includes('\r')) throw new TypeError(expected(name, 'free of CR and LF', value))
  return value
}

/** `data` as the text that goes on the wire. Throws a `TypeError` for what does not serialise. */
export const dataText = (data: unknown): string => {
  if (typeof data === 'string') return data
  if (data instanceof Uint8Array) return Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString()
  let text: string | undefined
  try {
    text = JSON.stringify(data)
  } catch (cause) {
    throw new TypeError(`${expected('data', 'serialisable as JSON', data)}: ${cause instanceof Error ? cause.message : 'toJSON threw'}`, { cause })
  }
  if (text === undefined) throw new TypeError(expected('data', 'serialisable as JSON', data))
  return text
}

/** Throws a `TypeError` for what is no event, or has a field that nobody knows. */
export const checkFields = (event: SseEvent): SseEvent => {
  if (!isObject(event)) throw new TypeError(expected('event', 'a string or an object', event))
  for (const key in event) {
    if (key !== 'data' && key !== 'id' && key !== 'event' && key !== 'retry' && key !== 'comment') {
      throw new TypeError(`Unknown key \`${key}\` in an event; known are ${FIELDS}`)
    }
  }
  return event
}

/** A comment, each of its lines behind a colon, and the empty line that ends it. Pure. */
export const encodeComment = (text: string, newline: Newline = '\n'): string => {
  if (typeof text !== 'string') throw new TypeError(expected('comment', 'a string', text))
  return lines(': ', text, newline) + newline
}

/**
 * An event as it stands on the wire: the fields in the order comment, id, event, data, retry, then an empty line.
 *
 * `newline` ends its lines: LF (the default), CRLF or CR. A string is data. Data and comments are split on CRLF, CR and LF, a trailing empty line kept. Pure, and nothing else in this
 * library knows the format.
 *
 * @throws TypeError for another newline, a CR or LF in `id` or `event`, a NUL in `id`, a `retry` that is not a non-negative integer, an unknown
 * key, an event with no field at all, and data that does not serialise.
 * @see https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
 */
export const encode = (event: string | SseEvent, newline: Newline = '\n'): string => {
  if (newline !== '\n') oneOf('newline', newline, NEWLINES)
  if (typeof event === 'string') return lines('data: ', event, newline) + newline
  return encodeAs(checkFields(event).id, event, newline)
}

// Control characters but the tab; white space at an end.
const UNFIT = /[^\P{Cc}\t]|^[ \t]|[ \t]$/u

/**
 * Whether a client cannot come back with this id. An empty one clears its memory. In a header, HTTP takes white space off at both ends (RFC 9110, section 5.5): it
 * would be another id, or none. To control characters Node answers 400, which is final for a browser's EventSource.
 */
export const isLost = (id: string): boolean => id === '' || UNFIT.test(id)

/** {@link encode} under another id, for an event whose keys are known. */
export const encodeAs = (id: string | undefined, { comment, event: type, data, retry }: SseEvent, newline: Newline): string => {
  let text = ''
  if (comment !== undefined) {
    if (typeof comment !== 'string') throw new TypeError(expected('comment', 'a string', comment))
    text += lines(': ', comment, newline)
  }
  if (id !== undefined) {
    // Clients ignore such an id altogether, so that a reconnect would begin at an older one.
    if (oneLine('id', id).includes('\0')) throw new TypeError(expected('id', 'free of NUL', id))
    text += `id: ${id}${newline}`
  }
  if (type !== undefined) text += `event: ${oneLine('event', type)}${newline}`
  if (data !== undefined) text += lines('data: ', dataText(data), newline)
  if (retry !== undefined) {
    if (!Number.isSafeInteger(retry) || retry < 0) throw new TypeError(expected('retry', 'a non-negative integer', retry))
    text += `retry: ${retry}${newline}`
  }
  if (text === '') throw new TypeError(`Expected an event to have at least one of ${FIELDS}`)
  return text + newline
}
