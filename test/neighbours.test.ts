import { expect } from 'chai'
import { once } from 'node:events'
import { request, type IncomingHttpHeaders, type IncomingMessage } from 'node:http'
import { createRequire } from 'node:module'
import { Readable } from 'node:stream'
import { createBrotliDecompress, createGunzip, createInflate, constants, type BrotliOptions, type ZlibOptions } from 'node:zlib'
import { stripVTControlCharacters } from 'node:util'
import { createParser, type EventSourceMessage } from 'eventsource-parser'
import { bodyParser } from '@koa/bodyparser'
import etag from '@koa/etag'
import Koa, { type Context, type Middleware } from 'koa'
import compress from 'koa-compress'
import helmet from 'koa-helmet'
import jwt from 'koa-jwt'
import session from 'koa-session'
import supertest from 'supertest'
import { type CloseReason, type EventStream, sse, type SseMiddleware } from '../src/index.ts'
import { connect, type LiveClient } from './support/client.ts'
import { idle, stuck } from './support/idle.ts'
import { koa, serve, until } from './support/serve.ts'

// None of these has types of its own, or in @types.
const untyped = createRequire(import.meta.url)
const cors = untyped('@koa/cors') as (options?: { origin?: string; credentials?: boolean }) => Middleware
const conditional = untyped('koa-conditional-get') as () => Middleware
const ratelimit = untyped('koa-ratelimit') as (options: { driver: 'memory'; db: Map<string, unknown>; max: number; throw?: boolean }) => Middleware
const logger = untyped('koa-logger') as (transporter: (line: string) => void) => Middleware
const { sign } = untyped('jsonwebtoken') as { sign: (payload: object, secret: string, options?: { expiresIn: number }) => string }

const KOAS: [name: string, Class: typeof Koa][] = [
  ['Koa 3.3', Koa],
  ['Koa 3.0', untyped('koa30') as typeof Koa],
  ['Koa 2.16', untyped('koa2') as typeof Koa],
]

const appOf = (Class: typeof Koa, ...middleware: Middleware[]): Koa & { errors: unknown[] } => {
  const app = Object.assign(new Class(), { errors: [] as unknown[] })
  app.on('error', error => app.errors.push(error))
  for (const each of middleware) app.use(each)
  return app
}

const SYNC = { gzip: { flush: constants.Z_SYNC_FLUSH }, br: { flush: constants.BROTLI_OPERATION_FLUSH }, deflate: { flush: constants.Z_SYNC_FLUSH } }

const DECODERS = { gzip: createGunzip, br: createBrotliDecompress, deflate: createInflate }

/** koa-compress leaves alone what says no-transform. */
const compressed = (ctx: Context, options: { gzip?: ZlibOptions; br?: BrotliOptions; deflate?: ZlibOptions } = SYNC): void => {
  ctx.set('Cache-Control', 'no-cache')
  ctx.compress = options
}

interface CompressedClient {
  readonly headers: IncomingHttpHeaders
  readonly response: IncomingMessage
  /** Of the body as it came over the wire. */
  readonly bytes: () => number
  readonly events: EventSourceMessage[]
  readonly ended: Promise<'clean' | 'cut'>
  event(): Promise<EventSourceMessage>
}

const connectCompressed = async (url: string, encoding: keyof typeof DECODERS): Promise<CompressedClient> => {
  const req = request(url, { agent: false, headers: { 'accept-encoding': encoding } })
  req.on('error', () => {})
  req.end()
  const [response] = (await once(req, 'response')) as [IncomingMessage]
  expect(response.headers['content-encoding']).to.equal(encoding)
  const events: EventSourceMessage[] = []
  const parser = createParser({ onEvent: event => events.push(event) })
  let bytes = 0
  let read = 0
  const decoder = DECODERS[encoding]({ finishFlush: encoding === 'br' ? constants.BROTLI_OPERATION_FLUSH : constants.Z_SYNC_FLUSH })
  decoder.setEncoding('utf8').on('data', (text: string) => parser.feed(text))
  response.on('data', (chunk: Buffer) => {
    bytes += chunk.length
    decoder.write(chunk)
  })
  response.on('error', () => {})
  const ended = new Promise<'clean' | 'cut'>(resolve => response.on('close', () => resolve(response.complete ? 'clean' : 'cut')))
  const event = async (): Promise<EventSourceMessage> => {
    await until(() => events.length > read)
    return events[read++]!
  }
  return { headers: response.headers, response, bytes: () => bytes, events, ended, event }
}

