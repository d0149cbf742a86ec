import { setTimeout } from 'node:timers/promises'
import { Router } from '@koa/router'
import type { Context, Next } from 'koa'
import { sse, type SseEvent, type SseMiddleware } from 'koa-sse'

const users = new Map([
  ['token-of-ada', 'Ada'],
  ['token-of-grace', 'Grace'],
])

// A browser's EventSource sets no headers: it needs a cookie, or the query, which ends up in logs. fetch can do both.
export const authenticate = async (ctx: Context, next: Next): Promise<void> => {
  const token = /^Bearer (.+)$/i.exec(ctx.get('Authorization'))?.[1] ?? ctx.query['token']
  const user = users.get(String(token))
  if (user === undefined) ctx.throw(401, 'a token, please', { headers: { 'WWW-Authenticate': 'Bearer' } })
  ctx.state['user'] = user
  await next()
}

/** Whoever has no token gets a 401, and no stream. `released` is told when a generator is given back. */
export const auth = (streams: SseMiddleware = sse(), released: () => void = () => {}): Router => {
  async function* inbox(user: string, signal: AbortSignal): AsyncGenerator<SseEvent> {
    try {
      for (let unread = 1; ; unread++) {
        yield { event: 'inbox', data: { user, unread } }
        await setTimeout(1_500, undefined, { signal })
      }
    } finally {
      released()
    }
  }

  return new Router().get('/auth', authenticate, streams, ctx => ctx.sse.pipe(signal => inbox(ctx.state['user'], signal)))
}
