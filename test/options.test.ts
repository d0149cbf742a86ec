import { once } from 'node:events'
import { Agent } from 'node:http'
import { PassThrough, Readable } from 'node:stream'
import { setImmediate as turn } from 'node:timers/promises'
import { mock } from 'node:test'
import { expect } from 'chai'
import type { Context, Middleware } from 'koa'
import { EventStream, sse, type CloseOptions, type CloseReason, type SseOptions } from 'koa-sse'
import request from 'supertest'
import { clog } from './support/clog.ts'
import { connect, type LiveClient } from './support/client.ts'
import { collect } from './support/heap.ts'
import { failure } from './support/promises.ts'
import { stuck } from './support/idle.ts'
import { koa, serve, until } from './support/serve.ts'

const KB = 'x'.repeat(1_000)

/** `until`, for tests whose clock stands still. */
const untilTurn = async (condition: () => boolean): Promise<void> => {
  while (!condition()) await turn()
}

/** A handler that opens its stream and returns, and the streams that it has opened. */
const opener = (): { handler: Middleware; streams: EventStream[]; last: () => EventStream } => {
  const streams: EventStream[] = []
  return {
    streams,
    handler: ctx => {
      streams.push(ctx.sse.open())
    },
    last: () => streams.at(-1)!,
  }
}

const wrong = (options: unknown): (() => unknown) => {
  return () => sse(options as SseOptions)
}

