import { AsyncLocalStorage } from 'node:async_hooks'
import { spawnSync } from 'node:child_process'
import { getEventListeners, once } from 'node:events'
import { Agent, createServer, request, type Server } from 'node:http'
import { connect as connectSocket, type AddressInfo } from 'node:net'
import { Duplex, PassThrough, Readable } from 'node:stream'
import { mock } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { expect } from 'chai'
import type { Context } from 'koa'
import { Hub, MemoryBroker, sse, type Broker, type BrokerEntry, type BrokerSink, type EventStream } from 'koa-sse'
import { clog } from './support/clog.ts'
import { connect } from './support/client.ts'
import { collect } from './support/heap.ts'
import { makeHub, serveStreams } from './support/hub.ts'
import { failure, signalled } from './support/promises.ts'
import { koa, serve, until } from './support/serve.ts'
import { startWith } from './support/start.ts'
import { VERSIONS } from './support/versions.ts'

// What the app, Node and others do around a stream, each with its own right.

const boom = new Error('boom')

const broken = (): Readable =>
  new Readable({
    read() {
      this.destroy(boom)
    },
  })

describe('the connection that a stream leaves behind', () => {
  /** The head of a stream that has ended, read with keep-alive. */
  const heads = async (port: number, times: number): Promise<[status: number | undefined, connection: string | undefined, keeps: unknown][]> => {
    const agent = new Agent({ keepAlive: true, maxSockets: 1 })
    const all: [number | undefined, string | undefined, unknown][] = []
    for (let i = 0; i < times; i++) {
      const req = request({ port, host: '127.0.0.1', agent }).end()
      const [response] = await once(req, 'response')
      response.resume()
      await once(response, 'end')
      all.push([response.statusCode, response.headers.connection, response.headers['keep-alive']])
    }
    agent.destroy()
    return all
  }

  it('is kept as long as Node says, and says so', async () => {
    const { port, server } = await startWith({}, ctx => ctx.sse.pipe(['x']))
    server.keepAliveTimeout = 7_000
    expect(await heads(port, 2)).to.deep.equal([
      [200, 'keep-alive', 'timeout=7'],
      [200, 'keep-alive', 'timeout=7'],
    ])
  })

  it('is not offered again after its last request', async () => {
    const { port, server } = await startWith({}, ctx => ctx.sse.pipe(['x']))
    server.maxRequestsPerSocket = 2
    const seen = await heads(port, 4)
    expect(seen.map(([status, connection]) => [status, connection])).to.deep.equal([
      [200, 'keep-alive'],
      [200, 'close'],
      [200, 'keep-alive'],
      [200, 'close'],
    ])
  })
})

for (const [version, koaOf] of VERSIONS) {
  describe(`a client that Node cuts off for being slow with its requests, on Koa ${version}`, () => {
    for (const [what, text] of Object.entries({
      'the body of this one': 'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc',
      'the head of the next one': 'GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HT',
    })) {
      it(`(${what}) is a client that left, and no failure`, async () => {
        let told = 0
        let tell!: (reason: string) => void
        const reason = new Promise<string>(resolve => (tell = resolve))
        const app = koaOf(sse({ onError: () => void told++ }), (ctx: Context) => {
          void ctx.sse.closed.then(tell)
          void ctx.sse.send('x')
        })
        const errors: unknown[] = []
        app.on('error', error => errors.push(error))
        const handle = app.callback()
        const server = createServer({ requestTimeout: 60, headersTimeout: 40, connectionsCheckingInterval: 20 }, (req, res) => void handle(req, res))
        await new Promise<void>(done => server.listen(0, '127.0.0.1', done))
        const socket = connectSocket((server.address() as AddressInfo).port, '127.0.0.1')
        socket.on('error', () => {}).resume()
        socket.write(text)
        const left = await reason
        await new Promise<void>(done => void server.close(() => done()))
        expect(left).to.equal('client')
        expect(told).to.equal(0)
        expect(errors).to.deep.equal([])
      })
    }
  })
}

