import { once } from 'node:events'
import { connect as connectHttp2, createServer as createHttp2Server } from 'node:http2'
import { connect as connectSocket, type AddressInfo, type Server, type Socket } from 'node:net'
import { PassThrough, pipeline, Readable, Transform } from 'node:stream'
import { setImmediate as turn, setTimeout as sleep } from 'node:timers/promises'
import { expect } from 'chai'
import Koa, { type Context, type Middleware } from 'koa'
import { Hub, sse, type EventStream } from 'koa-sse'
import { connect } from './support/client.ts'
import { HUGE } from './support/clog.ts'
import { direct, watched } from './support/direct.ts'
import { makeHub } from './support/hub.ts'
import { signalled } from './support/promises.ts'
import { koa, serve, until } from './support/serve.ts'
import { startWith } from './support/start.ts'
import { VERSIONS } from './support/versions.ts'

// What becomes of a response whose stream has ended, or whose bytes somebody loses. None may look whole and lack events, none may hang,
// and what befalls one befalls no other.

const boom = new Error('boom')

/** All that came, and how it ended: 'refused' without a head. */
const outcome = async (url: string): Promise<{ text: string; ended: string }> => {
  try {
    const client = await connect(url)
    return { ended: await client.ended, text: client.text }
  } catch {
    return { ended: 'refused', text: '' }
  }
}

/** All that comes out of `body`, when it is over, a byte now and then. */
async function* slowly(body: PassThrough): AsyncGenerator<string> {
  let text = ''
  for await (const chunk of body) text += String(chunk)
  for (const byte of text) {
    yield byte
    await sleep(50)
  }
}

/** Everything that a plain socket reads. */
const reading = (socket: Socket): { text: () => string } => {
  let text = ''
  socket.setEncoding('latin1').on('data', (chunk: string) => (text += chunk))
  return { text: () => text }
}

describe('a piece that is lost', () => {
  it('in what wraps the body, is that stream’s failure, and nobody else’s', async () => {
    for (const size of [1, 30_000]) {
      const hub = new Hub()
      const app = koa(
        async (ctx, next) => {
          await next()
          if (ctx.path !== '/broken') return
          const broken = new PassThrough()
          const write = broken.write.bind(broken) as (chunk: unknown) => boolean
          broken.write = (chunk: unknown) => {
            if (String(chunk).includes('bang')) throw boom
            return write(chunk)
          }
          ctx.body = (ctx.body as PassThrough).pipe(broken)
        },
        sse(),
        hub.subscriber('a'),
      )
      const { url } = await serve(app)
      const bad = await connect(`${url}/broken`)
      const good = await connect(url)
      for (const client of [bad, good]) await client.event()
      const events = ['bang'.padEnd(size, '.'), 'after']
      for (const data of events) await hub.publish('a', data)
      expect(await good.take(2)).to.deep.equal(events)
      // Node 24 keeps it from the body, and breaks the pipe.
      if (!process.version.startsWith('v24.')) {
        expect(await bad.ended).to.equal('cut')
        expect(app.errors).to.deep.equal([boom])
      }
      await hub.close({ graceMs: 100 })
    }
  })

  for (const [who, breakOnce] of Object.entries<(ctx: Context) => void>({
    writeHead: ({ res }) => {
      const writeHead = res.writeHead.bind(res)
      res.writeHead = () => {
        res.writeHead = writeHead
        throw boom
      }
    },
    write: ctx => {
      let times = 0
      watched(ctx, () => {
        if (++times === 2) throw boom
      })
    },
  })) {
    for (const closes of [true, false]) {
      direct?.(`since ${who} threw once, is the last: a client must not go on behind it${closes ? ', closed or not' : ''}`, async () => {
        const { url, app } = await startWith({ onError: () => 'of onError' }, ctx => {
          breakOnce(ctx)
          for (let id = 1; id <= 20; id++) void ctx.sse.send({ id: `${id}`, data: 'x'.repeat(10_000) })
          if (closes) ctx.sse.close()
        })
        const { text, ended } = await outcome(url)
        expect(ended).to.equal(who === 'write' ? 'cut' : 'refused')
        expect(text).not.to.include('id: 20')
        expect(text).not.to.include('onError')
        expect(app.errors).to.deep.equal([boom])
      })
    }
  }
})

