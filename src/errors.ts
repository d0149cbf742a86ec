import { inspect } from 'node:util'

/** Every `code` that an {@link SseError} can have. Codes are API; messages are not. */
export type SseErrorCode =
  | 'ERR_SSE_NOT_OPEN'
  | 'ERR_SSE_HUB_CLOSED'
  | 'ERR_SSE_BROKER_CLOSED'
  | 'ERR_SSE_BROKER_UNAVAILABLE'
  | 'ERR_SSE_BROKER_BUSY'
  | 'ERR_SSE_EVENT_TOO_LARGE'

/**
 * An error of this library's own, told apart by its {@link SseError.code}.
 *
 * Wrong arguments are a plain `TypeError` or `RangeError`, and limits are Koa's `ctx.throw(503)`; neither is an `SseError`.
 */
export class SseError extends Error {
  override readonly name = 'SseError'
  /** What went wrong, for programs. */
  readonly code: SseErrorCode

  constructor(code: SseErrorCode, message: string, options?: ErrorOptions) {
    super(message, options)
    this.code = code
  }
}

// As Koa tells them: under Jest, which runs tests in a context of node:vm, Node's errors are no instances of Error.
const isError = (thrown: unknown): thrown is Error => thrown instanceof Error || Object.prototype.toString.call(thrown) === '[object Error]'

/** What was thrown, as an Error. */
export const toError = (thrown: unknown): Error => {
  try {
    return isError(thrown) ? thrown : new Error(`non-error thrown: ${inspect(thrown)}`)
  } catch {
    // A revoked Proxy, say.
    return new Error('non-error thrown, that cannot be shown')
  }
}