describe('a publish that nobody awaits', () => {
  it('and that still waits for its broker when the hub closes, ends no process', async () => {
    for (const fails of [true, false]) {
      const broker: Broker = new MemoryBroker()
      const away = signalled()
      broker.publish = async () => {
        await away.promise
        throw boom
      }
      const hub = new Hub({ broker })
      // An unhandled rejection fails the test.
      const published = hub.publish('a', 'x')
      await new Promise(resolve => setImmediate(resolve))
      const closing = hub.close({ graceMs: 20 })
      if (fails) away.go()
      await closing
      away.go()
      await new Promise(resolve => setImmediate(resolve))
      expect(await failure(() => published)).to.equal(boom)
    }
  })

  it('and that waits for a broker that never started, ends none either', async () => {
    const broker: Broker = new MemoryBroker()
    broker.start = () => new Promise(() => {})
    const hub = new Hub({ broker })
    const published = hub.publish('a', 'x')
    await hub.close({ graceMs: 20 })
    await new Promise(resolve => setImmediate(resolve))
    expect(await failure(() => published)).to.have.property('code', 'ERR_SSE_HUB_CLOSED')
  })
})

describe('a broker whose close() throws', () => {
  it('is told of, and the hub is closed', async () => {
    const broker: Broker = new MemoryBroker()
    broker.close = () => {
      throw boom
    }
    const hub = new Hub({ broker })
    const errors: unknown[] = []
    hub.on('error', error => errors.push(error))
    await hub.close()
    expect(errors).to.deep.equal([boom])
  })
})

describe('a broker that calls its sink wrongly in the middle of a delivery', () => {
  it('costs nobody the events that wait behind that call', async () => {
    const broker: Broker = new MemoryBroker()
    let sink: BrokerSink
    broker.start = async given => {
      sink = given
      sink.position('s-0')
    }
    const hub = makeHub({ broker })
    const errors: unknown[] = []
    hub.on('error', error => errors.push(error))
    const { url, streams } = await serveStreams()
    const client = await connect(url)
    const entry = (data: string): BrokerEntry => ({ id: `s-${data}`, channel: 'a', event: { data } })
    await hub.subscribe(streams[0]!, 'a', {
      filter: ({ data }) => {
        if (data === '1') {
          sink.event(null as never)
          sink.event(entry('2'))
        }
        return true
      },
    })
    sink!.event(entry('1'))
    sink!.event(entry('3'))
    expect((await client.event()).event).to.equal('stream-position')
    expect(await client.take(3)).to.deep.equal(['1', '2', '3'])
    expect(errors.map(String)).to.deep.equal(['TypeError: Expected `entry` to be an entry with an id, got null'])
  })
})

describe('an async function where none may be', () => {
  it('as map, fails the source once, and how it ends itself is no news', async () => {
    const { url, app } = await startWith({}, ctx => ctx.sse.pipe(['x'], { map: (async () => Promise.reject(boom)) as never }))
    const client = await connect(url)
    expect(await client.ended).to.equal('cut')
    await new Promise(resolve => setImmediate(resolve))
    expect(app.errors).to.have.lengthOf(1)
    expect(app.errors[0]).to.be.instanceOf(TypeError)
    const hub = makeHub()
    expect(await failure(() => hub.pipe('a', ['x'], { map: (async () => Promise.reject(boom)) as never }))).to.be.instanceOf(TypeError)
    await new Promise(resolve => setImmediate(resolve))
  })

  it('as what hub.disconnect() asks, is a TypeError and disconnects nobody', async () => {
    const hub = makeHub()
    const { url, streams } = await serveStreams()
    await connect(url)
    await hub.subscribe(streams[0]!, 'a')
    expect(() => hub.disconnect((async () => Promise.reject(boom)) as never)).to.throw(TypeError, /`match`.*promise/)
    await new Promise(resolve => setImmediate(resolve))
    expect(hub.count()).to.equal(1)
  })

  it('as a filter, lets nothing through, whatever kind of promise it returns', async () => {
    const hub = makeHub()
    const errors: unknown[] = []
    hub.on('error', error => errors.push(error))
    const { url, streams } = await serveStreams()
    const client = await connect(url)
    // oxlint-disable-next-line unicorn/no-thenable -- a promise of another realm, say
    await hub.subscribe(streams[0]!, 'a', { filter: () => ({ then: () => {} }) as never })
    await hub.publish('a', 'secret')
    await streams[0]!.send('sentinel')
    expect((await client.event()).event).to.equal('stream-position')
    expect(await client.take(1)).to.deep.equal(['sentinel'])
    expect(errors.map(String).join('')).to.match(/^TypeError: .*`filter`.*promise/)
  })
})

