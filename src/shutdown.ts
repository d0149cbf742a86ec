import { within } from './deferred.ts'
import { checkFields, dataText, encode, type SseEvent } from './event.ts'
import type { StreamCore } from './stream-core.ts'
import { checkKeys, milliseconds, nonNegativeInteger } from './validate.ts'

/** How streams are shut down. */
export interface CloseOptions {
  /** A last event for every client. Default: none. */
  event?: string | SseEvent | undefined
  /** Each client is told to come back after a random time between this and twice this. Milliseconds, default 2 000. */
  retry?: number | undefined
  /** After so long the connections that are still there are destroyed. Milliseconds, default 5 000. */
  graceMs?: number | undefined
}

/** {@link CloseOptions}, checked. */
export interface Farewell {
  readonly event: SseEvent | undefined
  readonly retry: number
  readonly graceMs: number
}

/** Throws a TypeError or RangeError for a wrong farewell. */
export const checkCloseOptions = (options: CloseOptions): Farewell => {
  checkKeys('options', options, ['event', 'retry', 'graceMs'])
  const { event, retry = 2_000, graceMs = 5_000 } = options
  nonNegativeInteger('retry', retry)
  milliseconds('graceMs', graceMs)
  if (event === undefined) return { event, retry, graceMs }
  const last = asItIs(event)
  encode(last)
  return { event: last, retry, graceMs }
}

/** The event as it is now, its data serialised. It is encoded for each client, and later perhaps: none may be left open because it then fails. */
const asItIs = (event: string | SseEvent): SseEvent => {
  if (typeof event === 'string') return { data: event }
  const { comment, id, event: type, data, retry } = checkFields(event)
  return { comment, id, event: type, data: data === undefined ? undefined : dataText(data), retry }
}

/** A random whole number between `ms` and twice `ms`, so that clients which left together do not come back together. */
export const jittered = (ms: number): number => Math.min(ms + Math.floor(Math.random() * (ms + 1)), Number.MAX_SAFE_INTEGER)

/** Ends all `streams`, and resolves when their responses are over, or have been destroyed after the grace period. */
export const shutDown = async (streams: Iterable<StreamCore>, { event, retry, graceMs }: Farewell): Promise<void> => {
  const left = new Set(streams)
  const over = [...left].map(async stream => {
    await stream.over()
    left.delete(stream)
  })
  for (const stream of left) stream.shutDown({ ...event, retry: jittered(retry) })
  await within(graceMs, Promise.all(over))
  for (const stream of left) stream.destroy('shutdown')
}