/** Two events and the end. */
const hello: Middleware = ctx => {
  void ctx.sse.pipe(['hello', 'world'])
}

const BODY = ':\n\ndata: hello\n\ndata: world\n\n'

describe('koa-compress', () => {
  const app = (...handlers: Middleware[]): Koa & { errors: unknown[] } => koa(compress({ threshold: 0 }), sse(), ...handlers)

  it('holds nothing back by default: events arrive as they are', async () => {
    let stream!: EventStream
    const { url } = await serve(app(ctx => void (stream = ctx.sse).open()))
    const client = await connect(url, { headers: { 'accept-encoding': 'gzip, br, deflate' } })
    expect(client.headers).not.to.have.property('content-encoding')
    expect(client.headers['cache-control']).to.equal('no-cache, no-transform')
    for (const data of ['one', 'two']) {
      await stream.send(data)
      expect((await client.event()).data).to.equal(data)
    }
  })

  for (const encoding of ['gzip', 'br', 'deflate'] as const) {
    it(`compresses with ${encoding} by ctx.compress, and each event arrives at once`, async () => {
      let stream!: EventStream
      const server = app(ctx => {
        compressed(ctx)
        stream = ctx.sse.open()
      })
      const { url } = await serve(server)
      const client = await connectCompressed(url, encoding)
      expect(client.headers['cache-control']).to.equal('no-cache')
      for (let n = 0; n < 20; n++) {
        // Text that compresses well, so that it shows.
        expect(await stream.send({ id: String(n), data: 'abc'.repeat(1_000) })).to.equal(true)
        expect((await client.event()).id).to.equal(String(n))
      }
      expect(client.bytes()).to.be.below(6_000)
      stream.close()
      expect(await client.ended).to.equal('clean')
      expect(server.errors).to.deep.equal([])
    })
  }

  it('makes pipe wait for a client that does not read', async () => {
    let taken = 0
    const noise = function* (): Generator<string> {
      // Random text, which compresses badly, or a slow client would not be slow.
      for (; taken < 64_000; taken++) yield Buffer.from(Array.from({ length: 768 }, () => Math.random() * 256)).toString('base64')
    }
    let stream!: EventStream
    const server = app(ctx => {
      if (ctx.path === '/ping') return void (ctx.status = 204)
      compressed(ctx)
      void (stream = ctx.sse).pipe(noise())
    })
    const { url } = await serve(server)
    const client = await connect(url, { headers: { 'accept-encoding': 'gzip' } })
    client.pause()
    let before = -1
    // Requests of others are the clock: the source had its turns between them, and nobody asked it for more.
    for (let quiet = 0; quiet < 20; quiet = taken === before ? quiet + 1 : 0) {
      before = taken
      await supertest(url).get('/ping').expect(204)
    }
    expect(taken).to.be.within(1, 32_000)
    // A FIN: the way to leave that is hardest to notice while a write waits.
    client.fin()
    expect(await stream.closed).to.equal('client')
    expect(server.errors).to.deep.equal([])
  })

  for (const [name, Class] of KOAS) {
    for (const leave of ['destroy', 'fin', 'rst'] as const) {
      it(`causes no error when the client leaves a compressed stream by ${leave}, on ${name}`, async () => {
        const { source, released } = idle()
        let stream!: EventStream
        const server = appOf(Class, compress({ threshold: 0 }), sse(), ctx => {
          compressed(ctx)
          void (stream = ctx.sse).pipe(source)
        })
        const { url, sockets } = await serve(server)
        const client = await connect(url, { headers: { 'accept-encoding': 'gzip' } })
        client[leave]()
        await released
        expect(await stream.closed).to.equal('client')
        expect(await stream.send('too late')).to.equal(false)
        await until(() => sockets.size === 0)
        expect(server.errors).to.deep.equal([])
      })
    }

    it(`lets the client tell at once that the body was destroyed with an error, on ${name}`, async () => {
      const failure = new Error('upstream')
      let stream!: EventStream
      const server = appOf(Class, compress({ threshold: 0 }), sse({ stallTimeout: false }), ctx => {
        compressed(ctx)
        void (stream = ctx.sse).send('one')
      })
      const { url } = await serve(server)
      const client = await connectCompressed(url, 'gzip')
      await client.event()
      stream.body.destroy(failure)
      expect(await client.ended).to.equal('cut')
      expect(await stream.closed).to.equal('error')
      expect(server.errors).to.deep.equal([failure])
    })

    it(`lets the client tell that a source failed, and does not hang, on ${name}`, async () => {
      const failure = new Error('upstream')
      const server = appOf(Class, compress({ threshold: 0 }), sse({ onError: () => ({ event: 'sorry', data: '' }) }), ctx => {
        compressed(ctx)
        void ctx.sse.pipe(
          (async function* () {
            yield 'one'
            throw failure
          })(),
        )
      })
      const { url } = await serve(server)
      const client = await connectCompressed(url, 'gzip')
      expect(await client.ended).to.equal('cut')
      await until(() => client.events.length === 2)
      expect(client.events).to.deep.equal([
        { data: 'one', event: undefined, id: undefined },
        { data: '', event: 'sorry', id: undefined },
      ])
      expect(server.errors).to.deep.equal([failure])
    })
  }
})

