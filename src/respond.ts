import type { Readable } from 'node:stream'
import { destroy, type Response } from './http.ts'
import type { Outlet } from './outlet.ts'
import { nextTick, setRealTimeout } from './turn.ts'

// The outlet of a context that it may have; `null` when the bytes are on their way past Koa.
const OUTLET: unique symbol = Symbol('koa-sse outlet')

/** What is needed of Koa's context here. */
interface RespondingContext {
  readonly app: { readonly context: object }
  body: unknown
  readonly method: string
  readonly status: number
  readonly writable: boolean
  readonly res: Response
  [OUTLET]?: Outlet | null | undefined
}

// Koa answers these without a body.
const EMPTY = new Set([204, 205, 304])

// So long middleware may take that has read `ctx.respond` before Koa does.
const UNANSWERED = 2_000

/**
 * Lets the bytes go straight into the response where Koa would pipe the body into it, which would cost a pipeline's
 * listeners, 8 KB, for every stream.
 *
 * Koa reads `ctx.respond` once, last of all, when every middleware has had its say; `false` means that somebody else responds
 * (documented since Koa 1). That is us if, at that moment,
 * - `ctx.body` is still this very body, and nobody has begun to read it (else bytes go through it, wherever it leads), and
 * - there is a client to respond to, and the response is to have a body at all.
 *
 * An application that has set `ctx.respond` itself, or sets it later, is left alone: then Koa's ordinary way serves as well. Outer
 * middleware that reads `ctx.respond` is taken for Koa; so the head is not written before the microtasks of this turn are done.
 */
export const respondDirectly = (ctx: RespondingContext, outlet: Outlet): void => {
  const { context } = ctx.app
  // On the prototype of the app's contexts: on each of them, an accessor makes V8 keep a dictionary, 600 bytes.
  if (!('respond' in context)) Object.defineProperty(context, 'respond', accessor)
  ctx[OUTLET] = outlet
}

const accessor: PropertyDescriptor & ThisType<RespondingContext> = {
  configurable: true,
  get() {
    const outlet = this[OUTLET]
    if (outlet === null) return false
    if (outlet === undefined || !isOurs(this, outlet)) {
      // Koa 2 waits for it for ever.
      if (outlet?.body.destroyed === true) setRealTimeout(giveUp, UNANSWERED, this, outlet).unref()
      this[OUTLET] = undefined
      return undefined
    }
    nextTick(goDirect, this, outlet)
    return false
  },
  set(value: unknown) {
    Object.defineProperty(this, 'respond', { configurable: true, enumerable: true, writable: true, value })
  },
}

const goDirect = (ctx: RespondingContext, outlet: Outlet): void => {
  if (ctx[OUTLET] !== outlet) return
  if (!isOurs(ctx, outlet)) {
    setRealTimeout(giveUp, UNANSWERED, ctx, outlet).unref()
    return
  }
  ctx[OUTLET] = null
  outlet.goDirect()
}

/**
 * The body is dead; or it was replaced after somebody had been told that Koa need not respond. If that was Koa, nobody responds, and the
 * client is to come back; if it was middleware, Koa has looked again by now.
 */
const giveUp = (ctx: RespondingContext, outlet: Outlet): void => {
  if ((ctx[OUTLET] === outlet || ctx.body === outlet.body) && ctx.writable && !ctx.res.headersSent) destroy(ctx.res)
}

const isOurs = (ctx: RespondingContext, { body, undecided }: Outlet): boolean =>
  ctx.body === body && undecided && isUnread(body) && ctx.writable && ctx.method !== 'HEAD' && !EMPTY.has(ctx.status)

const isUnread = (body: Readable): boolean => body.readableFlowing === null && body.listenerCount('readable') === 0