describe('sse(options)', () => {
  describe('validation', () => {
    const types: Record<string, unknown[]> = {
      heartbeat: ['15000', true, null, {}, 15n],
      heartbeatText: [1, true, null, {}, Buffer.from('ping')],
      retry: ['1000', true, false, null, {}, 1n],
      newline: ['\n\n', 'lf', '', 1, null, true, ['\n']],
      highWaterMark: ['16384', true, false, null, {}, 1n],
      maxBuffer: ['16384', true, false, null, {}, 1n],
      stallTimeout: ['30000', true, null, {}, 1n],
      maxAge: ['30000', true, null, {}, 1n],
      maxStreams: ['1', true, false, null, {}, 1n],
      whenFull: ['evict', '', 1, null, true, ['refuse']],
      onError: ['error', 1, null, true, {}],
      Stream: ['EventStream', 1, null, true, {}, () => {}, Object, Date, { prototype: Object.create(EventStream.prototype) as object }],
    }
    const ranges: Record<string, unknown[]> = {
      heartbeat: [0, -0, -1, Number.NaN, Infinity, -Infinity],
      retry: [-5, 1.5, Number.NaN, Infinity],
      highWaterMark: [-1, 1.5, Number.NaN],
      maxBuffer: [-1, 1.5, Number.NaN],
      stallTimeout: [0, -1, Number.NaN],
      maxAge: [0, -1, Number.NaN],
      maxStreams: [-1, 1.5, Number.NaN],
    }

    for (const [name, values] of Object.entries(types)) {
      it(`refuses a ${name} of the wrong type with a TypeError that names it`, () => {
        for (const value of values) expect(wrong({ [name]: value }), String(value)).to.throw(TypeError, `\`${name}\``)
      })
    }

    for (const [name, values] of Object.entries(ranges)) {
      it(`refuses a ${name} out of range with a RangeError that names it`, () => {
        for (const value of values) expect(wrong({ [name]: value }), String(value)).to.throw(RangeError, `\`${name}\``)
      })
    }

    it('refuses an option that nobody knows with a TypeError that names it', () => {
      expect(wrong({ heartBeat: 1_000 })).to.throw(TypeError, '`heartBeat`')
      expect(wrong({ foo: undefined })).to.throw(TypeError, '`foo`')
    })

    it('refuses options that are no object', () => {
      for (const options of [null, 1, 'x', true, [], () => {}]) expect(wrong(options)).to.throw(TypeError)
    })

    it('refuses a highWaterMark above maxBuffer with a RangeError', () => {
      expect(wrong({ highWaterMark: 2_000, maxBuffer: 1_999 })).to.throw(RangeError, '`highWaterMark`')
      expect(wrong({ highWaterMark: 1_048_577 })).to.throw(RangeError)
      expect(wrong({ maxBuffer: 16_383 })).to.throw(RangeError)
      expect(wrong({ highWaterMark: 2_000, maxBuffer: 2_000 })).not.to.throw()
      expect(wrong({ highWaterMark: 1_048_576 })).not.to.throw()
      expect(wrong({ maxBuffer: 16_384 })).not.to.throw()
    })

    it('says what it expected and what it got', () => {
      expect(wrong({ retry: -5 })).to.throw(RangeError, 'Expected `retry` to be a non-negative integer, got -5 (number)')
      expect(wrong({ retry: '5' })).to.throw(TypeError, 'Expected `retry` to be a non-negative integer, got "5" (string)')
    })

    it('takes what is right', () => {
      class Own extends EventStream {}
      const right: SseOptions[] = [
        {},
        { heartbeat: false, stallTimeout: false, maxAge: false },
        { heartbeat: 1, stallTimeout: 1, maxAge: 1 },
        { heartbeat: 0.5 },
        { retry: 0 },
        { heartbeatText: '' },
        { newline: '\r\n' },
        { newline: '\r' },
        { highWaterMark: 1, maxBuffer: 1 },
        { maxStreams: 1, whenFull: 'retry' },
        { onError: () => undefined, Stream: Own },
        { Stream: EventStream },
      ]
      for (const options of right) expect(wrong(options)).not.to.throw()
    })

    it('takes undefined for the default', () => {
      const names = Object.keys(types)
      expect(wrong(Object.fromEntries(names.map(name => [name, undefined])))).not.to.throw()
    })
  })

  describe('retry', () => {
    it('is told to the client when the stream opens', async () => {
      const { handler } = opener()
      const { url } = await serve(koa(sse({ retry: 1_234 }), handler))
      const client = await connect(url)
      await until(() => client.text !== '')
      expect(client.text).to.equal('retry: 1234\n\n')
    })

    it('may be 0', async () => {
      const { handler } = opener()
      const { url } = await serve(koa(sse({ retry: 0 }), handler))
      const client = await connect(url)
      await until(() => client.text !== '')
      expect(client.text).to.equal('retry: 0\n\n')
    })

    it('is not told by default', async () => {
      const { handler } = opener()
      const { url } = await serve(koa(sse(), handler))
      const client = await connect(url)
      await until(() => client.text !== '')
      expect(client.text).to.equal(':\n\n')
    })
  })

  describe('newline', () => {
    for (const newline of ['\n', '\r\n', '\r'] as const) {
      it(`${JSON.stringify(newline)} ends every line of the stream`, async () => {
        const handler: Middleware = ctx => {
          void ctx.sse.send({ id: '1', data: 'a\nb' })
          void ctx.sse.comment('c\nd')
          ctx.sse.close()
        }
        const { url } = await serve(koa(sse({ newline, retry: 5 }), handler))
        const client = await connect(url)
        await client.ended
        expect(client.text).to.equal(['retry: 5', '', 'id: 1', 'data: a', 'data: b', '', ': c', ': d', '', ''].join(newline))
      })
    }

    it('holds for the first byte too', async () => {
      const { handler } = opener()
      const { url } = await serve(koa(sse({ newline: '\r\n' }), handler))
      const client = await connect(url)
      await until(() => client.text !== '')
      expect(client.text).to.equal(':\r\n\r\n')
    })
  })

  describe('highWaterMark', () => {
    /** How many bytes a send may make wait before it waits itself: nothing leaves in the turn in which the stream opens. */
    const room = async (options: SseOptions): Promise<number> => {
      let bytes: number | undefined
      const handler: Middleware = ctx => {
        let waits = false
        const measure = async (): Promise<void> => {
          while (!waits && ctx.sse.bytesWritten < 1_000_000) {
            const before = ctx.sse.bytesWritten
            const sent = ctx.sse.send(KB)
            waits = true
            void sent.then(() => (waits = false))
            await Promise.resolve()
            await Promise.resolve()
            if (waits) bytes = before
          }
        }
        void measure()
      }
      const { url } = await serve(koa(sse(options), handler))
      await connect(url)
      await until(() => bytes !== undefined)
      return bytes!
    }

    it('is 16 KiB by default', async () => {
      expect(await room({})).to.be.within(16_384 - 1_010, 16_384)
    })

    it('is what is asked for', async () => {
      expect(await room({ highWaterMark: 5_000 })).to.be.within(5_000 - 1_010, 5_000)
    })
  })

  describe('maxBuffer', () => {
    /** How many bytes wait when an un-awaited send ends the stream. */
    const limit = async (options: SseOptions): Promise<number> => {
      let bytes = 0
      let reason: CloseReason | undefined
      const handler: Middleware = async ctx => {
        for (let i = 0; i < 5_000 && ctx.sse.open().connected; i++) {
          bytes = ctx.sse.bytesWritten
          void ctx.sse.send(KB)
        }
        reason = await ctx.sse.closed
      }
      const app = koa(sse(options), handler)
      const { url } = await serve(app)
      await connect(url).then(
        client => client.ended,
        () => {},
      )
      await until(() => reason !== undefined)
      expect(reason).to.equal('slow')
      expect(app.errors).to.deep.equal([])
      return bytes
    }

    it('is 1 MiB by default', async () => {
      expect(await limit({})).to.be.within(1_048_576 - 1_010, 1_048_576)
    })

    it('is what is asked for', async () => {
      expect(await limit({ maxBuffer: 50_000 })).to.be.within(50_000 - 1_010, 50_000)
    })

    it('may be reached to the byte', async () => {
      const seen: unknown[] = []
      const handler: Middleware = async ctx => {
        const stream = ctx.sse.open()
        void stream.send('x'.repeat(100))
        void stream.send('x'.repeat(200 - stream.bytesWritten - 'data: \n\n'.length))
        seen.push(stream.bytesWritten, stream.connected)
        void stream.comment('')
        seen.push(stream.bytesWritten, stream.connected, await stream.closed)
      }
      const { url } = await serve(koa(sse({ highWaterMark: 100, maxBuffer: 200 }), handler))
      await connect(url).catch(() => {})
      await until(() => seen.length === 5)
      expect(seen).to.deep.equal([200, true, 200, false, 'slow'])
    })

    it('never refuses an event that finds nothing waiting', async () => {
      const { handler, last } = opener()
      const { url } = await serve(koa(sse({ highWaterMark: 1_000, maxBuffer: 1_000 }), handler))
      const client = await connect(url)
      await client.next().catch(() => {})
      const data = KB.repeat(3_000)
      const sent = last().send(data)
      expect((await client.event()).data).to.equal(data)
      expect(await sent).to.equal(true)
      expect(await last().send('more')).to.equal(true)
      expect((await client.event()).data).to.equal('more')
    })

    it('is no limit for an event while fewer than highWaterMark bytes wait, so that awaited sends never end a stream', async () => {
      const { handler, last } = opener()
      const { url } = await serve(koa(sse({ highWaterMark: 20_000, maxBuffer: 20_000 }), handler))
      const client = await connect(url)
      await until(() => client.text !== '')
      const stream = last()
      expect(await stream.send('small')).to.equal(true)
      expect(await stream.send(KB.repeat(100))).to.equal(true)
      expect(await stream.send('after')).to.equal(true)
      expect(await client.take(3)).to.deep.equal(['small', KB.repeat(100), 'after'])
    })

    it('lets a send that comes too late know', async () => {
      const { handler, last } = opener()
      const { url } = await serve(koa(sse({ highWaterMark: 1_000, maxBuffer: 2_000 }), handler))
      const client = await connect(url)
      client.pause()
      await clog(last())
      expect(await last().send(KB.repeat(3))).to.equal(false)
      expect(await last().closed).to.equal('slow')
      expect(await last().send('later')).to.equal(false)
    })
  })

  describe('stallTimeout', () => {
    afterEach(() => mock.timers.reset())

    it('destroys the connection of a client that reads nothing, after 30 seconds by default, heartbeats or not', async () => {
      mock.timers.enable({ apis: ['setInterval'] })
      const { handler, last } = opener()
      const app = koa(sse({ heartbeat: 1_000 }), handler)
      const { url } = await serve(app)
      const client = await connect(url)
      client.pause()
      const stream = last()
      let reason: CloseReason | undefined
      void stream.closed.then(closed => (reason = closed))
      await clog(stream)
      for (let ms = 0; ms < 29_000; ms += 1_000) {
        mock.timers.tick(1_000)
        await turn()
      }
      expect(reason).to.equal(undefined)
      for (let ms = 0; ms < 16_000; ms += 1_000) {
        mock.timers.tick(1_000)
        await turn()
      }
      expect(reason).to.equal('stalled')
      client.resume()
      expect(await client.ended).to.equal('cut')
      expect(app.errors).to.deep.equal([])
    })

    it('spares a client that reads now and then', async () => {
      mock.timers.enable({ apis: ['setInterval'] })
      const { handler, last } = opener()
      const { url } = await serve(koa(sse({ stallTimeout: 10_000 }), handler))
      const client = await connect(url)
      const stream = last()
      for (let round = 0; round < 5; round++) {
        client.pause()
        const { read } = await clog(stream)
        mock.timers.tick(2_500)
        mock.timers.tick(2_500)
        await turn()
        expect(stream.connected).to.equal(true)
        client.resume()
        expect(await read).to.equal(true)
        mock.timers.tick(2_500)
      }
      expect(stream.connected).to.equal(true)
    })

    it('lets an idle stream be', async () => {
      mock.timers.enable({ apis: ['setInterval'] })
      const { handler, last } = opener()
      const { url } = await serve(koa(sse({ stallTimeout: 1_000, heartbeat: false }), handler))
      const client = await connect(url)
      client.pause()
      await turn()
      for (let ms = 0; ms < 20_000; ms += 250) mock.timers.tick(250)
      expect(last().connected).to.equal(true)
    })

    it('false waits for ever', async () => {
      mock.timers.enable({ apis: ['setInterval'] })
      const { handler, last } = opener()
      const { url } = await serve(koa(sse({ stallTimeout: false }), handler))
      const client = await connect(url)
      client.pause()
      await clog(last())
      for (let ms = 0; ms < 10_000_000; ms += 100_000) mock.timers.tick(100_000)
      await turn()
      expect(last().connected).to.equal(true)
    })
  })

  describe('maxAge', () => {
    afterEach(() => mock.timers.reset())

    it('ends each stream cleanly at a random 80 to 100 % of it, reason expired', async () => {
      mock.timers.enable({ apis: ['setTimeout'] })
      const { handler, streams } = opener()
      const app = koa(sse({ maxAge: 10_000 }), handler)
      const { url } = await serve(app)
      const clients: LiveClient[] = []
      for (let i = 0; i < 20; i++) clients.push(await connect(url))
      const ends: number[] = []
      const reasons = new Set<CloseReason>()
      let now = 0
      for (const stream of streams) {
        const note = async (): Promise<void> => {
          reasons.add(await stream.closed)
          ends.push(now)
        }
        void note()
      }
      for (now = 50; now <= 10_100; now += 50) {
        mock.timers.tick(50)
        await Promise.resolve()
      }
      expect(ends).to.have.length(20)
      expect(Math.min(...ends)).to.be.at.least(8_000)
      expect(Math.max(...ends)).to.be.at.most(10_050)
      expect(new Set(ends).size).to.be.above(5)
      expect([...reasons]).to.deep.equal(['expired'])
      for (const client of clients) expect(await client.ended).to.equal('clean')
      expect(app.errors).to.deep.equal([])
    })

    it('counts from when the stream opens', async () => {
      mock.timers.enable({ apis: ['setTimeout'] })
      let stream: EventStream | undefined
      let go = (): void => {}
      const gone = new Promise<void>(resolve => (go = resolve))
      const handler: Middleware = async ctx => {
        stream = ctx.sse
        await gone
        ctx.sse.open()
      }
      const { url } = await serve(koa(sse({ maxAge: 1_000 }), handler))
      const connected = connect(url)
      await untilTurn(() => stream !== undefined)
      mock.timers.tick(5_000)
      go()
      await connected
      mock.timers.tick(799)
      expect(stream!.connected).to.equal(true)
      mock.timers.tick(201)
      expect(stream!.connected).to.equal(false)
      expect(await stream!.closed).to.equal('expired')
    })

    it('is none by default', async () => {
      mock.timers.enable({ apis: ['setTimeout'] })
      const { handler, last } = opener()
      const { url } = await serve(koa(sse(), handler))
      await connect(url)
      mock.timers.tick(2_000_000_000)
      expect(last().connected).to.equal(true)
    })

    it('keeps nothing of a stream that has ended sooner', async () => {
      let request: WeakRef<Context> | undefined
      const handler: Middleware = ctx => {
        request = new WeakRef(ctx)
        return ctx.sse.pipe(['x'])
      }
      const { url } = await serve(koa(sse({ maxAge: 3_600_000 }), handler))
      expect(await (await connect(url)).ended).to.equal('clean')
      await until(() => {
        collect()
        return request!.deref() === undefined
      })
    })

    it('sends what was sent before it ends', async () => {
      mock.timers.enable({ apis: ['setTimeout'] })
      const { handler, last } = opener()
      const { url } = await serve(koa(sse({ maxAge: 1_000 }), handler))
      const client = await connect(url)
      void last().send('last')
      mock.timers.tick(1_000)
      expect(await client.ended).to.equal('clean')
      expect(client.events.map(event => event.data)).to.deep.equal(['last'])
    })
  })

  describe('maxStreams', () => {
    it('is unlimited by default', async () => {
      const { handler, streams } = opener()
      const middleware = sse()
      const { url } = await serve(koa(middleware, handler))
      await Promise.all(Array.from({ length: 50 }, () => connect(url)))
      expect(middleware.size).to.equal(50)
      expect(streams.every(stream => stream.connected)).to.equal(true)
    })

    for (const [name, open] of [
      ['open', ctx => void ctx.sse.open()],
      ['send', ctx => void ctx.sse.send('x')],
      ['comment', ctx => void ctx.sse.comment('x')],
      ['pipe', ctx => ctx.sse.pipe(['x'], { end: false })],
    ] as [string, Middleware][]) {
      it(`refuses one more with 503 and Retry-After at ${name}()`, async () => {
        const { url } = await serve(koa(sse({ maxStreams: 2 }), open))
        await connect(url)
        await connect(url)
        const { status, headers, text } = await request(url).get('/')
        expect(status).to.equal(503)
        expect(headers['retry-after']).to.match(/^[1-9][0-9]*$/)
        expect(headers['content-type']).not.to.include('event-stream')
        expect(text).to.equal('Service Unavailable')
      })
    }

    it('refuses a pipe that waited for its first event, and releases its source', async () => {
      let go = (): void => {}
      let released = false
      const started = new Promise<void>(resolve => (go = resolve))
      const handler: Middleware = ctx => {
        if (ctx.path === '/first') return void ctx.sse.open()
        async function* source(): AsyncGenerator<string> {
          try {
            await started
            yield 'late'
          } finally {
            released = true
          }
        }
        return ctx.sse.pipe(source(), { head: 'first-event' })
      }
      const { url } = await serve(koa(sse({ maxStreams: 1 }), handler))
      const late = Promise.resolve(request(url).get('/late'))
      await connect(`${url}/first`)
      go()
      expect((await late).status).to.equal(503)
      await until(() => released)
    })

    it('evicts nobody', async () => {
      const { handler, streams } = opener()
      const { url } = await serve(koa(sse({ maxStreams: 1 }), handler))
      const client = await connect(url)
      for (let i = 0; i < 3; i++) await request(url).get('/').expect(503)
      expect(streams).to.have.length(1)
      expect(await streams[0]!.send('still here')).to.equal(true)
      expect((await client.event()).data).to.equal('still here')
    })

    it('never refuses a route that does not stream', async () => {
      const { url } = await serve(koa(sse({ maxStreams: 1 }), ctx => void (ctx.path === '/events' ? ctx.sse.open() : (ctx.body = 'plain'))))
      await connect(`${url}/events`)
      await request(url).get('/plain').expect(200, 'plain')
      await request(url).get('/events').expect(503)
      await request(url).get('/plain').expect(200, 'plain')
    })

    it('does not count a stream that is not open', async () => {
      let asked = 0
      let go = (): void => {}
      const gone = new Promise<void>(resolve => (go = resolve))
      const handler: Middleware = async ctx => {
        asked++
        if (ctx.path === '/waits') await gone
        ctx.sse.open()
      }
      const middleware = sse({ maxStreams: 1 })
      const { url } = await serve(koa(middleware, handler))
      const waiting = Promise.resolve(request(url).get('/waits'))
      await until(() => asked === 1)
      expect(middleware.size).to.equal(0)
      expect((await connect(url)).status).to.equal(200)
      go()
      expect((await waiting).status).to.equal(503)
    })

    it('has room again when a client leaves', async () => {
      const { handler, streams } = opener()
      const { url } = await serve(koa(sse({ maxStreams: 1 }), handler))
      const first = await connect(url)
      await request(url).get('/').expect(503)
      first.destroy()
      expect(await streams[0]!.closed).to.equal('client')
      expect((await connect(url)).status).to.equal(200)
    })

    it('has room again when a stream is closed', async () => {
      const { handler, last } = opener()
      const { url } = await serve(koa(sse({ maxStreams: 1 }), handler))
      const first = await connect(url)
      last().close()
      await first.ended
      expect((await connect(url)).status).to.equal(200)
    })

    it('keeps no slot for a handler that throws, before or after it opens', async () => {
      const handler: Middleware = ctx => {
        if (ctx.path !== '/before') ctx.sse.open()
        if (ctx.path !== '/stays') throw new Error('mine')
      }
      const middleware = sse({ maxStreams: 1 })
      const { url } = await serve(koa(middleware, handler))
      for (let i = 0; i < 3; i++) await request(url).get('/before').expect(500)
      for (let i = 0; i < 3; i++) {
        const client = await connect(`${url}/after`)
        expect(client.status).to.equal(200)
        expect(await client.ended).to.equal('cut')
      }
      expect(middleware.size).to.equal(0)
      expect((await connect(`${url}/stays`)).status).to.equal(200)
    })

    it('keeps no slot for HEAD', async () => {
      const { handler } = opener()
      const middleware = sse({ maxStreams: 1 })
      const { url } = await serve(koa(middleware, handler))
      await request(url).head('/').expect(200)
      await request(url).head('/').expect(200)
      expect(middleware.size).to.equal(0)
      expect((await connect(url)).status).to.equal(200)
    })

    it('counts per middleware', async () => {
      const one = sse({ maxStreams: 1 })
      const two = sse({ maxStreams: 1 })
      const { handler } = opener()
      const { url } = await serve(koa((ctx, next) => (ctx.path === '/one' ? one(ctx, next) : two(ctx, next)), handler))
      expect((await connect(`${url}/one`)).status).to.equal(200)
      expect((await connect(`${url}/two`)).status).to.equal(200)
      await request(url).get('/one').expect(503)
      await request(url).get('/two').expect(503)
    })
  })

  describe("whenFull: 'retry'", () => {
    it('answers one more with 200, a delay and the end', async () => {
      const { handler, streams } = opener()
      const app = koa(sse({ maxStreams: 1, whenFull: 'retry', retry: 3_000 }), handler)
      const { url } = await serve(app)
      await connect(url)
      const delays = new Set<number>()
      for (let i = 0; i < 10; i++) {
        const { status, headers, text } = await request(url).get('/')
        expect(status).to.equal(200)
        expect(headers['content-type']).to.include('text/event-stream')
        const delay = Number(/^retry: ([0-9]+)\n\n$/.exec(text)?.[1])
        expect(delay, text).to.be.within(3_000, 6_000)
        delays.add(delay)
      }
      expect(delays.size).to.be.above(1)
      expect(streams[0]!.connected).to.equal(true)
      expect(app.errors).to.deep.equal([])
    })

    it('chooses a delay when no retry is set', async () => {
      const { handler } = opener()
      const { url } = await serve(koa(sse({ maxStreams: 1, whenFull: 'retry' }), handler))
      await connect(url)
      const { text } = await request(url).get('/')
      expect(Number(/^retry: ([0-9]+)\n\n$/.exec(text)?.[1]), text).to.be.above(0)
    })

    it('takes any retry that the option takes', async () => {
      const { handler } = opener()
      const app = koa(sse({ maxStreams: 1, whenFull: 'retry', retry: Number.MAX_SAFE_INTEGER }), handler)
      const { url } = await serve(app)
      await connect(url)
      const { status, text } = await request(url).get('/')
      expect(status).to.equal(200)
      expect(text).to.match(/^retry: [0-9]+\n\n$/)
    })

    it('ends the stream for its handler, without calling a source', async () => {
      let called = false
      let results: unknown[] = []
      const middleware = sse({ maxStreams: 1, whenFull: 'retry' })
      const handler: Middleware = async ctx => {
        if (ctx.path === '/first') return void ctx.sse.open()
        const piped = await ctx.sse.pipe(() => {
          called = true
          return ['x']
        })
        results = [piped, await ctx.sse.send('x'), await ctx.sse.closed, ctx.sse.connected, ctx.sse.signal.aborted, ctx.sse.eventsSent]
      }
      const { url } = await serve(koa(middleware, handler))
      await connect(`${url}/first`)
      const { text } = await request(url).get('/')
      await until(() => results.length > 0)
      expect(text).to.match(/^retry: [0-9]+\n\n$/)
      expect(called).to.equal(false)
      expect(results).to.deep.equal([undefined, false, 'closed', false, true, 0])
      expect(middleware.size).to.equal(1)
    })
  })

  describe('onError', () => {
    const boom = new Error('secret')
    const failing: Middleware = async ctx => {
      await ctx.sse.send('first')
      throw boom
    }
    const answer = async (options: SseOptions): Promise<{ client: LiveClient; errors: unknown[] }> => {
      const app = koa(sse(options), failing)
      const { url } = await serve(app)
      const client = await connect(url)
      expect(await client.ended).to.equal('cut')
      return { client, errors: app.errors }
    }

    it('gives the client a last event, before the response is cut', async () => {
      const { client, errors } = await answer({ onError: () => ({ event: 'failed', data: { code: 7 }, id: '9' }) })
      expect(client.events.slice(1)).to.deep.equal([{ event: 'failed', data: '{"code":7}', id: '9' }])
      expect(errors).to.deep.equal([boom])
    })

    it('may give a string', async () => {
      const { client } = await answer({ onError: () => 'sorry' })
      expect(client.events.map(event => event.data)).to.deep.equal(['first', 'sorry'])
    })

    it('may give nothing', async () => {
      const { client, errors } = await answer({ onError: () => undefined })
      expect(client.events.map(event => event.data)).to.deep.equal(['first'])
      expect(errors).to.deep.equal([boom])
    })

    it('gets the error and the context, once', async () => {
      const calls: [unknown, string][] = []
      await answer({ onError: (error, ctx: Context) => void calls.push([error, ctx.path]) })
      expect(calls).to.deep.equal([[boom, '/']])
    })

    it('that throws counts as nothing', async () => {
      const { client, errors } = await answer({
        onError: () => {
          throw new Error('second')
        },
      })
      expect(client.events.map(event => event.data)).to.deep.equal(['first'])
      expect(errors).to.deep.equal([boom])
    })

    for (const [name, rubbish] of [
      ['a number', 7],
      ['null', null],
      ['an unknown key', { foo: 1 }],
      ['a wrong id', { id: 'a\nb', data: 'x' }],
      ['an empty event', {}],
      ['a promise', Promise.resolve('x')],
    ] as [string, unknown][]) {
      it(`that returns ${name} counts as nothing`, async () => {
        const { client, errors } = await answer({ onError: () => rubbish as string })
        expect(client.events.map(event => event.data)).to.deep.equal(['first'])
        expect(errors).to.deep.equal([boom])
      })
    }

    it('that is async and fails counts as nothing, and ends no process', async () => {
      const { client, errors } = await answer({ onError: (async () => Promise.reject(new Error('async'))) as never })
      // An unhandled rejection fails the test by then.
      await new Promise(resolve => setImmediate(resolve))
      expect(client.events.map(event => event.data)).to.deep.equal(['first'])
      expect(errors).to.deep.equal([boom])
    })

    for (const [does, onError] of [
      ['returns rubbish', () => 7 as never],
      [
        'throws',
        () => {
          throw new Error('second')
        },
      ],
    ] as [string, () => never][]) {
      it(`that ${does} does not change what pipe rejects with`, async () => {
        let rejected: unknown
        const handler: Middleware = async ctx => {
          // oxlint-disable-next-line eslint/require-yield
          function* source(): Generator<string> {
            throw boom
          }
          rejected = await failure(() => ctx.sse.pipe(source()))
        }
        const app = koa(sse({ onError }), handler)
        const { url } = await serve(app)
        expect(await (await connect(url)).ended).to.equal('cut')
        await until(() => rejected !== undefined)
        expect(rejected).to.equal(boom)
        expect(app.errors).to.deep.equal([boom])
      })

      it(`that ${does} does no harm when the body is destroyed with an error`, async () => {
        const { handler, last } = opener()
        const app = koa(sse({ onError }), handler)
        const { url } = await serve(app)
        const client = await connect(url)
        last().body.destroy(boom)
        expect(await client.ended).to.equal('cut')
        expect(await last().closed).to.equal('error')
        expect(app.errors).to.deep.equal([boom])
      })
    }

    for (const who of ['onError', "a listener of 'error'"]) {
      it(`makes no clean end of a failure where ${who} closes the stream`, async () => {
        let stream: EventStream | undefined
        const closing = (): string => {
          stream!.close()
          return 'sorry'
        }
        const app = koa(sse({ onError: who === 'onError' ? closing : () => 'sorry' }), ctx => {
          stream = ctx.sse
          return failing(ctx, async () => {})
        })
        app.on('error', who === 'onError' ? () => {} : closing)
        const client = await connect((await serve(app)).url)
        expect(await client.ended).to.equal('cut')
        expect(client.events.map(event => event.data)).to.deep.equal(['first', 'sorry'])
        expect(await stream!.closed).to.equal('error')
      })
    }

    it('is not called, and nothing is said, when the handler fails before it opens', async () => {
      let calls = 0
      const app = koa(sse({ onError: () => void calls++ }), () => {
        throw boom
      })
      const { url } = await serve(app)
      await request(url).get('/').expect(500, 'Internal Server Error')
      expect(calls).to.equal(0)
      expect(app.errors).to.deep.equal([boom])
    })

    it("when there is none, the client learns nothing of the error's words", async () => {
      const { client } = await answer({})
      expect(client.text).to.equal(':\n\ndata: first\n\n')
    })
  })

  describe('Stream', () => {
    class Progress extends EventStream {
      percent(value: number): Promise<boolean> {
        return this.send({ event: 'progress', data: value })
      }
    }

    it('gives ctx.sse methods of your own', async () => {
      const handler: Middleware = async ctx => {
        expect(ctx.sse).to.be.instanceOf(Progress)
        await (ctx.sse as Progress).percent(50)
        ctx.sse.close()
      }
      const app = koa(sse({ Stream: Progress }), handler)
      const { url } = await serve(app)
      const client = await connect(url)
      expect(await client.ended).to.equal('clean')
      expect(client.text).to.equal(':\n\nevent: progress\ndata: 50\n\n')
      expect(app.errors).to.deep.equal([])
    })

    it('may extend another subclass', async () => {
      class More extends Progress {
        done(): Promise<boolean> {
          return this.percent(100)
        }
      }
      const handler: Middleware = ctx => {
        void (ctx.sse as More).done()
        ctx.sse.close()
      }
      const { url } = await serve(koa(sse({ Stream: More }), handler))
      const client = await connect(url)
      await client.ended
      expect(client.events.map(event => event.data)).to.deep.equal(['100'])
    })

    it('has a constructor of its own that hands on what it gets, or is told to', async () => {
      const make = (args: (given: unknown[]) => unknown[]): typeof EventStream =>
        class extends EventStream {
          constructor(...given: unknown[]) {
            super(...(args(given) as ConstructorParameters<typeof EventStream>))
          }
        }
      const app = koa(sse({ Stream: make(given => given) }), ctx => ctx.sse.pipe(['a']))
      const client = await connect((await serve(app)).url)
      expect(await client.ended).to.equal('clean')
      for (const args of [[], [{}], ['ctx']]) {
        const wrong = koa(sse({ Stream: make(() => args) }), ctx => ctx.sse.pipe(['a']))
        expect((await fetch((await serve(wrong)).url)).status).to.equal(500)
        expect(wrong.errors.map(String)).to.have.length(1)
        expect(String(wrong.errors[0])).to.match(/^TypeError: .* hands on what it gets, super\(\.\.\.args\)$/)
      }
    })

    it('is EventStream by default', async () => {
      let stream: unknown
      const { url } = await serve(koa(sse(), ctx => void (stream = ctx.sse.open())))
      await connect(url)
      expect(stream).to.be.instanceOf(EventStream)
    })
  })
})