describe('koa-session', () => {
  it('sets and reads its cookie on a stream', async () => {
    const app = koa()
    app.keys = ['secret']
    app.use(session(app))
    app.use(sse())
    app.use(async ctx => {
      const { views = 0 } = ctx.session as { views?: number }
      ctx.session!['views'] = views + 1
      await ctx.sse.send(String(views + 1))
    })
    const { url } = await serve(app)
    const first = await connect(url)
    expect((await first.event()).data).to.equal('1')
    const cookies = first.headers['set-cookie']!
    expect(cookies.map(cookie => cookie.split('=')[0])).to.deep.equal(['koa.sess', 'koa.sess.sig'])
    const cookie = cookies.map(each => each.split(';')[0]).join('; ')
    const second = await connect(url, { headers: { cookie } })
    expect((await second.event()).data).to.equal('2')
    expect(app.errors).to.deep.equal([])
  })
})

describe('cookies', () => {
  it('all survive, whoever set them', async () => {
    const app = koa(
      async (ctx, next) => {
        ctx.cookies.set('outer-before', '1')
        await next()
        ctx.cookies.set('outer-after', '2')
      },
      sse(),
      ctx => {
        ctx.cookies.set('inner', '3')
        ctx.append('Set-Cookie', 'appended=4')
        void ctx.sse.pipe(['hello', 'world'])
      },
    )
    const { url } = await serve(app)
    const { headers, text } = await supertest(url).get('/').expect(200)
    const names = (headers['set-cookie'] as unknown as string[]).map(cookie => cookie.split('=')[0])
    expect(names).to.have.members(['outer-before', 'inner', 'appended', 'outer-after'])
    expect(text).to.equal(BODY)
    expect(app.errors).to.deep.equal([])
  })
})

