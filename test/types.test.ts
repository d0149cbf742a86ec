import { Readable, type PassThrough } from 'node:stream'
import { ReadableStream } from 'node:stream/web'
import type Router from '@koa/router'
import type { RouterMiddleware } from '@koa/router'
import { expect } from 'chai'
import { expectTypeOf } from 'expect-type'
import type Koa from 'koa'
import type { Context, DefaultContext, Middleware } from 'koa'
import {
  encode,
  EventStream,
  sse,
  type CloseOptions,
  type CloseReason,
  type Items,
  type MappedPipeOptions,
  type Newline,
  type PipeOptions,
  type Source,
  type SseContext,
  type SseError,
  type SseErrorCode,
  type SseEvent,
  type SseMiddleware,
  type SseOptions,
} from 'koa-sse'

// tsc is the judge of this file. None of its functions is ever called: each shows what must compile, and what must not.

interface User {
  id: number
}

async function* ticker(): AsyncGenerator<SseEvent> {
  yield { event: 'tick', data: 1 }
}

async function* numbers(): AsyncGenerator<number> {
  yield 1
}

const auth: Middleware<{ user: User }> = async (ctx, next) => {
  ctx.state.user = { id: 1 }
  await next()
}

export const headline = (router: Router): void => {
  router.get('/hello', sse(), ctx => ctx.sse.pipe(ticker()))
  router.get('/progress', sse(), async ctx => {
    await ctx.sse.send('50 %')
    ctx.sse.close()
  })
  router.get('/typed', sse(), ctx => {
    expectTypeOf(ctx.sse).toEqualTypeOf<EventStream>()
  })
  router.post('/post', sse(), ctx => ctx.sse.pipe(ticker()))
  router.all('/all', sse(), ctx => ctx.sse.pipe(ticker()))
}

export const authAndSseInOneCall = (router: Router<{ user: User }>): void => {
  router.get('/events', auth, sse({ maxAge: 60_000 }), ctx => {
    expectTypeOf(ctx.state.user).toEqualTypeOf<User>()
    return ctx.sse.pipe([`hello ${ctx.state.user.id}`])
  })
}

export const authAndSseOnAPlainRouter = (router: Router): void => {
  const anyone: Middleware = (_ctx, next) => next()
  router.get('/events', anyone, sse(), ctx => ctx.sse.pipe(ticker()))
}

export const useOfARouter = (router: Router): void => {
  router.use(sse())
  router.use('/api', sse({ heartbeat: false }))
  router.get('/hello', ctx => ctx.sse.pipe(ticker()))
}

export const useOfAnApp = (app: Koa): void => {
  app.use(sse())
  app.use(ctx => ctx.sse.pipe(ticker()))
  app.use(async (ctx, next) => {
    expectTypeOf(ctx.sse).toEqualTypeOf<EventStream>()
    await next()
  })
}

export const useOfATypedApp = (app: Koa<{ user: User }, { db: Map<string, string> }>): void => {
  app.use(sse())
  const middleware = sse()
  app.use((ctx, next) => middleware(ctx as never, next))
}

export const extractedHandlers = (router: Router): void => {
  const asMiddleware: Koa.Middleware = ctx => ctx.sse.pipe(ticker())
  const asContext = (ctx: Context): Promise<void> => ctx.sse.pipe(ticker())
  const asShape = (ctx: SseContext): void => void ctx.sse.send('x')
  const asRouterMiddleware: RouterMiddleware = ctx => ctx.sse.pipe(ticker())
  router.get('/a', sse(), asMiddleware)
  router.get('/b', sse(), asContext)
  router.get('/c', sse(), asShape)
  router.get('/d', sse(), asRouterMiddleware)
}

interface State {
  user: User
}

interface Ctx {
  db: Map<string, string>
}

export const strictRouter = (router: Router<State, Ctx & SseContext>): void => {
  router.get('/events', sse(), ctx => {
    expectTypeOf(ctx.state.user).toEqualTypeOf<User>()
    expectTypeOf(ctx.db).toEqualTypeOf<Map<string, string>>()
    expectTypeOf(ctx.sse).toEqualTypeOf<EventStream>()
    // @ts-expect-error
    void ctx.state.nobody
    // @ts-expect-error
    ctx.state.user.id = 'a string'
    // @ts-expect-error
    ctx.db = 5
    return ctx.sse.pipe(ticker())
  })
}

export const strictRouterThatLearnsOfSse = (router: Router<State, Ctx>): void => {
  router.get('/events', sse(), ctx => {
    expectTypeOf(ctx.state.user).toEqualTypeOf<User>()
    expectTypeOf(ctx.db).toEqualTypeOf<Map<string, string>>()
    expectTypeOf(ctx.sse).toEqualTypeOf<EventStream>()
    // @ts-expect-error
    void ctx.unknownProperty
    // @ts-expect-error
    void ctx.state.nobody
    return ctx.sse.pipe(ticker())
  })
  router.get('/other', ctx => {
    // @ts-expect-error
    void ctx.unknownProperty
    ctx.body = ctx.db.get('x')
  })
}