describe('a handler that catches what a first-event pipe fails of', () => {
  it('is heard with a bare status, 404 too', async () => {
    for (const status of [404, 410]) {
      const { url, app } = await startWith({}, async ctx => {
        try {
          await ctx.sse.pipe(broken(), { head: 'first-event' })
        } catch {
          ctx.status = status
        }
      })
      expect((await fetch(url)).status).to.equal(status)
      expect(app.errors).to.deep.equal([])
    }
  })

  it('is heard with another status, or another body, than it had decided on before', async () => {
    const answers: [told: string, answer: (ctx: Context, n: number) => unknown][] = [
      ['Service Unavailable', (ctx, n) => (ctx.status = 500 + n)],
      ['body 3', (ctx, n) => (ctx.body = `body ${n}`)],
    ]
    for (const [told, answer] of answers) {
      const { url, app } = await startWith({}, async ctx => {
        answer(ctx, 1)
        try {
          await ctx.sse.pipe(broken(), { head: 'first-event' })
        } catch {
          answer(ctx, 3)
        }
      })
      expect(await (await fetch(url)).text()).to.equal(told)
      expect(app.errors).to.deep.equal([])
    }
  })

  it('is heard when another pipe begins after its answer, and fails as well', async () => {
    const { url, app } = await startWith({}, async ctx => {
      const first = ctx.sse.pipe(broken(), { head: 'first-event' })
      ctx.body = 'instead'
      await failure(() => first)
      await failure(() => ctx.sse.pipe(broken(), { head: 'first-event' }))
    })
    expect(await (await fetch(url)).text()).to.equal('instead')
    expect(app.errors).to.deep.equal([])
  })

  it('is heard past Koa, told or not that somebody else responds, at once or later', async () => {
    for (const [respond, later] of [
      [false, false],
      [false, true],
      [undefined, false],
    ]) {
      const { url, app } = await startWith({}, async ctx => {
        try {
          await ctx.sse.pipe(broken(), { head: 'first-event' })
        } catch {
          if (respond === false) ctx.respond = false
          const answer = (): unknown => ctx.res.writeHead(404).end()
          if (later === true) setImmediate(answer)
          else answer()
        }
      })
      expect((await fetch(url)).status).to.equal(404)
      expect(app.errors).to.deep.equal([])
    }
  })
})

describe('a Readable whose destroy() throws', () => {
  it('does not keep its stream from ending', async () => {
    const source = new Readable({ read() {} })
    source.destroy = () => {
      throw boom
    }
    const { url, arrived, app } = await startWith({}, ctx => ctx.sse.pipe(source))
    const client = await connect(url)
    const { sse: stream } = await arrived
    stream.close()
    expect(await client.ended).to.equal('clean')
    expect(await stream.closed).to.equal('closed')
    expect(app.errors).to.deep.equal([])
  })
})

describe('a Readable that fails as it is released', () => {
  for (const [when, options] of Object.entries({ 'while it is read': {}, unread: { maxStreams: 1, whenFull: 'retry' } } as const)) {
    it(`${when}, is nobody’s news`, async () => {
      const source = new Readable({ read() {}, destroy: (_, done) => void setImmediate(done, boom) })
      const over = new Promise(resolve => source.on('close', resolve))
      const { url, app } = await startWith(options, ctx => (ctx.path === '/first' ? void ctx.sse.open() : ctx.sse.pipe(source)))
      await connect(`${url}/first`)
      const client = await connect(url)
      if (when !== 'unread') client.fin()
      await over
      expect(app.errors).to.deep.equal([])
    })
  }
})