describe('a piece that is changed in place', () => {
  const scramble = (chunk: unknown): void => {
    if (Buffer.isBuffer(chunk)) chunk.fill('#')
  }
  const SCRAMBLERS: Record<string, (ctx: Context) => void> = {
    'what wraps the body': ctx => {
      const transform = (chunk: Buffer, _encoding: string, callback: (error: null, chunk: Buffer) => void): void => {
        scramble(chunk)
        callback(null, chunk)
      }
      ctx.body = (ctx.body as PassThrough).pipe(new Transform({ transform }))
    },
    'a replaced res.write': ctx => {
      const write = ctx.res.write.bind(ctx.res) as (...args: unknown[]) => boolean
      ctx.res.write = (...args: unknown[]) => {
        scramble(args[0])
        return write(...args)
      }
    },
  }
  for (const [who, wrap] of Object.entries(SCRAMBLERS)) {
    it(`by ${who} is so for its own client, and for nobody else`, async () => {
      const hub = makeHub()
      const app = koa(
        async (ctx, next) => {
          await next()
          if (ctx.path === '/scrambled') wrap(ctx)
        },
        sse(),
        hub.subscriber('a'),
      )
      const { url } = await serve(app)
      const scrambled = await connect(`${url}/scrambled`)
      const good = await connect(url)
      await good.event()
      await until(() => hub.count() === 2)
      const before = hub.position!
      await hub.publish('a', 'x')
      expect(await good.take(1)).to.deep.equal(['x'])
      await until(() => scrambled.text.includes('#####'))
      const back = await connect(`${url}/?lastEventId=${before}`)
      expect(await back.take(1)).to.deep.equal(['x'])
    })
  }
})

describe('bytes that were written to the body', () => {
  it('before close() are all sent', async () => {
    const chunks = Array.from({ length: 50 }, (_, id) => `id: ${id}\ndata: ${'x'.repeat(20_000)}\n\n`)
    const { url, app } = await startWith({}, ctx => {
      for (const chunk of chunks) ctx.sse.open().body.write(chunk)
      ctx.sse.close()
    })
    expect(await outcome(url)).to.deep.equal({ ended: 'clean', text: `:\n\n${chunks.join('')}` })
    expect(app.errors).to.deep.equal([])
  })

  it('after close() are not, while those before it wait', async () => {
    const { url, arrived } = await startWith({ maxBuffer: 67_108_864 }, ctx => {
      void ctx.sse.send(HUGE)
      void ctx.sse.send('x'.repeat(20_000))
    })
    const client = await connect(url)
    client.pause()
    const { sse: stream } = await arrived
    stream.close()
    stream.body.write('data: late\n\n')
    client.resume()
    expect(await client.ended).to.equal('clean')
    expect(client.text).to.match(/x\n\n$/)
  })

  it('after close() are not, and an endless source keeps nothing open', async () => {
    const { url, streams } = await startWith({}, ctx => {
      ctx.sse.open()
      Readable.from(
        (function* () {
          for (;;) yield `data: ${'x'.repeat(1000)}\n\n`
        })(),
      ).pipe(ctx.sse.body, { end: false })
    })
    const client = await connect(url)
    await client.event()
    await streams.close({ graceMs: 5_000 })
    expect(await client.ended).to.equal('clean')
  })
})

describe('who ends the stream while a piece is written', () => {
  for (const [how, end, ended] of [
    ['close()', ({ sse: stream }: Context) => stream.close(), 'clean'],
    ['body.end()', ({ sse: stream }: Context) => void stream.body.end(), 'clean'],
    ['body.destroy()', ({ sse: stream }: Context) => void stream.body.destroy(), 'broken'],
  ] as const) {
    direct?.(`with ${how}, does not overtake it`, async () => {
      const { url, app } = await startWith({}, ctx => {
        watched(ctx, () => end(ctx))
        void ctx.sse.send('one')
      })
      const outcomes = await outcome(url)
      if (ended === 'clean') expect(outcomes).to.deep.equal({ ended: 'clean', text: ':\n\ndata: one\n\n' })
      else expect(outcomes.ended).not.to.equal('clean')
      expect(app.errors).to.deep.equal([])
    })
  }
})