interface Extra {
  extra: string
}

export const twoExtendingMiddlewares = (router: Router<State, Ctx>): void => {
  const extending: Middleware<{}, Extra> = async (ctx, next) => {
    ctx.extra = 'x'
    await next()
  }
  router.get<{}, Extra & SseContext>('/events', extending, sse(), ctx => {
    expectTypeOf(ctx.extra).toEqualTypeOf<string>()
    expectTypeOf(ctx.sse).toEqualTypeOf<EventStream>()
    // @ts-expect-error
    void ctx.unknownProperty
    return ctx.sse.pipe(ticker())
  })
}

export const events = (stream: EventStream): void => {
  expectTypeOf(stream.send('x')).toEqualTypeOf<Promise<boolean>>()
  void stream.send({ id: '1', event: 'tick', data: { any: ['thing'] }, retry: 1, comment: 'c' })
  void stream.send({ data: undefined, id: undefined })
  // @ts-expect-error
  void stream.send(5)
  // @ts-expect-error
  void stream.send({ foo: 1 })
  // @ts-expect-error
  void stream.send({ data: 'x', type: 'tick' })
  // @ts-expect-error
  void stream.send({ data: 'x', retry: '1' })
  // @ts-expect-error
  void stream.send({ data: 'x', id: 1 })
  // @ts-expect-error
  void stream.send({ event: null })
  // @ts-expect-error
  void stream.send(null)
  // @ts-expect-error
  void stream.send()
  // @ts-expect-error
  void stream.comment(5)
  // @ts-expect-error
  encode({ foo: 1 })
  // @ts-expect-error
  encode('x', '\n\n')
  expectTypeOf(encode({ data: 1 }, '\r\n')).toEqualTypeOf<string>()
}

export const sources = (stream: EventStream): void => {
  expectTypeOf(stream.pipe(ticker())).toEqualTypeOf<Promise<void>>()
  void stream.pipe(['a', { data: 'b' }, Buffer.from('c'), new Uint8Array()])
  void stream.pipe(new Set(['a']))
  void stream.pipe(
    (function* () {
      yield 'a'
      yield { data: 'b' }
    })(),
  )
  void stream.pipe(
    (async function* () {
      yield 'a'
      yield { event: 'tick' }
    })(),
  )
  void stream.pipe(Readable.from(['a']))
  void stream.pipe(process.stdin)
  void stream.pipe(new ReadableStream<string>())
  void stream.pipe(new ReadableStream<Uint8Array>())
  void stream.pipe(new ReadableStream<Uint8Array>().pipeThrough(new TextDecoderStream()))
  void stream.pipe(() => ticker())
  void stream.pipe(ticker)
  void stream.pipe(async signal => {
    expectTypeOf(signal).toEqualTypeOf<AbortSignal>()
    const { body } = await fetch('http://127.0.0.1', { signal })
    return body!.pipeThrough(new TextDecoderStream())
  })
  void stream.pipe(async () => (await fetch('http://127.0.0.1')).body!)
  void stream.pipe(() => ['a'])
  void stream.pipe(() => Readable.from(['a']))
  void stream.pipe(() => new ReadableStream<string>())
  void stream.pipe(ticker(), { end: false, head: 'first-event' })
  void stream.pipe(ticker(), {})
}

export const wrongSources = (stream: EventStream): void => {
  // @ts-expect-error
  void stream.pipe([1, 2])
  // @ts-expect-error
  void stream.pipe([{ foo: 1 }])
  // @ts-expect-error
  void stream.pipe([{ retry: '1' }])
  // @ts-expect-error
  void stream.pipe(numbers())
  // @ts-expect-error
  void stream.pipe(new ReadableStream<number>())
  // @ts-expect-error
  void stream.pipe(() => [1])
  // @ts-expect-error
  void stream.pipe(async () => [1])
  // @ts-expect-error
  void stream.pipe(5)
  // @ts-expect-error
  void stream.pipe({})
  // @ts-expect-error
  void stream.pipe(Promise.resolve(['a']))
  // @ts-expect-error
  void stream.pipe()
  // @ts-expect-error
  void stream.pipe(ticker(), { end: 'no' })
  // @ts-expect-error
  void stream.pipe(ticker(), { head: 'later' })
  // @ts-expect-error
  void stream.pipe(ticker(), { ends: false })
}