describe('@koa/cors', () => {
  it('adds its headers to a stream', async () => {
    const { url } = await serve(koa(cors({ credentials: true }), sse(), hello))
    const response = await supertest(url).get('/').set('Origin', 'https://example.org').expect(200).expect('Content-Type', 'text/event-stream')
    expect(response.headers['access-control-allow-origin']).to.equal('https://example.org')
    expect(response.headers['access-control-allow-credentials']).to.equal('true')
    expect(response.headers['vary']).to.equal('Origin')
    expect(response.text).to.equal(BODY)
  })

  it('answers a preflight without a stream', async () => {
    const mw = sse()
    let opened = 0
    const { url } = await serve(
      koa(cors(), mw, ctx => {
        opened++
        ctx.sse.open()
      }),
    )
    await supertest(url)
      .options('/')
      .set({ Origin: 'https://example.org', 'Access-Control-Request-Method': 'GET', 'Access-Control-Request-Headers': 'last-event-id' })
      .expect(204)
      .expect('Access-Control-Allow-Headers', 'last-event-id')
    expect(opened).to.equal(0)
    expect(mw.size).to.equal(0)
  })

  it('adds its headers to an error before the stream too', async () => {
    const { url } = await serve(koa(cors(), sse(), ctx => ctx.throw(403)))
    await supertest(url).get('/').set('Origin', 'https://example.org').expect(403).expect('Access-Control-Allow-Origin', '*')
  })
})

describe('koa-helmet', () => {
  it('adds its headers, and takes none of ours', async () => {
    const { url } = await serve(koa(helmet(), sse(), hello))
    const { headers, text } = await supertest(url).get('/').expect(200)
    expect(headers).to.include({
      'content-type': 'text/event-stream',
      'cache-control': 'no-cache, no-transform',
      'x-accel-buffering': 'no',
      'x-content-type-options': 'nosniff',
    })
    expect(headers).to.have.property('content-security-policy')
    expect(text).to.equal(BODY)
  })
})

describe('koa-conditional-get and @koa/etag', () => {
  for (const [name, middleware] of [
    ['koa-conditional-get', [conditional()]],
    ['@koa/etag', [etag()]],
    ['both', [conditional(), etag()]],
  ] as const) {
    it(`leave a stream unharmed (${name})`, async () => {
      const { url } = await serve(koa(...middleware, sse(), hello))
      for (const headers of [{}, { 'If-None-Match': '"abc"' }, { 'If-Modified-Since': new Date().toUTCString() }]) {
        const response = await supertest(url).get('/').set(headers).expect(200)
        expect(response.text).to.equal(BODY)
        expect(response.headers).not.to.have.property('etag')
      }
    })
  }

  for (const [name, Class] of KOAS) {
    it(`turn If-None-Match: * into a 304 and release the source, on ${name}`, async () => {
      const { source, released } = idle()
      const readable = new Readable({ read() {} })
      const { source: iterator, returned } = stuck()
      const streams: EventStream[] = []
      const reasons: Promise<CloseReason>[] = []
      const mw = sse()
      const app = appOf(Class, conditional(), etag(), mw, ctx => {
        streams.push(ctx.sse)
        reasons.push(ctx.sse.closed)
        void ctx.sse.pipe(ctx.path === '/function' ? source : ctx.path === '/readable' ? readable : iterator)
      })
      const { url } = await serve(app)
      for (const path of ['/function', '/readable', '/iterator']) {
        const { text } = await supertest(url).get(path).set('If-None-Match', '*').expect(304)
        expect(text).to.equal('')
      }
      await released
      expect(readable.destroyed).to.equal(true)
      expect(returned()).to.equal(1)
      expect(await Promise.all(reasons)).to.deep.equal(['closed', 'closed', 'closed'])
      expect(streams.map(stream => stream.connected)).to.deep.equal([false, false, false])
      expect(mw.size).to.equal(0)
      expect(app.errors).to.deep.equal([])
    })
  }
})