describe('a response that the app has ended', () => {
  direct?.('gets no chunk behind its last one', async () => {
    const sent: boolean[] = []
    const { port, arrived } = await startWith({}, ctx => {
      if (ctx.path === '/next') ctx.body = 'next'
      else ctx.sse.open()
    })
    const socket = connectSocket(port, '127.0.0.1')
    socket.write('GET / HTTP/1.1\r\nHost: test\r\n\r\n')
    const ctx = await arrived
    await once(socket, 'readable')
    // Its 'close' waits for these.
    while (ctx.req.socket.writableLength === 0) {
      void ctx.sse.send('x'.repeat(4_000))
      await turn()
    }
    ctx.res.end()
    for (let i = 0; i < 3; i++) {
      sent.push(await ctx.sse.send('late'))
      await turn()
      await turn()
    }
    const { text } = reading(socket)
    socket.write('GET /next HTTP/1.1\r\nHost: test\r\n\r\n')
    await until(() => text().endsWith('next'))
    expect(text()).not.to.include('late')
    expect(text()).to.match(/\r\n0\r\n\r\nHTTP\/1\.1 200 OK\r\n/)
    expect(sent.at(-1)).to.equal(false)
    socket.destroy()
  })
})

describe('a listener of errors that fails itself', () => {
  direct?.('keeps no event from other streams', async () => {
    const caught: unknown[] = []
    const listeners = process.listeners('uncaughtException')
    process.removeAllListeners('uncaughtException')
    process.on('uncaughtException', error => caught.push(error))
    try {
      const app = new Koa()
      app.on('error', () => {
        throw boom
      })
      const open: Context[] = []
      app.use(sse())
      app.use(ctx => {
        if (open.length === 0) {
          watched(ctx, text => {
            if (text.includes('bang')) throw new Error('on purpose')
          })
        }
        ctx.sse.open()
        open.push(ctx)
      })
      const { url } = await serve(app)
      const bad = await connect(url)
      const good = await connect(url)
      await until(() => open.length === 2)
      const [first, second] = open as [Context, Context]
      void first.sse.send('bang')
      void second.sse.send('in the same turn')
      expect((await good.event()).data).to.equal('in the same turn')
      await bad.ended
      await until(() => caught.length > 0)
      expect(caught).to.deep.equal([boom])
    } finally {
      process.removeAllListeners('uncaughtException')
      for (const listener of listeners) process.on('uncaughtException', listener)
    }
  })
})