export const mapped = (stream: EventStream): void => {
  void stream.pipe([1, 2], { map: n => (expectTypeOf(n).toEqualTypeOf<number>(), String(n)) })
  void stream.pipe(new Set([{ a: 1 }]), { map: item => (expectTypeOf(item).toEqualTypeOf<{ a: number }>(), { data: item }) })
  void stream.pipe(
    (async function* () {
      yield new Date()
    })(),
    { map: date => (expectTypeOf(date).toEqualTypeOf<Date>(), { data: date }), end: false },
  )
  void stream.pipe(new ReadableStream<URL>(), { map: url => (expectTypeOf(url).toEqualTypeOf<URL>(), url.href) })
  void stream.pipe(() => [1, 2], { map: n => (expectTypeOf(n).toEqualTypeOf<number>(), { data: n }) })
  void stream.pipe(async () => [1, 2], { map: n => (expectTypeOf(n).toEqualTypeOf<number>(), { data: n }) })
  void stream.pipe(async signal => (expectTypeOf(signal).toEqualTypeOf<AbortSignal>(), [1, 2]), { map: n => ({ data: n.toFixed() }) })
  // @ts-expect-error
  void stream.pipe([1, 2], { map: (s: string) => s })
  // @ts-expect-error
  void stream.pipe([1, 2], { map: n => n })
  // @ts-expect-error
  void stream.pipe([1, 2], { map: n => ({ foo: n }) })
  // @ts-expect-error
  void stream.pipe([1, 2], { map: 'data' })
}

export const options = (): void => {
  sse({ heartbeat: false, stallTimeout: false, maxAge: false, newline: '\r', whenFull: 'retry' })
  sse({ onError: (_error, ctx) => (expectTypeOf(ctx).toEqualTypeOf<Context>(), { event: 'failed' }) })
  sse({ onError: () => undefined })
  sse({ Stream: class Own extends EventStream {} })
  // @ts-expect-error
  sse({ heartBeat: 1 })
  // @ts-expect-error
  sse({ heartbeat: '1' })
  // @ts-expect-error
  sse({ heartbeat: true })
  // @ts-expect-error
  sse({ newline: '\n\n' })
  // @ts-expect-error
  sse({ whenFull: 'evict' })
  // @ts-expect-error
  sse({ onError: () => 5 })
  // @ts-expect-error
  sse({ Stream: Map })
  // @ts-expect-error
  sse(5)
}

export const middleware = (it: SseMiddleware): void => {
  expectTypeOf(sse()).toEqualTypeOf<SseMiddleware>()
  expectTypeOf(it.size).toEqualTypeOf<number>()
  expectTypeOf(it.close()).toEqualTypeOf<Promise<void>>()
  void it.close({ event: 'bye', retry: 1, graceMs: 1 })
  void it.close({ event: { data: 'bye' } })
  // @ts-expect-error
  it.size = 5
  // @ts-expect-error
  void it.close({ event: 5 })
  // @ts-expect-error
  void it.close({ grace: 5 })
}

export const members = async (stream: EventStream): Promise<void> => {
  expectTypeOf(stream.open()).toEqualTypeOf<EventStream>()
  expectTypeOf(stream.close()).toEqualTypeOf<void>()
  expectTypeOf(stream.connected).toEqualTypeOf<boolean>()
  expectTypeOf(stream.signal).toEqualTypeOf<AbortSignal>()
  expectTypeOf(stream.closed).toEqualTypeOf<Promise<CloseReason>>()
  expectTypeOf(stream.lastEventId).toEqualTypeOf<string | undefined>()
  expectTypeOf(stream.body).toEqualTypeOf<PassThrough>()
  expectTypeOf(stream.bytesWritten).toEqualTypeOf<number>()
  expectTypeOf(stream.eventsSent).toEqualTypeOf<number>()
  expectTypeOf<CloseReason>().toEqualTypeOf<'client' | 'closed' | 'error' | 'slow' | 'stalled' | 'expired' | 'shutdown'>()
  expectTypeOf<Newline>().toEqualTypeOf<'\n' | '\r\n' | '\r'>()
  await using own = stream
  void own
  // @ts-expect-error
  stream.connected = true
  // @ts-expect-error
  stream.lastEventId = '1'
}

export const named = (): void => {
  expectTypeOf<SseOptions>().toHaveProperty('heartbeat')
  expectTypeOf<CloseOptions>().toHaveProperty('graceMs')
  expectTypeOf<PipeOptions<number>>().toHaveProperty('map')
  expectTypeOf<MappedPipeOptions<number>['map']>().toEqualTypeOf<(item: number) => string | SseEvent>()
  expectTypeOf<string[]>().toExtend<Source>()
  expectTypeOf<string[]>().toExtend<Items<string>>()
  expectTypeOf<number[]>().not.toExtend<Source>()
  expectTypeOf<number[]>().toExtend<Source<number>>()
  expectTypeOf<SseError['code']>().toEqualTypeOf<SseErrorCode>()
  expectTypeOf<DefaultContext['sse']>().toEqualTypeOf<EventStream>()
}

describe('types', () => {
  it('compile (tsc -p . has the last word)', () => {
    expect(headline).to.be.a('function')
  })
})
