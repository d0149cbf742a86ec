import { expect } from 'chai'
import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { request } from 'node:https'
import type { IncomingMessage } from 'node:http'
import {
  connect,
  constants,
  createSecureServer,
  createServer,
  type ClientHttp2Session,
  type ClientHttp2Stream,
  type IncomingHttpHeaders,
  type OutgoingHttpHeaders,
  type SecureClientSessionOptions,
  type ServerHttp2Session,
} from 'node:http2'
import { createRequire } from 'node:module'
import { connect as connectSocket, type AddressInfo, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { PassThrough, Readable } from 'node:stream'
import { buffer } from 'node:stream/consumers'
import { setTimeout as sleep } from 'node:timers/promises'
import { connect as connectTls } from 'node:tls'
import { createParser, type EventSourceMessage } from 'eventsource-parser'
import Koa, { type Middleware } from 'koa'
import { type EventStream, sse, type SseMiddleware, type SseOptions } from '../src/index.ts'
import { idle } from './support/idle.ts'
import { signalled } from './support/promises.ts'
import { until } from './support/serve.ts'
import { reset } from './support/reset.ts'

// The aliases of older versions have no types of their own.
const older = createRequire(import.meta.url)
const KOAS: [name: string, Class: typeof Koa][] = [
  ['Koa 3.3', Koa],
  ['Koa 3.0', older('koa30') as typeof Koa],
  ['Koa 2.16', older('koa2') as typeof Koa],
]

type App = Koa & { errors: unknown[] }

const appOf = (Class: typeof Koa, ...middleware: Middleware[]): App => {
  const app = Object.assign(new Class(), { errors: [] as unknown[] })
  app.on('error', error => app.errors.push(error))
  for (const each of middleware) app.use(each)
  return app
}

const servers: { server: Server; sessions: ServerHttp2Session[]; sockets: Set<Socket> }[] = []
const clients = new Set<ClientHttp2Session>()

/** Listens with an app, without TLS where there is no certificate; gone when the test is. */
const serve = async (app: Koa, tls?: { key: Buffer; cert: Buffer }): Promise<string> => {
  const callback = app.callback()
  const server =
    tls === undefined
      ? createServer((req, res) => void callback(req, res))
      : createSecureServer({ ...tls, allowHTTP1: true }, (req, res) => void callback(req, res))
  const sessions: ServerHttp2Session[] = []
  const sockets = new Set<Socket>()
  server.on('session', session => sessions.push(session))
  server.on('connection', (socket: Socket) => sockets.add(socket))
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  servers.push({ server, sessions, sockets })
  return `${tls === undefined ? 'http' : 'https'}://localhost:${(server.address() as AddressInfo).port}`
}

// `localhost` is in the certificate; who listens is 127.0.0.1.
const session = async (url: string, options: SecureClientSessionOptions & { family?: number } = {}): Promise<ClientHttp2Session> => {
  const client = connect(url, { family: 4, ...options })
  client.on('error', () => {})
  clients.add(client)
  await once(client, 'connect')
  return client
}

interface Reading {
  readonly stream: ClientHttp2Stream
  readonly headers: IncomingHttpHeaders
  readonly events: EventSourceMessage[]
  text(): string
  /** The next event, whenever it comes. */
  event(): Promise<EventSourceMessage>
  /** Resolves when the stream is over, with the code of its reset, 0 for a clean end. */
  readonly ended: Promise<number>
}

/** Reads a response, block by block. */
const read = async (client: ClientHttp2Session, headers: OutgoingHttpHeaders = {}, body?: string): Promise<Reading> => {
  const stream = client.request({ ':path': '/', ...headers }, { endStream: body === undefined && headers[':method'] !== 'POST' })
  stream.on('error', () => {})
  if (body !== undefined) stream.end(body)
  const ended = new Promise<number>(resolve => stream.on('close', () => resolve(stream.rstCode)))
  const [response] = (await once(stream, 'response')) as [IncomingHttpHeaders]
  const events: EventSourceMessage[] = []
  const parser = createParser({ onEvent: event => events.push(event) })
  let text = ''
  let taken = 0
  stream.setEncoding('utf8').on('data', (chunk: string) => {
    text += chunk
    parser.feed(chunk)
  })
  const event = async (): Promise<EventSourceMessage> => {
    await until(() => events.length > taken)
    return events[taken++]!
  }
  return { stream, headers: response, events, text: () => text, event, ended }
}

describe('HTTP/2', () => {
  const warnings: Error[] = []
  const onWarning = (warning: Error): void => void warnings.push(warning)

  beforeEach(() => {
    warnings.length = 0
    process.on('warning', onWarning)
  })

  afterEach(async () => {
    for (const client of clients) client.destroy()
    clients.clear()
    for (const { server, sessions, sockets } of servers.splice(0)) {
      const closed = new Promise(resolve => server.close(resolve))
      for (const session of sessions) session.destroy()
      for (const socket of sockets) socket.destroy()
      await closed
    }
    // A warning comes in a later turn than what it is about.
    await new Promise(resolve => setImmediate(resolve))
    process.off('warning', onWarning)
    expect(warnings.filter(warning => warning.name !== 'ExperimentalWarning')).to.deep.equal([])
  })

  for (const [name, Class] of KOAS) {
    describe(`on ${name}`, () => {
      /** One stream, opened by the handler, and read. */
      const start = async (
        handler: Middleware,
        options: SseOptions = {},
      ): Promise<{ app: App; mw: SseMiddleware; client: ClientHttp2Session; url: string }> => {
        const mw = sse({ heartbeat: false, ...options })
        const app = appOf(Class, mw, handler)
        const url = await serve(app)
        return { app, mw, client: await session(url), url }
      }

      it('sends each event at once, and no header that HTTP/2 forbids', async () => {
        let stream!: EventStream
        const { app, client } = await start(ctx => void (stream = ctx.sse).open(), { retry: 5 })
        const reading = await read(client)
        expect(reading.headers).to.include({
          ':status': 200,
          'content-type': 'text/event-stream',
          'cache-control': 'no-cache, no-transform',
          'x-accel-buffering': 'no',
        })
        for (const header of ['connection', 'keep-alive', 'transfer-encoding', 'content-length']) expect(reading.headers).not.to.have.property(header)
        for (const n of [1, 2, 3]) {
          expect(await stream.send({ id: String(n), event: 'tick', data: `one\ntwo ${n}` })).to.equal(true)
          expect(await reading.event()).to.deep.equal({ id: String(n), event: 'tick', data: `one\ntwo ${n}` })
        }
        expect([stream.connected, stream.eventsSent]).to.deep.equal([true, 3])
        stream.close()
        expect(await reading.ended).to.equal(constants.NGHTTP2_NO_ERROR)
        expect(reading.text().startsWith('retry: 5\n\n')).to.equal(true)
        expect(await stream.closed).to.equal('closed')
        expect(app.errors).to.deep.equal([])
      })

      it('pipes a source to its end', async () => {
        const { app, mw, client } = await start(ctx => {
          void ctx.sse.pipe(Readable.from(['one', 'two', 'x'.repeat(1_000_000)]))
        })
        const reading = await read(client)
        expect(await reading.ended).to.equal(constants.NGHTTP2_NO_ERROR)
        expect(reading.events.map(({ data }) => data.length)).to.deep.equal([3, 3, 1_000_000])
        expect(mw.size).to.equal(0)
        expect(app.errors).to.deep.equal([])
      })

      const leaves: [how: string, leave: (leaver: { stream: ClientHttp2Stream; client: ClientHttp2Session; socket: Socket }) => void][] = [
        ['cancels the stream', ({ stream }) => stream.close(constants.NGHTTP2_CANCEL)],
        ['closes it without an error', ({ stream }) => stream.close(constants.NGHTTP2_NO_ERROR)],
        ['destroys it', ({ stream }) => stream.destroy()],
        ['destroys the session', ({ client }) => client.destroy()],
        ['loses its connection', ({ socket }) => socket.destroy()],
        ['resets its connection', ({ socket }) => reset(socket)],
        ['half-closes its connection', ({ socket }) => socket.end()],
      ]
      for (const [how, leave] of leaves) {
        it(`releases the source at once, and reports no error, when the client ${how}`, async () => {
          const { source, released } = idle()
          let stream!: EventStream
          const { app, mw, url } = await start(ctx => void (stream = ctx.sse).pipe(source))
          // A session does not give its socket away.
          const socket = connectSocket(Number(new URL(url).port), '127.0.0.1')
          const client = await session(url, { createConnection: () => socket })
          const reading = await read(client)
          expect((await reading.event()).data).to.equal('first')
          expect([stream.connected, mw.size]).to.deep.equal([true, 1])
          leave({ stream: reading.stream, client, socket })
          await released
          expect(await stream.closed).to.equal('client')
          expect([stream.connected, stream.signal.aborted, mw.size]).to.deep.equal([false, true, 0])
          expect(await stream.send('too late')).to.equal(false)
          expect(app.errors).to.deep.equal([])
        })
      }

      for (const code of [constants.NGHTTP2_NO_ERROR, constants.NGHTTP2_CANCEL]) {
        it(`writes nothing to a stream that is being reset (${code})`, async () => {
          let stream!: EventStream
          const { app, client } = await start(ctx => {
            stream = ctx.sse
            // Turns before the response's 'close', if the code is no error's.
            ctx.req.on('aborted', () => void stream.send('at the last moment'))
            void stream.send('first')
          })
          const reading = await read(client)
          await reading.event()
          reading.stream.close(code)
          expect(await stream.closed).to.equal('client')
          expect(app.errors).to.deep.equal([])
        })
      }

      it('lets go of a response whose client resets it without an error while bytes wait', async () => {
        const over = signalled()
        let stream!: EventStream
        const { mw, app, client } = await start(async ctx => {
          stream = ctx.sse
          ctx.res.on('close', over.go)
          while (await stream.send('x'.repeat(10_000)));
        })
        const request = client.request({ ':path': '/' })
        request.on('error', () => {})
        await once(request, 'response')
        // More than fits into the stream's window.
        await until(() => stream.bytesWritten > 65_535)
        request.close(constants.NGHTTP2_NO_ERROR)
        expect(await stream.closed).to.equal('client')
        await over.promise
        await mw.close({ graceMs: 60_000 })
        expect(app.errors).to.deep.equal([])
      })

      it('reports no error when what wraps the body still writes to a client that leaves', async () => {
        let stream!: EventStream
        const wrapper = new PassThrough()
        const over = signalled()
        const app = appOf(
          Class,
          async (ctx, next) => {
            await next()
            ctx.body = (ctx.body as Readable).pipe(wrapper)
          },
          sse({ heartbeat: false }),
          ctx => {
            // As a compressor does that was at work.
            ctx.req.on('aborted', () => process.nextTick(() => wrapper.write('late')))
            ctx.res.on('close', over.go)
            void (stream = ctx.sse).send('first')
          },
        )
        const client = await session(await serve(app))
        const reading = await read(client)
        await reading.event()
        reading.stream.close(constants.NGHTTP2_NO_ERROR)
        await over.promise
        expect(await stream.closed).to.equal('client')
        expect(app.errors).to.deep.equal([])
      })

      it('leaves other streams of the connection alone when one is cancelled', async () => {
        const streams: EventStream[] = []
        const { app, client } = await start(ctx => void streams.push(ctx.sse.open()))
        const [first, second] = [await read(client), await read(client)]
        first.stream.close(constants.NGHTTP2_CANCEL)
        expect(await streams[0]!.closed).to.equal('client')
        await streams[1]!.send('still there')
        expect((await second.event()).data).to.equal('still there')
        expect(streams[1]!.connected).to.equal(true)
        expect(app.errors).to.deep.equal([])
      })

      it('resets the stream of a failing source, after all that it sent, and no other', async () => {
        const failure = new Error('upstream')
        const { app, client } = await start(
          ctx => {
            const failing = async function* (): AsyncGenerator<string> {
              yield 'one'
              yield 'x'.repeat(300_000)
              throw failure
            }
            void ctx.sse.pipe(ctx.path === '/good' ? ['good'] : failing(), { end: ctx.path !== '/good' })
          },
          { onError: () => ({ event: 'sorry', data: '' }) },
        )
        const good = await read(client, { ':path': '/good' })
        const reading = await read(client)
        expect(await reading.ended).not.to.equal(constants.NGHTTP2_NO_ERROR)
        expect(reading.events.map(({ event, data }) => [event, data.length])).to.deep.equal([
          [undefined, 3],
          [undefined, 300_000],
          ['sorry', 0],
        ])
        expect(app.errors).to.deep.equal([failure])
        expect((await good.event()).data).to.equal('good')
        expect(good.stream.closed).to.equal(false)
      })

      it('resets the stream of a failing handler', async () => {
        const failure = new Error('late')
        const { app, client } = await start(async ctx => {
          await ctx.sse.send('one')
          throw failure
        })
        const reading = await read(client)
        expect(await reading.ended).not.to.equal(constants.NGHTTP2_NO_ERROR)
        expect(reading.events).to.have.lengthOf(1)
        expect(app.errors).to.deep.equal([failure])
      })

      it('makes a source wait for a client that does not read, and lets go of it when that leaves', async () => {
        const LIMIT = 64_000
        let taken = 0
        let released = false
        const source = function* (): Generator<string> {
          try {
            for (; taken < LIMIT; taken++) yield 'x'.repeat(1_000)
          } finally {
            released = true
          }
        }
        let stream!: EventStream
        const { app, client } = await start(ctx => {
          if (ctx.path === '/ping') return void (ctx.status = 204)
          void (stream = ctx.sse).pipe(source())
        })
        const reading = await read(client)
        reading.stream.pause()
        let before = -1
        // Requests on the same connection are the clock: the source had its turns between them, and nobody asked it for more.
        for (let quiet = 0; quiet < 20; quiet = taken === before ? quiet + 1 : 0) {
          before = taken
          expect((await read(client, { ':path': '/ping' })).headers[':status']).to.equal(204)
        }
        // The window of a stream is 64 KB; nobody else has room for megabytes.
        expect(taken).to.be.within(1, 1_000)
        reading.stream.resume()
        await until(() => taken > before + 1_000)
        reading.stream.pause()
        expect([stream.connected, released]).to.deep.equal([true, false])
        reading.stream.close(constants.NGHTTP2_CANCEL)
        expect(await stream.closed).to.equal('client')
        expect(released).to.equal(true)
        expect(app.errors).to.deep.equal([])
      })

      it('answers HEAD with the head alone, and calls no source', async () => {
        let calls = 0
        const streams: EventStream[] = []
        const { app, mw, client } = await start(async ctx => {
          expect(await ctx.sse.send('never')).to.equal(false)
          await ctx.sse.pipe(() => {
            calls++
            return ['never']
          })
          streams.push(ctx.sse)
        })
        if (name === 'Koa 2.16') {
          // It never answers a HEAD over HTTP/2, whatever the body.
          client.request({ ':path': '/', ':method': 'HEAD' }).on('error', () => {})
        } else {
          const reading = await read(client, { ':method': 'HEAD' })
          expect(reading.headers).to.include({ ':status': 200, 'content-type': 'text/event-stream' })
          expect(await reading.ended).to.equal(constants.NGHTTP2_NO_ERROR)
          expect(reading.text()).to.equal('')
        }
        await until(() => streams.length === 1)
        expect(await streams[0]!.closed).to.equal('closed')
        expect([calls, mw.size]).to.deep.equal([0, 0])
        expect(app.errors).to.deep.equal([])
      })

      it('answers a POST, whether or not its body was read', async () => {
        let stream!: EventStream
        const { app, client } = await start(async ctx => {
          stream = ctx.sse
          if (ctx.path === '/read') await stream.send((await buffer(ctx.req)).toString())
          else await stream.send('unread')
        })
        const reading = await read(client, { ':method': 'POST', ':path': '/read' }, 'why?')
        expect((await reading.event()).data).to.equal('why?')
        reading.stream.close(constants.NGHTTP2_CANCEL)
        expect(await stream.closed).to.equal('client')
        const unread = await read(client, { ':method': 'POST', ':path': '/unread' }, 'x'.repeat(200_000))
        expect((await unread.event()).data).to.equal('unread')
        unread.stream.close(constants.NGHTTP2_CANCEL)
        expect(await stream.closed).to.equal('client')
        expect(app.errors).to.deep.equal([])
      })

      it('knows the last event id: the header as UTF-8, else the query', async () => {
        const ids: unknown[] = []
        const { client } = await start(ctx => {
          ids.push(ctx.sse.lastEventId)
          ctx.sse.open().close()
        })
        const asked: OutgoingHttpHeaders[] = [
          {},
          { 'last-event-id': '42' },
          { 'last-event-id': Buffer.from('é日').toString('latin1') },
          { ':path': '/?lastEventId=7' },
        ]
        for (const headers of asked) await (await read(client, headers)).ended
        expect(ids).to.deep.equal([undefined, '42', 'é日', '7'])
      })

      it('is an ordinary response until the stream opens', async () => {
        const { app, mw, client } = await start(ctx => {
          if (ctx.path === '/body') ctx.body = 'no stream'
          else ctx.throw(401)
        })
        const refused = await read(client)
        expect(refused.headers[':status']).to.equal(401)
        const answered = await read(client, { ':path': '/body' })
        expect(await answered.ended).to.equal(constants.NGHTTP2_NO_ERROR)
        expect(answered.text()).to.equal('no stream')
        expect(mw.size).to.equal(0)
        expect(app.errors).to.have.lengthOf(1)
      })

      it('turns away one too many with 503, and ends all by close()', async () => {
        const { mw, client } = await start(ctx => void ctx.sse.open(), { maxStreams: 2 })
        const readings = [await read(client), await read(client)]
        const refused = await read(client)
        expect(refused.headers).to.include({ ':status': 503, 'retry-after': '2' })
        await mw.close({ event: 'bye', retry: 100 })
        for (const { ended, events } of readings) {
          expect(await ended).to.equal(constants.NGHTTP2_NO_ERROR)
          expect(events.map(({ data }) => data)).to.deep.equal(['bye'])
        }
      })

      it('does not wait in close() longer than its grace for a client that does not read', async () => {
        let stream!: EventStream
        const { app, mw, client } = await start(
          ctx => {
            const lots = function* (): Generator<string> {
              for (;;) yield 'x'.repeat(10_000)
            }
            void (stream = ctx.sse).pipe(lots())
          },
          { highWaterMark: 500_000 },
        )
        const reading = await read(client)
        reading.stream.pause()
        // More than the window of a stream, or the end would fit in, too.
        await until(() => stream.bytesWritten > 500_000)
        await mw.close({ graceMs: 50 })
        expect(await stream.closed).to.equal('shutdown')
        reading.stream.resume()
        expect(await reading.ended).not.to.equal(constants.NGHTTP2_NO_ERROR)
        expect(app.errors).to.deep.equal([])
      })
    })
  }

  it('ends a stream that its client does not read, as stalled, though another of their connection moves all the time', async () => {
    const streams = new Map<string, EventStream>()
    const app = appOf(Koa, sse({ stallTimeout: 200 }), ctx => {
      streams.set(ctx.path, ctx.sse)
      void ctx.sse.pipe(ctx.path === '/mute' ? ['x'.repeat(100_000)] : endless(), { end: ctx.path !== '/mute' })
    })
    async function* endless(): AsyncGenerator<string> {
      for (;;) {
        yield 'x'
        await sleep(10)
      }
    }
    const client = await session(await serve(app))
    const moving = await read(client, { ':path': '/moving' })
    const mute = client.request({ ':path': '/mute' }).on('error', () => {})
    await once(mute, 'response')
    // The window of a stream is 64 KB.
    expect(await streams.get('/mute')!.closed).to.equal('stalled')
    expect(streams.get('/moving')!.connected).to.equal(true)
    moving.stream.close(constants.NGHTTP2_CANCEL)
    expect(await streams.get('/moving')!.closed).to.equal('client')
    expect(app.errors).to.deep.equal([])
  })

  it('waits for what wraps the body, long after the stream has ended, for as long as it writes', async () => {
    const app = appOf(
      Koa,
      async (ctx, next) => {
        await next()
        const body = ctx.body as Readable
        ctx.body = Readable.from(
          (async function* () {
            yield* body
            for (let n = 0; n < 20; n++) {
              await sleep(20)
              yield `:${n}\n\n`
            }
          })(),
        )
      },
      sse({ stallTimeout: 200 }),
      ctx => ctx.sse.pipe(['x']),
    )
    const reading = await read(await session(await serve(app)))
    expect(await reading.ended).to.equal(constants.NGHTTP2_NO_ERROR)
    expect(reading.text()).to.match(/^:\n\ndata: x\n\n.*:19\n\n$/s)
  })

  describe('with TLS (pending without openssl)', () => {
    let tls: { key: Buffer; cert: Buffer }

    before(function () {
      const folder = mkdtempSync(join(tmpdir(), 'koa-sse-'))
      const [key, cert] = [join(folder, 'key.pem'), join(folder, 'cert.pem')]
      const ec = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes']
      const subject = ['-days', '2', '-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost']
      try {
        execFileSync('openssl', ['req', '-x509', ...ec, ...subject, '-keyout', key, '-out', cert], { stdio: 'ignore' })
        tls = { key: readFileSync(key), cert: readFileSync(cert) }
      } catch {
        this.skip()
      } finally {
        rmSync(folder, { recursive: true })
      }
    })

    for (const [name, Class] of KOAS) {
      it(`streams, and notices a client that leaves, over HTTP/2 and HTTP/1.1 alike, on ${name}`, async () => {
        const mw = sse({ heartbeat: false })
        const streams: EventStream[] = []
        const app = appOf(Class, mw, ctx => {
          streams.push(ctx.sse)
          void ctx.sse.send(ctx.req.httpVersion)
        })
        const url = await serve(app, tls)
        const client = await session(url, { ca: tls.cert })
        const reading = await read(client)
        expect(reading.headers).not.to.have.property('connection')
        expect((await reading.event()).data).to.equal('2.0')
        reading.stream.close(constants.NGHTTP2_CANCEL)
        expect(await streams[0]!.closed).to.equal('client')

        const req = request(url, { ca: tls.cert, agent: false, family: 4, headers: { connection: 'keep-alive' } })
        req.on('error', () => {})
        req.end()
        const [response] = (await once(req, 'response')) as [IncomingMessage]
        expect(response.headers['connection']).to.equal('keep-alive')
        let text = ''
        response.setEncoding('utf8').on('data', (chunk: string) => (text += chunk))
        response.on('error', () => {})
        await until(() => text === ':\n\ndata: 1.1\n\n')
        req.destroy()
        expect(await streams[1]!.closed).to.equal('client')
        expect(mw.size).to.equal(0)
        expect(app.errors).to.deep.equal([])
      })

      for (const when of ['before', 'after'] as const) {
        it(`is left by a client that sends what is no TLS, ${when} the head, on ${name}`, async () => {
          const mw = sse({ heartbeat: false })
          const left = signalled()
          const streams: EventStream[] = []
          const outer: Middleware = async (_ctx, next) => {
            await next()
            if (when === 'before') await left.promise
          }
          const app = appOf(Class, outer, mw, ctx => {
            streams.push(ctx.sse)
            void ctx.sse.send('x')
          })
          const { port } = new URL(await serve(app, tls))
          const socket = connectSocket({ port: Number(port), host: '127.0.0.1' })
          const client = connectTls({ socket, ca: tls.cert, servername: 'localhost' }).on('error', () => {})
          client.write('GET / HTTP/1.1\r\nHost: localhost\r\n\r\n')
          if (when === 'before') await until(() => streams.length === 1)
          else await once(client, 'data')
          socket.write('what is no TLS')
          // once() would reject with the alert that the server answers.
          await new Promise(resolve => client.resume().on('close', resolve))
          left.go()
          expect(await streams[0]!.closed).to.equal('client')
          await until(() => mw.size === 0)
          expect(app.errors).to.deep.equal([])
        })
      }
    }
  })
})
