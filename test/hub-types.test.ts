import { Router } from '@koa/router'
import { expect } from 'chai'
import { expectTypeOf } from 'expect-type'
import type { Context, Middleware } from 'koa'
import { Hub, MemoryBroker, sse, type Broker, type EventStream, type HubEvent, type HubOptions, type HubStats, type SseEvent } from 'koa-sse'
import type { SubscribeOptions, Subscription } from 'koa-sse'
import { connect } from './support/client.ts'
import { koa, serve } from './support/serve.ts'

// tsc is the judge of most of this file: functions that nobody calls show what must compile, and what must not.

interface User {
  id: number
}

const auth: Middleware<{ user: User }> = async (ctx, next) => {
  ctx.state.user = { id: 7 }
  await next()
}

export const headline = (router: Router, hub: Hub): void => {
  router.get(
    '/events',
    auth,
    sse(),
    hub.subscriber(ctx => ['news', `user:${ctx.state.user.id}`]),
  )
  router.get('/static', sse(), hub.subscriber('news'))
  router.get('/several', sse(), hub.subscriber(['news', 'sport'], { from: 'earliest', replay: false }))
  router.get(
    '/promise',
    sse(),
    hub.subscriber(async (ctx: Context) => {
      const { channel_id: channel } = ctx.query
      return channel ?? []
    }),
  )
  router.get('/filter', sse(), hub.subscriber('news', { filter: event => (expectTypeOf(event).toEqualTypeOf<HubEvent>(), event.data !== 'x') }))
  router.get('/handler', sse(), async ctx => {
    const subscription = await hub.subscribe(ctx.sse, ['news'])
    expectTypeOf(subscription).toEqualTypeOf<Subscription>()
  })
}

export const rowsOfSeeds = (router: Router, hub: Hub): void => {
  router.get(
    '/sse',
    auth,
    sse(),
    hub.subscriber(ctx => ctx.query['channel_id'] ?? []),
  )
  router.get(
    '/chat/:room',
    sse(),
    hub.subscriber((ctx: Context & { params: { room: string } }) => `room:${ctx.params.room}`),
  )
}

export const strictRouter = (router: Router<{ user: User }>, hub: Hub): void => {
  router.get('/fixed', auth, sse(), hub.subscriber(['news']))
  router.get('/events', auth, sse(), async ctx => {
    await hub.subscribe(ctx.sse, ['news', `user:${ctx.state.user.id}`])
  })
}

export const inAnApp = (hub: Hub): void => {
  koa(
    sse(),
    hub.subscriber((ctx: Context) => ctx.query['channel'] ?? []),
  )
}

export const untyped = (hub: Hub): void => {
  void hub.publish('anything', 'text')
  void hub.publish('anything', { data: { any: ['thing'] }, event: 'e', id: 'i', retry: 1, comment: 'c' })
  void hub.broadcast({ data: 5 })
  expectTypeOf(hub.publish('a', 'x')).toEqualTypeOf<Promise<string>>()
  const name: string = 'some'
  void hub.publish(`user:${name}`, 'x')
  void hub.pipe(name, ['x', { data: 'y' }])
  void hub.pipe(name, [1, 2], { map: n => (expectTypeOf(n).toEqualTypeOf<number>(), { data: n }) })
  void hub.pipe(name, ['x'], { signal: new AbortController().signal })
  hub.has(name)
  hub.count()
  // @ts-expect-error
  void hub.publish('a')
  // @ts-expect-error
  void hub.publish('a', 5)
  // @ts-expect-error
  void hub.publish('a', { type: 'x', data: 'y' })
  // @ts-expect-error
  void hub.publish(5, 'x')
  // @ts-expect-error
  void hub.broadcast()
  // @ts-expect-error
  void hub.pipe('a', [1, 2])
  // @ts-expect-error
  void hub.pipe('a', ['x'], { end: false })
  // @ts-expect-error
  hub.position = 'x'
}

interface Board {
  news: { title: string }
  score: number
  chat: string
  done: undefined
}