for (const [version, koaOf] of VERSIONS) {
  describe(`on Koa ${version}, what wraps the body`, () => {
    /** Wraps the body in what fails, quietly or not, when it sees `word`. */
    const wrapped = (word: string, fail: (wrapper: PassThrough, callback: (error?: Error) => void) => void): Middleware => {
      return async (ctx, next) => {
        await next()
        const wrapper: PassThrough = new PassThrough({
          transform(chunk: Buffer, _encoding, callback) {
            if (chunk.includes(word)) fail(wrapper, callback)
            else callback(null, chunk)
          },
        })
        ctx.body = (ctx.body as PassThrough).pipe(wrapper)
      }
    }

    for (const ends of [true, false]) {
      it(`and fails at the first bytes, is reported once${ends ? ', when the stream has ended' : ''}`, async () => {
        let reason: string | undefined
        const app = koaOf(
          wrapped('first', (_, callback) => callback(boom)),
          sse(),
          ctx => {
            void ctx.sse.closed.then(why => (reason = why))
            void ctx.sse.send('first')
            if (ends) ctx.sse.close()
          },
        )
        const { text } = await outcome((await serve(app)).url)
        // Koa 2 still answers.
        expect(text).to.equal(version.startsWith('2') ? 'Internal Server Error' : '')
        await until(() => reason !== undefined)
        expect(reason).to.equal(ends ? 'closed' : 'error')
        expect(app.errors).to.deep.equal([boom])
      })

      it(`and dies quietly, leaves no response open${ends ? ', when the stream has ended' : ''}`, async () => {
        const streams = sse({ stallTimeout: 300, heartbeat: 100 })
        const app = koaOf(
          wrapped('last', wrapper => wrapper.destroy()),
          streams,
          async ctx => {
            await ctx.sse.send('first')
            await sleep(20)
            void ctx.sse.send('last')
            if (ends) ctx.sse.close()
          },
        )
        expect((await outcome((await serve(app)).url)).ended).to.equal('cut')
        await until(() => streams.size === 0)
      })
    }

    it('and is destroyed along with it before the head has left, leaves no response open, and nobody is told twice', async () => {
      const streams = sse({ stallTimeout: false })
      const app = koaOf(
        async (ctx, next) => {
          await next()
          const body = ctx.body as PassThrough
          // It takes no more than its buffer holds: the stream waits for it when it fails.
          const wrapper = new PassThrough()
          pipeline(body, wrapper, () => {})
          ctx.body = wrapper
          await turn()
          body.destroy(boom)
          await once(wrapper, 'close')
        },
        streams,
        ctx => void ctx.sse.send('x'.repeat(1_000_000)),
      )
      expect(await outcome((await serve(app)).url)).to.deep.equal({ ended: 'refused', text: '' })
      await until(() => streams.size === 0)
      expect(app.errors).to.deep.equal([boom])
    })

    it('and fails of no more than its end, leaves no response open', async () => {
      const app = koaOf(
        wrapped('last', (_, callback) => callback(Object.assign(new Error('Premature close'), { code: 'ERR_STREAM_PREMATURE_CLOSE' }))),
        sse(),
        async ctx => {
          await ctx.sse.send('first')
          await sleep(20)
          void ctx.sse.send('last')
          ctx.sse.close()
        },
      )
      expect((await outcome((await serve(app)).url)).ended).to.equal('cut')
      expect(app.errors).to.deep.equal([])
    })

    it('and is not done long after the stream has ended or failed, is waited for as long as it writes', async () => {
      const app = koaOf(
        async (ctx, next) => {
          await next()
          ctx.body = Readable.from(slowly(ctx.body as PassThrough))
        },
        sse({ stallTimeout: 200 }),
        ctx => {
          void ctx.sse.send('x')
          if (ctx.path === '/broken') throw boom
          ctx.sse.close()
        },
      )
      const { url } = await serve(app)
      const text = ':\n\ndata: x\n\n'
      expect(await Promise.all([outcome(url), outcome(`${url}/broken`)])).to.deep.equal([
        { ended: 'clean', text },
        { ended: 'cut', text },
      ])
    })
  })

  for (const quiet of [false, true]) {
    it(`on Koa ${version}, another stream in its place may take its time${quiet ? ', and be quiet' : ''}`, async () => {
      let reason: string | undefined
      let released = false
      async function* endless(): AsyncGenerator<string> {
        try {
          for (;;) {
            yield 'x'
            await sleep(10)
          }
        } finally {
          released = true
        }
      }
      const app = koaOf(
        async (ctx, next) => {
          await next()
          const body = ctx.body as PassThrough
          const answer = new PassThrough()
          answer.write('in')
          const sending = quiet ? undefined : setInterval(() => answer.write('-'), 50)
          void sleep(700).then(() => {
            clearInterval(sending)
            // It has ended long ago, as far as anybody can tell.
            if (quiet) expect([reason, body.destroyed]).to.deep.equal(['closed', true])
            answer.end('stead')
          })
          ctx.body = answer
        },
        sse({ stallTimeout: 200, highWaterMark: 100 }),
        ctx => {
          void ctx.sse.closed.then(why => (reason = why))
          return ctx.sse.pipe(endless())
        },
      )
      const { text, ended } = await outcome((await serve(app)).url)
      expect([ended, text.replaceAll('-', '')]).to.deep.equal(['clean', 'instead'])
      await until(() => released)
      expect(reason).to.equal('closed')
      expect(app.errors).to.deep.equal([])
    })
  }

  it(`on Koa ${version}, a body that is destroyed while Koa pipes it cuts the response`, async () => {
    const pipes: Middleware = (ctx, next) => {
      ctx.respond = true
      return next()
    }
    let stream: EventStream | undefined
    const app = koaOf(pipes, sse(), ctx => {
      stream = ctx.sse
      void stream.send('x')
    })
    const { url } = await serve(app)
    const client = await connect(url)
    await client.take(1)
    stream!.body.destroy()
    expect(await client.ended).to.equal('cut')
    expect(await stream!.closed).to.equal('closed')
    expect(app.errors).to.deep.equal([])
  })

  direct?.(`on Koa ${version}, a body that is destroyed before Koa responds is not waited for, but an answer in its place is`, async () => {
    const answer = new PassThrough()
    const answering = signalled()
    const app = koaOf(
      async (ctx, next) => {
        await next()
        if (ctx.path !== '/instead') return
        ctx.body = answer
        answering.go()
      },
      sse(),
      ctx => {
        void ctx.sse.send('x')
        ctx.sse.body.destroy()
      },
    )
    const { url } = await serve(app)
    const instead = outcome(`${url}/instead`)
    await answering.promise
    expect((await outcome(url)).ended).to.equal('refused')
    answer.end('instead')
    expect(await instead).to.include({ ended: 'clean', text: 'instead' })
  })
}

