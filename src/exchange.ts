import type { Newline } from './event.ts'
import type { Request, Response } from './http.ts'
import type { Outlet } from './outlet.ts'

/**
 * Why a stream ended.
 *
 * - `client`: the client left.
 * - `closed`: `close()`, `hub.disconnect()`, the end of a piped source or of `body`, HEAD, a client that was turned away, or outer
 *   middleware that answered otherwise.
 * - `error`: the handler, a source, outer middleware, or what wraps `body` failed.
 * - `slow`: more than `maxBuffer` bytes would have waited.
 * - `stalled`: the client read nothing for `stallTimeout`.
 * - `expired`: `maxAge` was reached.
 * - `shutdown`: the middleware's `close()`, or the hub's.
 */
export type CloseReason = 'client' | 'closed' | 'error' | 'slow' | 'stalled' | 'expired' | 'shutdown'

// What work that is tied to a stream fails of when the stream ends.
const CONSEQUENCES = new Set(['ABORT_ERR', 'ERR_STREAM_PREMATURE_CLOSE', 'ERR_STREAM_DESTROYED', 'ERR_SSE_HUB_CLOSED', 'ERR_SSE_NOT_OPEN'])
// The same when the connection breaks; of any other they would be a failure of the handler's own, of its database perhaps.
const BROKEN = /^(?:ECONNRESET|EPIPE|HPE_|ERR_HTTP2_|ERR_HTTP_REQUEST_TIMEOUT)/
const BREAKS = new Set<CloseReason>(['client', 'slow', 'stalled'])

/** Whether an error of a handler follows from how its stream has ended, and is no news. */
export const follows = (reason: CloseReason, error: unknown): boolean => {
  if (reason === 'error') return true
  if (!(error instanceof Error)) return false
  const code = 'code' in error ? String(error.code) : ''
  return error.name === 'AbortError' || CONSEQUENCES.has(code) || (BREAKS.has(reason) && BROKEN.test(code))
}

/** What a stream needs to know of its options. */
export interface StreamSettings {
  readonly heartbeat: number | false
  readonly heartbeatText: string
  readonly retry: number | undefined
  readonly newline: Newline
  readonly highWaterMark: number
  readonly maxBuffer: number
  readonly stallTimeout: number | false
  readonly maxAge: number | false
}

/** A response that is not a stream, or none yet. */
export interface Answer {
  readonly body: unknown
  readonly status: number
  /** Somebody has set the status, or answers past Koa. */
  readonly isDecided: boolean
}

/** One request, as the middleware shows it to its stream. */
export interface Exchange<S> {
  readonly req: Request
  readonly res: Response
  readonly settings: StreamSettings
  /** What is to be answered, as far as anybody has said. */
  readonly answer: Answer
  /** Throws what the client is to be told when no more streams may open; or returns the milliseconds after which it is to come back. */
  admit(): number | undefined
  /** Something waits for its first event to open the stream. Throws as `admit` where none may open any more; calls back when that has become so, until the function that it returns is called. */
  wait(refuse: () => void): () => void
  /** The same where none may open in any case. */
  turnAway(politely: boolean): number
  /** The stream opens: its body becomes the response's. */
  enter(stream: S, outlet: Outlet): void
  /** The stream has ended; bytes may still be on their way. */
  ended(stream: S): void
  /** The response is over. */
  over(stream: S): void
  /** Tells the app of an error, and answers with the last event for the client, encoded. */
  report(error: unknown): string | undefined
}

/** A hub's end of a stream. */
export interface Feed {
  /** There is room again, after a write that left none. */
  drained(): void
  /** What goes out in place of a heartbeat's comment, if anything. */
  heartbeat(): string | undefined
  /** The stream has ended. */
  ended(): void
}