export const typed = (hub: Hub<Board>, stream: EventStream): void => {
  void hub.publish('news', { data: { title: 'x' } })
  void hub.publish('news', { event: 'headline', id: '1', data: { title: 'x' } })
  void hub.publish('score', { data: 5 })
  void hub.publish('chat', { data: 'hello' })
  void hub.publish('chat', 'hello')
  void hub.broadcast({ event: 'notice', data: { any: 'thing' } })
  // @ts-expect-error
  void hub.publish('sport', { data: { title: 'x' } })
  // @ts-expect-error
  void hub.publish('news', { data: { headline: 'x' } })
  // @ts-expect-error
  void hub.publish('news', { data: 'x' })
  // @ts-expect-error
  void hub.publish('news', 'x')
  // @ts-expect-error
  void hub.publish('news', { event: 'headline' })
  // @ts-expect-error
  void hub.publish('score', { data: '5' })
  // @ts-expect-error
  void hub.publish('chat', { data: 5 })

  hub.has('news')
  hub.count('score')
  // @ts-expect-error
  hub.has('sport')
  // @ts-expect-error
  hub.count('sport')

  void hub.subscribe(stream, 'news')
  void hub.subscribe(stream, ['news', 'chat'])
  void hub.subscribe(stream, new Set(['score'] as const))
  // @ts-expect-error
  void hub.subscribe(stream, 'sport')
  // @ts-expect-error
  void hub.subscribe(stream, ['news', 'sport'])
  hub.subscriber(['news', 'chat'])
  // @ts-expect-error
  hub.subscriber('sport')
  hub.subscriber(() => 'news')
  // @ts-expect-error
  hub.subscriber(() => 'sport')

  void hub.pipe('news', [{ data: { title: 'x' } }])
  void hub.pipe('chat', ['a', 'b'])
  void hub.pipe('score', [1, 2], { map: n => ({ data: n }) })
  // @ts-expect-error
  void hub.pipe('news', ['a', 'b'])
  // @ts-expect-error
  void hub.pipe('score', [1, 2], { map: n => ({ data: String(n) }) })
  // @ts-expect-error
  void hub.pipe('sport', ['a'])
}

export const patterns = (hub: Hub<Record<`user:${number}`, { balance: number }>>): void => {
  const id: number = 5
  void hub.publish(`user:${id}`, { data: { balance: 1 } })
  // @ts-expect-error
  void hub.publish('user:me', { data: { balance: 1 } })
  // @ts-expect-error
  void hub.publish(`user:${id}`, { data: { saldo: 1 } })
}

export const typedOnARouter = (router: Router, hub: Hub<Board>): void => {
  router.get('/events', sse(), hub.subscriber('news'))
  router.get(
    '/own',
    auth,
    sse(),
    hub.subscriber(ctx => (ctx.state.user.id === 1 ? ['news', 'chat'] : 'news')),
  )
}

export const others = (hub: Hub, subscription: Subscription): void => {
  void new Hub({
    history: false,
    broker: new MemoryBroker(),
    maxSubscribers: 1,
    maxChannels: 1,
    maxEventBytes: 1,
    positionEvent: 'p',
    resetEvent: 'r',
  })
  void new Hub({ history: { events: 1, ms: 1, bytes: 1 } })
  // @ts-expect-error
  void new Hub({ history: true })
  // @ts-expect-error
  void new Hub({ maxSubscriber: 5 })
  // @ts-expect-error
  void new Hub({ broker: {} })
  expectTypeOf<MemoryBroker>().toExtend<Broker>()
  expectTypeOf(hub.position).toEqualTypeOf<string | undefined>()
  expectTypeOf(hub.stats()).toEqualTypeOf<HubStats>()
  expectTypeOf(hub.channels()).toEqualTypeOf<IterableIterator<string>>()
  expectTypeOf(hub.disconnect(it => it.channels.has('a'))).toEqualTypeOf<number>()
  expectTypeOf(hub.close({ event: 'bye', retry: 1, graceMs: 1 })).toEqualTypeOf<Promise<void>>()
  expectTypeOf(subscription.stream).toEqualTypeOf<EventStream>()
  expectTypeOf(subscription.channels).toEqualTypeOf<ReadonlySet<string>>()
  hub.on('subscribe', each => expectTypeOf(each).toEqualTypeOf<Subscription>())
  hub.on('unsubscribe', each => expectTypeOf(each).toEqualTypeOf<Subscription>())
  hub.on('error', error => expectTypeOf(error).toEqualTypeOf<unknown>())
  // @ts-expect-error
  hub.on('message', () => {})
  // @ts-expect-error
  void hub.close({ grace: 1 })
  // @ts-expect-error
  hub.subscriber('a', { from: 'latest' })
  // @ts-expect-error
  hub.subscriber('a', { filter: () => 'yes' })
  // @ts-expect-error: a promise is true
  hub.subscriber('a', { filter: async () => false })
  // @ts-expect-error
  hub.subscriber(5)
  // @ts-expect-error
  hub.subscriber(() => 5)
  expectTypeOf<HubOptions>().toHaveProperty('maxChannels')
  expectTypeOf<SubscribeOptions>().toHaveProperty('filter')
  expectTypeOf<HubEvent['channel']>().toEqualTypeOf<string | null>()
  expectTypeOf<Parameters<Broker['publish']>>().toEqualTypeOf<[channel: string | null, event: SseEvent]>()
}

describe('the hub’s types', () => {
  it('compile (tsc -p . has the last word)', () => {
    expect(typed).to.be.a('function')
  })

  it('fit @koa/router: auth, sse() and the subscriber in one call', async () => {
    const hub = new Hub()
    const router = new Router()
    headline(router, hub)
    const { url } = await serve(koa(router.routes() as Middleware))
    const client = await connect(`${url}/events`)
    await client.event()
    expect([...hub.channels()].toSorted()).to.deep.equal(['news', 'user:7'])
    await hub.publish('user:7', 'for you')
    expect(await client.take(1)).to.deep.equal(['for you'])
    await hub.close()
  })
})