describe('koa-jwt', () => {
  const secret = 'a secret of the test'
  let mw: SseMiddleware
  let handled: number

  const server = async (): Promise<string> => {
    mw = sse()
    handled = 0
    const app = koa(jwt({ secret }), mw, ctx => {
      handled++
      void ctx.sse.pipe([`hello ${ctx.state.user.name}`])
    })
    return (await serve(app)).url
  }

  it('answers 401 before the stream', async () => {
    const url = await server()
    const expired = sign({ name: 'ada' }, secret, { expiresIn: -1 })
    const forged = sign({ name: 'ada' }, 'another secret')
    for (const headers of [{}, { Authorization: 'Bearer rubbish' }, { Authorization: `Bearer ${expired}` }, { Authorization: `Bearer ${forged}` }]) {
      const { text } = await supertest(url)
        .get('/')
        .set(headers)
        .expect(401)
        .expect('Content-Type', /^text\/plain/)
      expect(text).not.to.include(':\n\n')
    }
    expect(handled).to.equal(0)
    expect(mw.size).to.equal(0)
  })

  it('lets a good token have its stream', async () => {
    const url = await server()
    const { text } = await supertest(url)
      .get('/')
      .set('Authorization', `Bearer ${sign({ name: 'ada' }, secret)}`)
      .expect(200)
      .expect('Content-Type', 'text/event-stream')
    expect(text).to.equal(':\n\ndata: hello ada\n\n')
  })

  it('answers 401 behind sse() too, which is still closed then', async () => {
    mw = sse()
    const { url } = await serve(koa(mw, jwt({ secret }), hello))
    await supertest(url).get('/').expect(401)
    const { text } = await supertest(url)
      .get('/')
      .set('Authorization', `Bearer ${sign({ name: 'ada' }, secret)}`)
      .expect(200)
    expect(text).to.equal(BODY)
  })
})

describe('koa-ratelimit', () => {
  for (const how of ['answers', 'throws'] as const) {
    it(`${how} 429 before the stream, and leaves the earlier streams open`, async () => {
      const mw = sse()
      const app = koa(ratelimit({ driver: 'memory', db: new Map(), max: 2, throw: how === 'throws' }), mw, ctx => void ctx.sse.send('welcome'))
      const { url } = await serve(app)
      const clients: LiveClient[] = []
      for (const remaining of ['1', '0']) {
        const client = await connect(url)
        expect(client.status).to.equal(200)
        expect(client.headers['x-ratelimit-remaining']).to.equal(remaining)
        clients.push(client)
      }
      const { headers, text } = await supertest(url).get('/').expect(429)
      expect(headers).to.have.property('retry-after')
      expect(headers['content-type']).to.match(/^text\/plain/)
      expect(text).to.match(/^Rate limit exceeded/)
      expect(mw.size).to.equal(2)
      for (const client of clients) expect((await client.event()).data).to.equal('welcome')
    })
  }
})

describe('koa-logger', () => {
  const logged = (): { lines: string[]; middleware: Middleware } => {
    const lines: string[] = []
    return { lines, middleware: logger(line => lines.push(stripVTControlCharacters(line).trim())) }
  }

  it('logs a stream when it is over, and breaks nothing', async () => {
    const { lines, middleware } = logged()
    let stream!: EventStream
    const app = koa(middleware, sse(), ctx => void (stream = ctx.sse).send('hello'))
    const { url } = await serve(app)
    const client = await connect(`${url}/live`)
    expect((await client.event()).data).to.equal('hello')
    expect(lines).to.deep.equal(['<-- GET /live'])
    stream.close()
    expect(await client.ended).to.equal('clean')
    await until(() => lines.length === 2)
    expect(lines[1]).to.match(/^--> GET \/live 200 \d+ms -$/)
    expect(app.errors).to.deep.equal([])
  })

  it('logs a client that leaves', async () => {
    const { lines, middleware } = logged()
    const app = koa(middleware, sse(), ctx => void ctx.sse.open())
    const { url } = await serve(app)
    const client = await connect(url)
    client.destroy()
    await until(() => lines.length === 2)
    expect(lines[1]).to.match(/^(-x-|-->) GET \/ 200 \d+ms/)
    expect(app.errors).to.deep.equal([])
  })

  it('logs the status of an error before the stream', async () => {
    const { lines, middleware } = logged()
    const { url } = await serve(koa(middleware, sse(), ctx => ctx.throw(403)))
    await supertest(url).get('/').expect(403)
    expect(lines[1]).to.match(/^xxx GET \/ 403/)
  })
})

