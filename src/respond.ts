import type { Readable } from 'node:stream'
import type { Outlet } from './outlet.ts'

/** What is needed of Koa's context here. */
interface RespondingContext {
  body: unknown
  readonly method: string
  readonly status: number
  readonly writable: boolean
  respond?: boolean | undefined
}

// Koa answers these without a body.
const EMPTY = new Set([204, 205, 304])

/**
 * Lets the bytes go straight into the response where Koa would pipe the body into it, which would cost a pipeline's
 * listeners, 8 KB, for every stream.
 *
 * Koa reads `ctx.respond` once, last of all, when every middleware has had its say; `false` means that somebody else responds
 * (documented since Koa 1). That is us if, at that moment,
 * - `ctx.body` is still this very body, and nobody has begun to read it (else bytes go through it, wherever it leads), and
 * - there is a client to respond to, and the response is to have a body at all.
 *
 * An application that has set `ctx.respond` itself is left alone: then Koa's ordinary way serves as well. Outer middleware
 * that reads `ctx.respond` is taken for Koa; so the head is not written before the microtasks of this turn are done.
 */
export const respondDirectly = (ctx: RespondingContext, outlet: Outlet): void => {
  if ('respond' in ctx) return
  const isOurs = (): boolean =>
    ctx.body === outlet.body && outlet.undecided && isUnread(outlet.body) && ctx.writable && ctx.method !== 'HEAD' && !EMPTY.has(ctx.status)
  Object.defineProperty(ctx, 'respond', {
    configurable: true,
    get: (): boolean => {
      if (!isOurs()) return true
      process.nextTick(() => {
        if (!isOurs()) return
        // A plain value, which holds on to nothing for as long as the stream lives.
        ctx.respond = false
        outlet.goDirect()
      })
      return false
    },
    set: (value: unknown) => {
      Object.defineProperty(ctx, 'respond', { configurable: true, enumerable: true, writable: true, value })
    },
  })
}

const isUnread = (body: Readable): boolean => body.readableFlowing === null && body.listenerCount('readable') === 0
