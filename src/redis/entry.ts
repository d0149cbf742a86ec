import { isLost, type SseEvent } from '../event.ts'
import { cursorOf, tagOf, type Cursor } from './cursor.ts'

/** Which publisher made an entry, and its how many-th it is: the same however often it had to be sent. */
export interface MessageId {
  readonly publisher: string
  readonly count: number
}

/** Where an entry stands, and which message it brings. */
export interface Mark {
  readonly cursor: Cursor
  /** Absent in an entry that somebody else wrote. */
  readonly message: MessageId | undefined
}

/** An entry of the log in Redis. */
export interface LogEntry extends Mark {
  readonly kind: 'event' | 'heartbeat' | 'control' | 'poison'
  readonly channel: string | null
  /** What it says: an event, in an entry of that kind. */
  readonly event: SseEvent | undefined
  /** The newest entry that is known to be lost, in an entry that announces a fork. */
  readonly fork: string | undefined
}

/** An entry as Redis gives it: its id, and its fields and values by turns. */
export type RawEntry = [id: string, fields: string[]]

/** What goes into an entry. `null`: to everybody. */
export type Content = { channel: string | null; event: SseEvent } | { heartbeat: true } | { fork: string } | { begin: true }

const PUBLISHER = 12
const MESSAGE = /^[0-9a-z]{12}\.[1-9]\d{0,14}$/
// What would end a field's line early on the wire.
const BREAKS = /[\r\n]/

const formatMessage = ({ publisher, count }: MessageId): string => `${publisher}.${count}`

/** The tag of a message's entries. */
export const messageTag = (message: MessageId): string => tagOf(formatMessage(message))

/**
 * The fields of an entry, always the same ones in the same order: Redis then stores their names once.
 *
 * `m` the message, `c` the channel, `d` the event as JSON, `k` the kind: '' event, 'b' broadcast, 'hb' heartbeat, 'ctl' control.
 */
export const encodeFields = (message: MessageId, content: Content): string[] => {
  const fields = (channel: string, data: string, kind: string): string[] => ['m', formatMessage(message), 'c', channel, 'd', data, 'k', kind]
  if ('heartbeat' in content) return fields('', '', 'hb')
  if ('fork' in content) return fields('', JSON.stringify({ fork: content.fork }), 'ctl')
  if ('begin' in content) return fields('', '', 'ctl')
  const data = JSON.stringify(content.event)
  return content.channel === null ? fields('', data, 'b') : fields(content.channel, data, '')
}

const parseObject = (json: string): Record<string, unknown> | undefined => {
  try {
    const value: unknown = JSON.parse(json)
    return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Record<string, unknown>) : undefined
  } catch {
    return undefined
  }
}

/** Undefined for what the hub could not put on the wire: it did not come from a hub. */
const parseEvent = (json: string): SseEvent | undefined => {
  const event = parseObject(json)
  if (event === undefined) return undefined
  let fields = 0
  for (const key in event) {
    fields++
    const value = event[key]
    if (key === 'retry' ? !Number.isSafeInteger(value) || (value as number) < 0 : typeof value !== 'string') return undefined
    if (key === 'event' && BREAKS.test(value as string)) return undefined
    // Clients would lose their place with it: a hub takes none such.
    if (key === 'id' && isLost(value as string)) return undefined
    if (key !== 'data' && key !== 'event' && key !== 'id' && key !== 'retry' && key !== 'comment') return undefined
  }
  return fields === 0 ? undefined : event
}

/** Reads of an entry what stands beside the event, which costs the most. */
export const decodeMark = ([redisId, fields]: RawEntry): Mark => {
  const message = isOurs(fields) ? parseMessage(fields[1]!) : undefined
  return { cursor: cursorOf(redisId, tagOf(message === undefined ? fields.join('\n') : fields[1]!)), message }
}

/** Reads an entry of Redis. Never throws: what is no entry of ours is `poison`, and has a cursor all the same. */
export const decode = (raw: RawEntry): LogEntry => {
  // By index and in literals: this is done for each entry in each process.
  const { cursor, message } = decodeMark(raw)
  const [, fields] = raw
  const [channel, data, kind] = [fields[3]!, fields[5]!, fields[7]]
  if (message !== undefined) {
    if (kind === 'hb') return { cursor, message, kind: 'heartbeat', channel: null, event: undefined, fork: undefined }
    if (kind === 'ctl') {
      const fork = parseObject(data)?.['fork']
      return { cursor, message, kind: 'control', channel: null, event: undefined, fork: typeof fork === 'string' ? fork : undefined }
    }
    const event = kind === 'b' || (kind === '' && channel !== '') ? parseEvent(data) : undefined
    if (event !== undefined) return { cursor, message, kind: 'event', channel: kind === 'b' ? null : channel, event, fork: undefined }
  }
  return { cursor, message, kind: 'poison', channel: null, event: undefined, fork: undefined }
}

const isOurs = (fields: string[]): boolean => fields.length === 8 && fields[0] === 'm' && fields[2] === 'c' && fields[4] === 'd' && fields[6] === 'k'

const parseMessage = (text: string): MessageId | undefined => {
  if (!MESSAGE.test(text)) return undefined
  return { publisher: text.slice(0, PUBLISHER), count: Number(text.slice(PUBLISHER + 1)) }
}