describe('sse().size', () => {
  it('counts the streams that are open now', async () => {
    const middleware = sse()
    const { handler, streams } = opener()
    const { url } = await serve(koa(middleware, handler))
    expect(middleware.size).to.equal(0)
    const first = await connect(url)
    expect(middleware.size).to.equal(1)
    await connect(url)
    expect(middleware.size).to.equal(2)
    first.fin()
    await streams[0]!.closed
    expect(middleware.size).to.equal(1)
    streams[1]!.close()
    expect(middleware.size).to.equal(0)
  })

  it('cannot be set', () => {
    const middleware = sse()
    expect(() => Object.assign(middleware, { size: 5 })).to.throw(TypeError)
    expect(middleware.size).to.equal(0)
  })
})

describe('sse().close()', () => {
  const clientsOf = (url: string, count: number): Promise<LiveClient[]> => Promise.all(Array.from({ length: count }, () => connect(url)))

  it('ends every stream cleanly, reason shutdown', async () => {
    const middleware = sse()
    const { handler, streams } = opener()
    const app = koa(middleware, handler)
    const { url } = await serve(app)
    const clients = await clientsOf(url, 10)
    await middleware.close()
    expect(middleware.size).to.equal(0)
    for (const client of clients) expect(await client.ended).to.equal('clean')
    for (const stream of streams) {
      expect(await stream.closed).to.equal('shutdown')
      expect(stream.signal.aborted).to.equal(true)
      expect(stream.connected).to.equal(false)
      expect(await stream.send('late')).to.equal(false)
    }
    expect(app.errors).to.deep.equal([])
  })

  it('sends everybody what waits, the farewell, and a delay, and then no more', async () => {
    const middleware = sse()
    const { handler, streams } = opener()
    const { url } = await serve(koa(middleware, handler))
    const clients = await clientsOf(url, 3)
    for (const stream of streams) void stream.send('before')
    await middleware.close({ event: { event: 'bye', data: { why: 'deploy' } }, retry: 1_000 })
    for (const client of clients) {
      await client.ended
      expect(client.events.map(({ event, data }) => [event, data])).to.deep.equal([
        [undefined, 'before'],
        ['bye', '{"why":"deploy"}'],
      ])
      expect(client.retry).to.be.within(1_000, 2_000)
    }
  })

  it('takes a farewell without data', async () => {
    const middleware = sse()
    const { url } = await serve(koa(middleware, opener().handler))
    const client = await connect(url)
    await middleware.close({ event: { comment: 'bye' } })
    await client.ended
    expect(client.text).to.match(/^:\n\n: bye\nretry: \d+\n\n$/)
  })

  it('takes a string for the farewell', async () => {
    const middleware = sse()
    const { url } = await serve(koa(middleware, opener().handler))
    const client = await connect(url)
    await middleware.close({ event: 'bye' })
    await client.ended
    expect(client.events.map(event => event.data)).to.deep.equal(['bye'])
  })

  it('says nothing but a delay by default, of 2 to 4 seconds', async () => {
    const middleware = sse()
    const { url } = await serve(koa(middleware, opener().handler))
    const client = await connect(url)
    await middleware.close()
    await client.ended
    expect(client.events).to.deep.equal([])
    expect(client.retry).to.be.within(2_000, 4_000)
  })

  it('tells each client another delay, between retry and twice it', async () => {
    const middleware = sse()
    const { url } = await serve(koa(middleware, opener().handler))
    const clients = await clientsOf(url, 30)
    await middleware.close({ retry: 10_000 })
    await Promise.all(clients.map(client => client.ended))
    const delays = clients.map(client => client.retry!)
    for (const delay of delays) expect(delay).to.be.within(10_000, 20_000)
    expect(new Set(delays).size).to.be.above(20)
    expect(Math.max(...delays) - Math.min(...delays)).to.be.above(2_000)
  })

  it('takes a retry of 0', async () => {
    const middleware = sse()
    const { url } = await serve(koa(middleware, opener().handler))
    const client = await connect(url)
    await middleware.close({ retry: 0 })
    await client.ended
    expect(client.retry).to.equal(0)
  })

  it('takes the greatest retry that there is', async () => {
    const middleware = sse()
    const { url } = await serve(koa(middleware, opener().handler))
    const client = await connect(url)
    await middleware.close({ retry: Number.MAX_SAFE_INTEGER })
    expect(await client.ended).to.equal('clean')
    expect(client.text).to.match(/retry: [0-9]+\n\n$/)
  })

  it('releases sources', async () => {
    const middleware = sse()
    const { source, returned } = stuck()
    let unread = false
    function* ticks(): Generator<string> {
      let i = 0
      try {
        for (; i < 100_000; i++) yield KB
      } finally {
        unread = i < 100_000
      }
    }
    let settled = 0
    const handler: Middleware = async ctx => {
      await ctx.sse.pipe(ctx.path === '/stuck' ? source : ticks())
      settled++
    }
    const { url } = await serve(koa(middleware, handler))
    await connect(`${url}/stuck`)
    await (await connect(`${url}/ticks`)).event()
    await middleware.close({ graceMs: 500 })
    await until(() => settled === 2)
    expect([returned(), unread]).to.deep.equal([1, true])
  })

  it('waits for a client that does not read no longer than graceMs', async () => {
    const middleware = sse()
    const { handler, last } = opener()
    const app = koa(middleware, handler)
    const { url } = await serve(app)
    const client = await connect(url)
    client.pause()
    await clog(last())
    const start = performance.now()
    await middleware.close({ graceMs: 200 })
    const took = performance.now() - start
    expect(took).to.be.within(190, 4_000)
    client.resume()
    expect(await client.ended).to.equal('cut')
    expect(app.errors).to.deep.equal([])
  })

  it('gives a slow client the time to read what waits', async () => {
    const middleware = sse()
    const { handler, last } = opener()
    const { url } = await serve(koa(middleware, handler))
    const client = await connect(url)
    client.pause()
    await clog(last())
    const closed = middleware.close({ event: 'bye' })
    client.resume()
    await closed
    expect(await client.ended).to.equal('clean')
    expect(client.events.at(-1)?.data.slice(0, 10)).to.equal('bye')
  })

  it('does not wait for graceMs when nobody holds it up', async () => {
    const middleware = sse()
    const { url } = await serve(koa(middleware, opener().handler))
    await clientsOf(url, 5)
    const start = performance.now()
    await middleware.close({ graceMs: 60_000 })
    expect(performance.now() - start).to.be.below(20_000)
  })

  it('resolves at once when there is no stream', async () => {
    await sse().close()
  })

  it('answers new streams with 503 and Retry-After, while it closes and after', async () => {
    const middleware = sse({ whenFull: 'retry' })
    const { handler, last } = opener()
    const { url } = await serve(koa(middleware, handler))
    const client = await connect(url)
    client.pause()
    await clog(last())
    const closed = middleware.close({ graceMs: 100 })
    const during = await request(url).get('/')
    await closed
    const after = await request(url).get('/')
    for (const { status, headers } of [during, after]) {
      expect(status).to.equal(503)
      expect(headers['retry-after']).to.match(/^[1-9][0-9]*$/)
    }
    expect(middleware.size).to.equal(0)
  })

  it('answers so at once where a pipe was to wait for its first event, and releases its source', async () => {
    const middleware = sse()
    let asked = false
    const source = new Readable({ objectMode: true, read: () => void (asked = true) })
    const { url } = await serve(koa(middleware, ctx => ctx.sse.pipe(source, { head: 'first-event' })))
    await middleware.close()
    const { status, headers } = await request(url).get('/')
    expect(status).to.equal(503)
    expect(headers['retry-after']).to.match(/^[1-9][0-9]*$/)
    expect([asked, source.destroyed]).to.deep.equal([false, true])
  })

  for (const how of ['returns', 'awaits', 'starts'] as const) {
    it(`answers so where a handler that ${how} a pipe waits for its first event already`, async () => {
      const middleware = sse()
      const source = new PassThrough({ objectMode: true })
      const handler: Middleware = async ctx => {
        const piped = ctx.sse.pipe(source, { head: 'first-event' })
        if (how === 'returns') return piped
        if (how === 'awaits') await piped
      }
      const { server, url } = await serve(koa(middleware, handler))
      const answer = fetch(url)
      await until(() => source.listenerCount('readable') > 0)
      await middleware.close()
      const { status, headers } = await answer
      expect(status).to.equal(503)
      expect(headers.get('retry-after')).to.match(/^[1-9][0-9]*$/)
      expect(source.destroyed).to.equal(true)
      server.closeIdleConnections()
      await new Promise(resolve => server.close(resolve))
    })
  }

  it('ends the connections of its streams along with them: a client that waits for one would ask on it, and a 503 is final', async () => {
    const middleware = sse()
    const { server, url, sockets } = await serve(koa(middleware, ctx => void ctx.sse.open()))
    server.keepAliveTimeout = 60_000
    const agent = new Agent({ keepAlive: true })
    const client = await connect(url, { agent })
    await middleware.close()
    expect(await client.ended).to.equal('clean')
    await until(() => sockets.size === 0)
    agent.destroy()
  })

  it('leaves routes alone that do not stream', async () => {
    const middleware = sse()
    const { url } = await serve(koa(middleware, ctx => void (ctx.body = 'plain')))
    await middleware.close()
    await request(url).get('/').expect(200, 'plain')
  })

  it('leaves the streams of other middleware alone', async () => {
    const one = sse()
    const two = sse()
    const { handler, streams } = opener()
    const { url } = await serve(koa((ctx, next) => (ctx.path === '/one' ? one(ctx, next) : two(ctx, next)), handler))
    await connect(`${url}/one`)
    await connect(`${url}/two`)
    await one.close()
    expect(streams.map(stream => stream.connected)).to.deep.equal([false, true])
    expect((await connect(`${url}/two`)).status).to.equal(200)
  })

  it('returns the same promise again', async () => {
    const middleware = sse()
    const { url } = await serve(koa(middleware, opener().handler))
    const client = await connect(url)
    const closed = middleware.close({ event: 'one', retry: 1_000 })
    expect(middleware.close({ event: 'two', retry: 90_000 })).to.equal(closed)
    await closed
    expect(middleware.close()).to.equal(closed)
    await client.ended
    expect(client.events.map(event => event.data)).to.deep.equal(['one'])
    expect(client.retry).to.be.within(1_000, 2_000)
  })

  for (const [name, options] of [
    ['options that are no object', 5],
    ['null', null],
    ['an unknown option', { events: 'bye' }],
    ['a retry of the wrong type', { retry: '5' }],
    ['a graceMs of the wrong type', { graceMs: '5' }],
    ['a farewell that is null', { event: null }],
    ['a farewell that is a number', { event: 5 }],
    ['a farewell that is true', { event: true }],
    ['a farewell that is a function', { event: () => 'bye' }],
    ['a farewell that is an array', { event: [] }],
    ['a farewell without a field', { event: {} }],
    ['a farewell with an unknown key', { event: { data: 'bye', foo: 1 } }],
    ['a farewell with a broken id', { event: { data: 'bye', id: 'a\nb' } }],
    ['a farewell with a wrong retry', { event: { data: 'bye', retry: -1 } }],
    ['a farewell that does not serialise', { event: { data: 10n } }],
  ] as [string, unknown][]) {
    it(`refuses ${name} with a TypeError, and closes nothing`, async () => {
      const middleware = sse()
      const { handler, last } = opener()
      const { url } = await serve(koa(middleware, handler))
      const client = await connect(url)
      expect(await failure(() => middleware.close(options as CloseOptions))).to.be.instanceOf(TypeError)
      expect(last().connected).to.equal(true)
      expect(await last().send('still here')).to.equal(true)
      expect((await client.event()).data).to.equal('still here')
      expect((await connect(url)).status).to.equal(200)
    })
  }

  it('refuses a wrong range with a RangeError, and closes nothing', async () => {
    const middleware = sse()
    const { handler, last } = opener()
    const { url } = await serve(koa(middleware, handler))
    await connect(url)
    for (const options of [{ retry: -1 }, { retry: 1.5 }, { retry: Number.NaN }, { graceMs: -1 }, { graceMs: Number.NaN }, { graceMs: 2 ** 31 }]) {
      expect(await failure(() => middleware.close(options)), JSON.stringify(options)).to.be.instanceOf(RangeError)
    }
    expect(last().connected).to.equal(true)
  })

  it('lets server.close() return', async () => {
    const middleware = sse()
    const { handler, last } = opener()
    const { url, server } = await serve(koa(middleware, handler))
    const client = await connect(url)
    client.pause()
    await clog(last())
    await clientsOf(url, 2)
    await middleware.close({ graceMs: 100 })
    server.close()
    await once(server, 'close')
  })

  it('lets server.close() return to keep-alive clients too', async () => {
    const agent = new Agent({ keepAlive: true })
    const middleware = sse()
    const { url, server } = await serve(koa(middleware, opener().handler))
    const client = await connect(url, { agent })
    await middleware.close()
    await client.ended
    server.close()
    await once(server, 'close')
    agent.destroy()
  })
})
