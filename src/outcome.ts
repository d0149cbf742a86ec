import { setMaxListeners } from 'node:events'
import { deferred, type Deferred } from './deferred.ts'

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

// What work that is tied to a stream fails of when the stream ends, other than by being aborted.
const CONSEQUENCES = new Set(['ERR_STREAM_PREMATURE_CLOSE', 'ERR_STREAM_DESTROYED', 'ERR_SSE_HUB_CLOSED', 'ERR_SSE_NOT_OPEN'])
// The same when the connection breaks; of any other they would be a failure of the handler's own, of its database perhaps.
const BROKEN = /^(?:ECONNRESET|EPIPE|HPE_|ERR_SSL_|ERR_TLS_SESSION_ATTACK|ERR_HTTP2_|ERR_HTTP_REQUEST_TIMEOUT|ERR_STREAM_UNABLE_TO_PIPE)/
const BREAKS = new Set<CloseReason>(['client', 'slow', 'stalled'])
// fetch's own, those of openai and @anthropic-ai/sdk, of which some have it as their class's name alone, and of Elasticsearch's client.
const ABORTED = /Abort(?:ed)?Error$/
// LangChain and the clients of MCP, Connect and Elasticsearch keep nothing of the signal's reason but its words, all or some.
const ABORTED_TEXT = /\bAbortError\b|\bThis operation was aborted\b/
// Node's, and axios's.
const ABORTED_CODES = new Set(['ABORT_ERR', 'ERR_CANCELED'])

/** What anybody may have thrown, and of which nothing is sure: under Jest, Node's errors are not of this realm. */
interface Thrown {
  readonly name?: unknown
  readonly code?: unknown
  readonly message?: unknown
  readonly cause?: unknown
}

/** Undefined, too, for what cannot be looked at: no object, a getter that throws, a revoked Proxy. */
const look = <T>(error: unknown, read: (error: Thrown) => T): T | undefined => {
  try {
    return read(error as Thrown)
  } catch {
    return undefined
  }
}

const codeOf = (error: unknown): string => look(error, ({ code }) => String(code)) ?? ''

const isAborted = (error: unknown): boolean =>
  ABORTED_CODES.has(codeOf(error)) ||
  ABORTED.test(look(error, ({ name }) => String(name)) ?? '') ||
  ABORTED.test(look(error, thrown => thrown.constructor.name) ?? '') ||
  ABORTED_TEXT.test(look(error, ({ message }) => String(message)) ?? '')

/** Whether an error is that of work which was aborted, by whomever. */
export const isAbort = (error: unknown): boolean =>
  // @mistralai/mistralai and cohere-ai wrap it.
  isAborted(error) || isAborted(look(error, ({ cause }) => cause))

/** Whether an error of a handler follows from how its stream has ended, and is no news. */
export const follows = (reason: CloseReason, error: unknown): boolean => {
  if (reason === 'error' || isAbort(error)) return true
  const code = codeOf(error)
  return CONSEQUENCES.has(code) || (BREAKS.has(reason) && BROKEN.test(code))
}

/** How a stream has ended, and those who wait for that: nothing is made for them before they ask. */
export class Outcome {
  /** Undefined: it has not ended. Whoever sets it {@link tell | tells} those who wait, when all is done that follows from it. */
  reason: CloseReason | undefined
  #controller: AbortController | undefined
  #closed: Deferred<CloseReason> | undefined

  get signal(): AbortSignal {
    if (this.#controller === undefined) {
      this.#controller = new AbortController()
      // Many may wait for the end of one stream: each of its sources, to begin with. Not 0: Node 20's getMaxListeners(), and so undici's fetch, throws at that.
      setMaxListeners(Infinity, this.#controller.signal)
      if (this.reason !== undefined) this.#controller.abort()
    }
    return this.#controller.signal
  }

  get closed(): Promise<CloseReason> {
    if (this.#closed === undefined) {
      this.#closed = deferred()
      if (this.reason !== undefined) this.#closed.resolve(this.reason)
    }
    return this.#closed.promise
  }

  tell(): void {
    this.#controller?.abort()
    if (this.reason !== undefined) this.#closed?.resolve(this.reason)
  }

  /** Work that has begun is to stop, but the stream may open still: whoever asks then gets another signal. */
  restart(): void {
    this.#controller?.abort()
    this.#controller = undefined
  }
}