describe('over HTTP/2', () => {
  let server: Server
  const open = async (...middleware: Middleware[]): Promise<string> => {
    const app = koa(...middleware)
    const callback = app.callback()
    server = createHttp2Server((req, res) => void callback(req, res)).listen(0, '127.0.0.1')
    await once(server, 'listening')
    return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  }
  afterEach(() => server.close())

  direct?.('a head that cannot be written is no head', async () => {
    const url = await open(
      async ({ res }, next) => {
        res.writeHead = () => {
          throw boom
        }
        await next()
      },
      sse(),
      ctx => ctx.sse.pipe(['x']),
    )
    const session = connectHttp2(url)
    const stream = session.request({ ':path': '/' })
    let headed = false
    stream.on('response', () => (headed = true))
    stream.on('error', () => {})
    await new Promise(resolve => stream.on('close', resolve))
    expect([headed, stream.rstCode]).to.deep.equal([false, 2])
    session.destroy()
  })

  it('a client that is turned away, and does not read, is not waited for', async () => {
    let over = 0
    const url = await open(sse({ maxStreams: 1, whenFull: 'retry', stallTimeout: 300 }), ctx => {
      ctx.res.on('close', () => over++)
      ctx.sse.open()
    })
    const first = connectHttp2(url)
    first.on('error', () => {})
    const stays = first.request({ ':path': '/' })
    stays.on('error', () => {})
    await once(stays, 'response')
    const session = connectHttp2(url, { settings: { initialWindowSize: 0 } })
    session.on('error', () => {})
    await once(session, 'localSettings')
    const stream = session.request({ ':path': '/' })
    stream.on('error', () => {})
    await until(() => over === 1)
    first.destroy()
    session.destroy()
  })
})

describe('a stream that waits for its turn on a pipelining client’s connection', () => {
  it('has not stalled', async () => {
    const reasons: string[] = []
    const { port, arrived } = await startWith({ stallTimeout: 200 }, ctx => {
      void ctx.sse.closed.then(reason => reasons.push(`${ctx.path} ${reason}`))
      void ctx.sse.send(ctx.path)
      if (ctx.path === '/1') setTimeout(() => ctx.sse.close(), 700)
      else setTimeout(() => ctx.sse.close(), 800)
    })
    const socket = connectSocket(port, '127.0.0.1')
    const { text } = reading(socket)
    socket.write('GET /1 HTTP/1.1\r\nHost: test\r\n\r\nGET /2 HTTP/1.1\r\nHost: test\r\n\r\n')
    await arrived
    await until(() => reasons.length === 2)
    expect(reasons).to.deep.equal(['/1 closed', '/2 closed'])
    await until(() => text().split('\r\n0\r\n\r\n').length === 3)
    expect(text()).to.include('data: /2\n\n')
    socket.destroy()
  })
})

describe('a head that somebody changes at the last moment', () => {
  direct?.('is kept to: no chunks where it announces none', async () => {
    const { port } = await startWith(
      {},
      ctx => ctx.sse.pipe(['a', 'b']),
      async ({ res }, next) => {
        const writeHead = res.writeHead.bind(res)
        res.writeHead = (status: number) => {
          res.removeHeader('Transfer-Encoding')
          return writeHead(status)
        }
        await next()
      },
    )
    const socket = connectSocket(port, '127.0.0.1')
    const { text } = reading(socket)
    socket.write('GET / HTTP/1.1\r\nHost: test\r\n\r\n')
    await until(() => text().includes('data: b'))
    expect(text().slice(text().indexOf('\r\n\r\n'))).to.equal('\r\n\r\n:\n\ndata: a\n\ndata: b\n\n')
    socket.destroy()
  })
})