describe('a subscription that comes when another answer is under way', () => {
  for (const whenFull of ['retry', 'refuse'] as const) {
    it(`to a full hub is refused, and takes no place in sse() (whenFull: '${whenFull}')`, async () => {
      const hub = makeHub({ maxSubscribers: 1 })
      const streams = sse({ whenFull })
      const body = new PassThrough()
      let ctx: Context | undefined
      const app = koa(streams, async given => {
        if (given.path === '/first') return void (await hub.subscribe(given.sse, 'x'))
        ctx = given
        given.body = body
        body.write('x')
      })
      const { url } = await serve(app)
      await connect(`${url}/first`)
      await until(() => hub.count() === 1)
      const other = await connect(`${url}/other`)
      await until(() => other.text === 'x')
      const refused = await failure(() => hub.subscribe(ctx!.sse, 'x'))
      expect(refused).to.have.property('code', 'ERR_SSE_NOT_OPEN')
      expect(streams.size).to.equal(1)
      body.end('y')
      expect(await other.ended).to.equal('clean')
      expect(other.text).to.equal('xy')
    })
  }
})

describe('channels that an app’s own iterable gives', () => {
  it('are a 400 when they are bad, and what the iterable throws is the app’s', async () => {
    const hub = makeHub()
    const { url, app } = await startWith({}, async ctx =>
      hub.subscriber((given: Context) => {
        const channels = function* (): Generator<string> {
          if (given.path === '/forbidden') given.throw(403)
          if (given.path === '/broken') throw boom
          yield ''
        }
        return channels()
      })(ctx, async () => {}),
    )
    expect((await fetch(`${url}/bad`)).status).to.equal(400)
    expect((await fetch(`${url}/forbidden`)).status).to.equal(403)
    expect((await fetch(`${url}/broken`)).status).to.equal(500)
    expect(app.errors.at(-1)).to.equal(boom)
  })
})

describe('many who wait', () => {
  const warnings: Error[] = []
  const warned = (warning: Error): void => void warnings.push(warning)
  beforeEach(() => process.on('warning', warned))
  afterEach(async () => {
    await new Promise(resolve => setImmediate(resolve))
    process.removeListener('warning', warned)
    expect(warnings.splice(0)).to.deep.equal([])
  })

  it('for the end of one stream are no leak to be warned of', async () => {
    const { url } = await startWith({}, ctx => {
      for (let i = 0; i < 30; i++) ctx.sse.signal.addEventListener('abort', () => {})
      void ctx.sse.send('x')
    })
    await (await connect(url)).event()
  })

  it('for one signal, each a hub.pipe(), are none either', async () => {
    const hub = makeHub()
    const controller = new AbortController()
    const { signal } = controller
    const pipes = Array.from({ length: 30 }, () => hub.pipe('a', new PassThrough(), { signal }))
    await new Promise(resolve => setImmediate(resolve))
    controller.abort()
    await Promise.all(pipes)
    expect(getEventListeners(signal, 'abort')).to.deep.equal([])
  })
})

describe('a ctx.sse of somebody else’s', () => {
  it('gives way', async () => {
    const { url } = await startWith(
      {},
      ctx => ctx.sse.pipe(['x']),
      (ctx, next) => {
        ctx['sse'] = { send: () => {} } as never
        return next()
      },
    )
    expect(await (await connect(url)).take(1)).to.deep.equal(['x'])
  })
})

describe('who has replaced ServerResponse’s write before koa-sse was loaded', () => {
  it('sees every byte', () => {
    const script = `
      import http from 'node:http'
      let seen = ''
      const { write } = http.OutgoingMessage.prototype
      http.ServerResponse.prototype.write = function (...args) { seen += args[0]; return write.apply(this, args) }
      const { sse } = await import('koa-sse')
      const { default: Koa } = await import('koa')
      const app = new Koa().use(sse()).use(ctx => ctx.sse.pipe(['x', 'y']))
      const server = app.listen(0, '127.0.0.1', async () => {
        const text = await (await fetch('http://127.0.0.1:' + server.address().port)).text()
        server.close()
        server.closeAllConnections()
        process.stdout.write(JSON.stringify([seen, text]))
      })`
    const { stdout, stderr } = spawnSync(
      process.execPath,
      ['--conditions', '@koa-sse/source', '--import', 'tsx', '--input-type=module', '-e', script],
      {
        encoding: 'utf8',
      },
    )
    const [seen, text] = JSON.parse(stdout || JSON.stringify([stderr])) as [string, string]
    expect(seen).to.equal(text).and.to.include('data: y')
  })
})