describe('@koa/bodyparser', () => {
  it('reads the body of a POST, and a stream answers', async () => {
    const app = koa(bodyParser(), sse(), ctx => {
      const { words } = ctx.request.body as { words: string[] }
      void ctx.sse.pipe(words)
    })
    const { url } = await serve(app)
    const { text } = await supertest(url)
      .post('/')
      .send({ words: ['hello', 'world'] })
      .expect(200)
      .expect('Content-Type', 'text/event-stream')
    expect(text).to.equal(BODY)
  })

  it('does not hide that the client left', async () => {
    const { source, released } = idle()
    let stream!: EventStream
    const app = koa(bodyParser(), sse({ heartbeat: false }), ctx => {
      expect(ctx.request.body).to.deep.equal({ question: 'why?' })
      void (stream = ctx.sse).pipe(source)
    })
    const { url } = await serve(app)
    const client = await connect(url, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ question: 'why?' }),
    })
    expect((await client.event()).data).to.equal('first')
    client.destroy()
    await released
    expect(await stream.closed).to.equal('client')
    expect(app.errors).to.deep.equal([])
  })

  it('answers a body that is no JSON with 400, and no stream', async () => {
    const mw = sse()
    const { url } = await serve(koa(bodyParser(), mw, hello))
    await supertest(url).post('/').set('Content-Type', 'application/json').send('{').expect(400)
    expect(mw.size).to.equal(0)
  })
})

describe('all of them together', () => {
  for (const [name, Class] of KOAS) {
    it(`let a stream through, and its client leave without an error, on ${name}`, async () => {
      const secret = 'another secret of the test'
      const lines: string[] = []
      const { source, released } = idle()
      let stream!: EventStream
      const mw = sse()
      const app = appOf(Class)
      app.keys = ['secret']
      app.use(logger(line => lines.push(line)))
      app.use(helmet())
      app.use(cors({ credentials: true }))
      app.use(compress({ threshold: 0 }))
      app.use(conditional())
      app.use(etag())
      app.use(ratelimit({ driver: 'memory', db: new Map(), max: 10 }))
      app.use(session(app))
      app.use(bodyParser())
      app.use(jwt({ secret }))
      app.use(mw)
      app.use(ctx => {
        ctx.session!['seen'] = true
        compressed(ctx)
        void (stream = ctx.sse).pipe(source)
      })
      const { url, sockets } = await serve(app)
      const headers = { origin: 'https://example.org', authorization: `Bearer ${sign({ name: 'ada' }, secret)}`, 'accept-encoding': 'gzip' }
      const client = await connect(url, { headers })
      expect(client.status).to.equal(200)
      expect(client.headers).to.include({
        'content-type': 'text/event-stream',
        'content-encoding': 'gzip',
        'access-control-allow-origin': 'https://example.org',
        'x-content-type-options': 'nosniff',
        'x-ratelimit-remaining': '9',
      })
      expect(client.headers['set-cookie']).to.have.lengthOf(2)
      client.destroy()
      await released
      expect(await stream.closed).to.equal('client')
      await until(() => sockets.size === 0 && lines.length === 2)
      expect(mw.size).to.equal(0)
      expect(app.errors).to.deep.equal([])
    })
  }
})
