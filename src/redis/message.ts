import { SseError } from '../errors.ts'
import type { Cursor } from './cursor.ts'
import type { MessageId } from './entry.ts'

// The last one is NOAUTH for a command of more than ten words, which ours are.
const PASSING =
  /^(?:READONLY|LOADING|MASTERDOWN|NOREPLICAS|CLUSTERDOWN|MOVED|ASK|TRYAGAIN|UNBLOCKED|NOAUTH|BUSY|ERR Protocol error: unauthenticated)\b/

/** Whether it is the error of a server that may be well again soon, or is the wrong one: it has done nothing. */
export const isPassing = (error: Error): boolean => PASSING.test(error.message)

/** A message under way to the log. */
export interface Message {
  readonly id: MessageId
  fields: readonly string[]
  readonly deadline: number
  readonly counted: boolean
  /** Times sent. */
  sent: number
  /** Its entry, once Redis has acknowledged it. */
  acknowledged: Cursor | undefined
  /** Its first entry, once it has come through the log. */
  seen: Cursor | undefined
  settled: boolean
  readonly resolve: (id: string) => void
  readonly reject: (error: Error) => void
}

/** Redis has not taken it, for all that is known. */
export const unavailable = (message: string, cause: unknown): SseError => new SseError('ERR_SSE_BROKER_UNAVAILABLE', message, { cause })

/** Too many are under way. */
export const busy = (what: string, cause?: unknown): SseError => new SseError('ERR_SSE_BROKER_BUSY', `${what} wait for Redis already`, { cause })