describe("a request's AsyncLocalStorage store", () => {
  const storage = new AsyncLocalStorage<object>()

  it('is not that of another whose client stalls, and is not kept when its own stream is over', async () => {
    const streams: EventStream[] = []
    const stores: WeakRef<object>[] = []
    const options = { heartbeat: 90, stallTimeout: 80 }
    const { url } = await startWith(
      options,
      ctx => void streams.push(ctx.sse.open()),
      async (_ctx, next) => {
        const store = {}
        stores.push(new WeakRef(store))
        await storage.run(store, next)
      },
    )
    const first = await connect(url)
    const other = await connect(url)
    other.pause()
    const seen = new Promise(resolve => streams[1]!.signal.addEventListener('abort', () => resolve(storage.getStore())))
    await clog(streams[1]!)
    expect(await streams[1]!.closed).to.equal('stalled')
    expect(await seen).to.equal(undefined)
    // Somebody is there all the time.
    const last = await connect(url)
    first.destroy()
    await streams.splice(0, 2)[0]!.closed
    await until(() => {
      collect()
      return stores[0]!.deref() === undefined
    })
    expect(last.socket.destroyed).to.equal(false)
  })
})

/** One end of a connection that is no socket. */
class End extends Duplex {
  readonly peer: End
  #more: (() => void) | undefined

  constructor(peer?: End) {
    super()
    this.peer = peer ?? new End(this)
  }

  override _read(): void {
    const more = this.#more
    this.#more = undefined
    more?.()
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, callback: () => void): void {
    if (this.peer.push(chunk)) callback()
    else this.peer.#more = callback
  }

  override _final(callback: () => void): void {
    this.peer.push(null)
    callback()
  }
}

describe('a connection that is any Duplex, as a server may be given', () => {
  const ask = (server: Server, head = ''): End => {
    const end = new End()
    server.emit('connection', end.peer)
    end.write(`GET / HTTP/1.1\r\nHost: x\r\n${head}\r\n`)
    return end
  }
  const read = async (end: End): Promise<string> => Buffer.concat(await end.toArray()).toString()

  afterEach(() => mock.timers.reset())

  it('is cut where a source fails', async () => {
    const { server, app } = await startWith({}, async ctx => ctx.sse.pipe(broken()))
    expect(await read(ask(server))).to.match(/\r\n\r\n3\r\n:\n\n\r\n$/)
    expect(app.errors).to.deep.equal([boom])
  })

  it('is ended with its stream, where the client has asked for that', async () => {
    const { server } = await startWith({}, async ctx => ctx.sse.pipe(['x']))
    expect(await read(ask(server, 'Connection: close\r\n'))).to.match(/data: x\n\n\r\n0\r\n\r\n$/)
  })

  it('is not cut off for several pauses of the client’s between which it has read all', async () => {
    mock.timers.enable({ apis: ['setInterval'] })
    const { server, arrived } = await startWith({ stallTimeout: 1_000, heartbeat: false }, ctx => void ctx.sse.open())
    const end = ask(server)
    const { res, sse: stream } = await arrived
    await until(() => end.readableLength > 0)
    const tick = async (): Promise<void> => {
      mock.timers.tick(250)
      for (let i = 0; i < 3; i++) await turn()
    }
    for (let n = 0; n < 3; n++) {
      await tick()
      const sent = stream.send('x'.repeat(100_000))
      for (let i = 0; i < 3; i++) await tick()
      end.resume()
      expect(await sent).to.equal(true)
      await until(() => res.writableLength === 0)
      end.pause()
    }
    expect(stream.connected).to.equal(true)
    void stream.send('x'.repeat(1_000_000))
    for (let i = 0; i < 6; i++) await tick()
    expect(await stream.closed).to.equal('stalled')
  })

  it('is cut off where the client reads nothing', async () => {
    const { server, arrived } = await startWith({ stallTimeout: 50 }, async ctx =>
      ctx.sse.pipe(Array.from({ length: 100 }, () => 'x'.repeat(10_000))),
    )
    ask(server)
    expect(await (await arrived).sse.closed).to.equal('stalled')
  })
})
