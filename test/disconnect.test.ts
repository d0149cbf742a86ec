import { once } from 'node:events'
import { Agent } from 'node:http'
import { connect as dial, type Socket } from 'node:net'
import { bodyParser } from '@koa/bodyparser'
import { expect } from 'chai'
import type { Context, Middleware } from 'koa'
import { sse, type EventStream } from 'koa-sse'
import { connect, type ConnectOptions, type LiveClient } from './support/client.ts'
import { signalled } from './support/promises.ts'
import { serve, until } from './support/serve.ts'
import { startWith, type Started } from './support/start.ts'
import { reset } from './support/reset.ts'
import { VERSIONS } from './support/versions.ts'

// At once; the machine may be busy, and the next thing that would end a stream, a heartbeat, comes after 15 s.
const PROMPT = 3_000

const MEGABYTE = 1_048_576

// More than the socket buffers of both ends swallow.
const HUGE = 'x'.repeat(16 * MEGABYTE)

const start = (handler: (ctx: Context) => unknown, ...outer: Middleware[]): Promise<Started> => startWith({}, handler, ...outer)

/** A connection that says `text`, and then nothing. */
const say = async (port: number, text: string): Promise<Socket> => {
  const socket = dial(port, '127.0.0.1')
  socket.on('error', () => {})
  await once(socket, 'connect')
  socket.write(text)
  return socket
}

const GET = 'GET / HTTP/1.1\r\nHost: test\r\n\r\n'

/** The kernel takes no more bytes of this response. */
const blocked = async ({ res }: Context): Promise<void> => {
  const { socket } = res
  if (socket === null) throw new Error('the response has no socket')
  for (let before = -1; socket.bytesWritten - socket.writableLength !== before;) {
    before = socket.bytesWritten - socket.writableLength
    await new Promise(resolve => setTimeout(resolve, 30))
  }
  // Bytes may go past the response, straight to its socket.
  expect(res.writableNeedDrain || socket.writableNeedDrain).to.equal(true)
}

/** A source that owes its second item for ever, or its first one, and tells whether it was released. */
const stuck = (after: 'first' | 'nothing' = 'first'): AsyncIterable<string> & { released: boolean } => {
  const first = after === 'first' ? [{ done: false as const, value: 'first' }] : []
  const source = {
    released: false,
    [Symbol.asyncIterator]: () => ({
      next: () => {
        const step = first.pop()
        return step === undefined ? new Promise<IteratorResult<string>>(() => {}) : Promise.resolve(step)
      },
      return: () => {
        source.released = true
        return Promise.resolve({ done: true as const, value: undefined })
      },
    }),
  }
  return source
}

const manners: Record<string, (client: LiveClient) => void> = {
  'a FIN': client => client.fin(),
  'a RST': client => client.rst(),
}

/** Calls `leave`, and sees that all the world learns of it, and nobody calls it an error. */
const noticed = async (stream: EventStream, { app, streams, sockets }: Started, leave: () => void): Promise<void> => {
  const { closed, signal } = stream
  expect(stream.connected).to.equal(true)
  expect(signal.aborted).to.equal(false)
  const aborted = once(signal, 'abort')
  const left = performance.now()
  leave()
  expect(await closed).to.equal('client')
  expect(stream.connected).to.equal(false)
  expect(signal.aborted).to.equal(true)
  await aborted
  await until(() => sockets.size === 0, PROMPT)
  expect(performance.now() - left).to.be.below(PROMPT)
  expect(streams.size).to.equal(0)
  expect(await stream.send('too late')).to.equal(false)
  expect(stream.open()).to.equal(stream)
  expect(app.errors).to.deep.equal([])
}

describe('a client that leaves an open stream', () => {
  interface State {
    handler: (ctx: Context) => unknown
    request?: ConnectOptions
    outer?: Middleware[]
    /** Resolves when the stream is in the state. */
    ready?: (ctx: Context, client: LiveClient) => Promise<unknown>
  }

  const open = (ctx: Context): void => void ctx.sse.open()
  const arrives = (_: Context, client: LiveClient): Promise<unknown> => client.next()

  const states: Record<string, State> = {
    'that is idle': { handler: open, ready: arrives },
    'that has sent': { handler: ctx => ctx.sse.send('one'), ready: (_, client) => client.event() },
    'while an unread body of 1 MB has come as a whole': { handler: open, request: { method: 'POST', body: 'x'.repeat(MEGABYTE) }, ready: arrives },
    'while an unread body of 1 MB is coming, with a length': {
      handler: open,
      request: { method: 'POST', headers: { 'content-length': 2 * MEGABYTE }, body: 'x'.repeat(MEGABYTE), unfinished: true },
      ready: arrives,
    },
    'while an unread body of 1 MB is coming, in chunks': {
      handler: open,
      request: { method: 'POST', body: 'x'.repeat(MEGABYTE), unfinished: true },
      ready: arrives,
    },
    'while an unread body of one byte is coming': { handler: open, request: { method: 'PUT', unfinished: true }, ready: arrives },
    'after a body parser has read the request': {
      handler: ctx => ctx.sse.send(String((ctx.request as unknown as { body: { a: number } }).body.a)),
      outer: [bodyParser({ jsonLimit: 2 * MEGABYTE })],
      request: { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ a: 1, b: 'x'.repeat(MEGABYTE) }) },
      ready: (_, client) => client.event(),
    },
  }

  for (const [how, leave] of Object.entries(manners)) {
    for (const [when, { handler, request, outer = [], ready }] of Object.entries(states)) {
      it(`with ${how}, ${when}, is noticed at once`, async () => {
        const started = await start(handler, ...outer)
        const client = await connect(started.url, request)
        const ctx = await started.arrived
        await ready?.(ctx, client)
        await noticed(ctx.sse, started, () => leave(client))
      })
    }

    it(`with ${how}, while a source owes an item, has it released at once`, async () => {
      const source = stuck()
      let piped: Promise<void> | undefined
      const started = await start(ctx => (piped = ctx.sse.pipe(source)))
      const client = await connect(started.url)
      expect((await client.event()).data).to.equal('first')
      const ctx = await started.arrived
      expect(source.released).to.equal(false)
      await noticed(ctx.sse, started, () => leave(client))
      expect(source.released).to.equal(true)
      await piped
    })

    it(`with ${how}, while a send waits for it to read, lets that resolve with false`, async () => {
      let sent: Promise<boolean> | undefined
      const started = await start(ctx => (sent = ctx.sse.send(HUGE)))
      const client = await connect(started.url)
      client.pause()
      const ctx = await started.arrived
      await blocked(ctx)
      const { bytesWritten } = ctx.sse
      await noticed(ctx.sse, started, () => leave(client))
      expect(await sent).to.equal(false)
      expect(ctx.sse.bytesWritten).to.equal(bytesWritten)
    })

    it(`with ${how}, while a comment waits for it to read, lets that resolve with false`, async () => {
      let sent: Promise<boolean> | undefined
      const started = await start(ctx => (sent = ctx.sse.comment(HUGE)))
      const client = await connect(started.url)
      client.pause()
      const ctx = await started.arrived
      await blocked(ctx)
      await noticed(ctx.sse, started, () => leave(client))
      expect(await sent).to.equal(false)
    })

    it(`with ${how}, while a generator waits for it to read, has that finished at once`, async () => {
      let finished = false
      let piped: Promise<void> | undefined
      const started = await start(ctx => {
        piped = ctx.sse.pipe(
          (function* () {
            try {
              for (;;) yield 'x'.repeat(1024)
            } finally {
              finished = true
            }
          })(),
        )
        return piped
      })
      const client = await connect(started.url)
      client.pause()
      const ctx = await started.arrived
      await blocked(ctx)
      expect(finished).to.equal(false)
      await noticed(ctx.sse, started, () => leave(client))
      expect(finished).to.equal(true)
      await piped
    })

    it(`with ${how}, while a send waits and a body is unread, is noticed at once`, async () => {
      let sent: Promise<boolean> | undefined
      const started = await start(ctx => (sent = ctx.sse.send(HUGE)))
      const client = await connect(started.url, { method: 'POST', body: 'x'.repeat(MEGABYTE) })
      client.pause()
      const ctx = await started.arrived
      await blocked(ctx)
      await noticed(ctx.sse, started, () => leave(client))
      expect(await sent).to.equal(false)
    })

    it(`with ${how}, while the last bytes wait after close(), frees its connection at once`, async () => {
      let sent: Promise<boolean> | undefined
      const started = await start(ctx => {
        sent = ctx.sse.send(HUGE)
        ctx.sse.close()
      })
      const client = await connect(started.url)
      client.pause()
      const ctx = await started.arrived
      expect(await ctx.sse.closed).to.equal('closed')
      // Whoever waits for room does not wait for the client.
      expect(await sent).to.equal(false)
      await blocked(ctx)
      expect(started.sockets.size).to.equal(1)
      leave(client)
      await until(() => started.sockets.size === 0, PROMPT)
      // It is not waited for any more.
      const before = performance.now()
      await started.streams.close()
      expect(performance.now() - before).to.be.below(PROMPT)
      expect(await ctx.sse.closed).to.equal('closed')
      expect(started.app.errors).to.deep.equal([])
    })

    it(`with ${how}, while the last bytes of a failed stream wait, frees its connection at once`, async () => {
      const failure = new Error('on purpose')
      const started = await start(ctx => {
        void ctx.sse.send(HUGE)
        throw failure
      })
      const client = await connect(started.url)
      client.pause()
      const ctx = await started.arrived
      expect(await ctx.sse.closed).to.equal('error')
      await blocked(ctx)
      leave(client)
      await until(() => started.sockets.size === 0, PROMPT)
      expect(started.app.errors).to.deep.equal([failure])
    })
  }

  it('takes nobody along', async () => {
    const streams: EventStream[] = []
    const { app, url } = await start(ctx => void streams.push(ctx.sse.open()))
    const clients = [await connect(url), await connect(url), await connect(url)]
    clients[1]!.rst()
    expect(await streams[1]!.closed).to.equal('client')
    expect(streams.map(stream => stream.connected)).to.deep.equal([true, false, true])
    for (const stream of streams) await stream.send('still here')
    for (const index of [0, 2]) expect((await clients[index]!.event()).data).to.equal('still here')
    expect(app.errors).to.deep.equal([])
  })

  it('is no news when the handler fails of just that', async () => {
    let failed = false
    const started = await start(async ctx => {
      ctx.sse.open()
      await ctx.sse.closed
      failed = true
      ctx.sse.signal.throwIfAborted()
    })
    const client = await connect(started.url)
    await noticed((await started.arrived).sse, started, () => client.fin())
    expect(failed).to.equal(true)
    await new Promise(setImmediate)
    expect(started.app.errors).to.deep.equal([])
  })

  it('hides no failure that the handler has of its own, afterwards', async () => {
    const failure = new Error('the database is gone, too')
    const { app, url } = await start(async ctx => {
      ctx.sse.open()
      await ctx.sse.closed
      throw failure
    })
    const client = await connect(url)
    client.fin()
    await until(() => app.errors.length > 0)
    await new Promise(setImmediate)
    expect(app.errors).to.deep.equal([failure])
  })
})

describe('a client that leaves before the stream is open', () => {
  const leaving: Record<string, (socket: Socket) => unknown> = {
    'a FIN': socket => socket.end(),
    'a RST': socket => reset(socket),
  }

  for (const [how, leave] of Object.entries(leaving)) {
    it(`with ${how}, aborts the signal that a handler asked for, and is no news when it fails of that`, async () => {
      let wentOn = false
      const started = await start(
        async ctx => {
          if (!ctx.sse.signal.aborted) await once(ctx.sse.signal, 'abort')
          ctx.sse.signal.throwIfAborted()
        },
        async (_, next) => {
          await next()
          wentOn = true
        },
      )
      const socket = await say(started.port, GET)
      const { sse: stream } = await started.arrived
      const left = performance.now()
      leave(socket)
      expect(await stream.closed).to.equal('client')
      expect(stream.signal.aborted).to.equal(true)
      expect(performance.now() - left).to.be.below(PROMPT)
      await until(() => started.sockets.size === 0, PROMPT)
      expect(stream.connected).to.equal(false)
      await until(() => wentOn)
      expect(started.app.errors).to.deep.equal([])
    })

    it(`with ${how}, is known to a handler that asks only then`, async () => {
      const source = stuck('nothing')
      const asks: ((stream: EventStream) => unknown)[] = [
        stream => stream.signal.aborted,
        stream => stream.closed,
        async stream => {
          await stream.pipe(source, { head: 'first-event' })
          return source.released
        },
      ]
      const answers: unknown[] = []
      for (const ask of asks) {
        const started = await start(async ctx => {
          await new Promise(resolve => ctx.req.socket.on('close', resolve))
          answers.push(await ask(ctx.sse))
        })
        const socket = await say(started.port, GET)
        await started.arrived
        leave(socket)
        await until(() => answers.length === asks.indexOf(ask) + 1)
        expect(started.app.errors).to.deep.equal([])
      }
      expect(answers).to.deep.equal([true, 'client', true])
    })

    it(`with ${how}, does no harm to a handler that opens and sends`, async () => {
      let carryOn!: () => void
      const gate = new Promise<void>(resolve => (carryOn = resolve))
      const source = stuck()
      const started = await start(async ctx => {
        await gate
        ctx.sse.open()
        expect(await ctx.sse.send('nobody reads this')).to.equal(false)
        expect(await ctx.sse.comment('nor this')).to.equal(false)
        await ctx.sse.pipe(source)
        carriedOn()
      })
      let carriedOn!: () => void
      const done = new Promise<void>(resolve => (carriedOn = resolve))
      const socket = await say(started.port, GET)
      const { sse: stream } = await started.arrived
      leave(socket)
      await until(() => started.sockets.size === 0)
      carryOn()
      await done
      expect(source.released).to.equal(true)
      expect(stream.connected).to.equal(false)
      expect(await stream.closed).to.equal('client')
      expect(stream.signal.aborted).to.equal(true)
      expect(started.streams.size).to.equal(0)
      await new Promise(setImmediate)
      expect(started.app.errors).to.deep.equal([])
    })

    it(`with ${how}, leaving an unread body behind, is noticed as soon as the stream opens`, async () => {
      let carryOn!: () => void
      const gate = new Promise<void>(resolve => (carryOn = resolve))
      const started = await start(async ctx => {
        await gate
        ctx.sse.open()
      })
      const socket = await say(started.port, `POST / HTTP/1.1\r\nHost: test\r\nContent-Length: ${MEGABYTE}\r\n\r\n${'x'.repeat(MEGABYTE)}`)
      const { sse: stream } = await started.arrived
      leave(socket)
      await new Promise(setImmediate)
      carryOn()
      const opened = performance.now()
      expect(await stream.closed).to.equal('client')
      await until(() => started.sockets.size === 0, PROMPT)
      expect(performance.now() - opened).to.be.below(PROMPT)
      expect(started.app.errors).to.deep.equal([])
    })

    it(`with ${how}, leaving an unread body behind, is noticed while a source owes its first item`, async () => {
      const source = stuck('nothing')
      const started = await start(ctx => ctx.sse.pipe(source, { head: 'first-event' }))
      const socket = await say(started.port, `POST / HTTP/1.1\r\nHost: test\r\nContent-Length: ${MEGABYTE}\r\n\r\n${'x'.repeat(MEGABYTE)}`)
      const { sse: stream } = await started.arrived
      const { closed } = stream
      await new Promise(setImmediate)
      const left = performance.now()
      leave(socket)
      expect(await closed).to.equal('client')
      expect(performance.now() - left).to.be.below(PROMPT)
      expect(source.released).to.equal(true)
      await until(() => started.sockets.size === 0, PROMPT)
      expect(started.app.errors).to.deep.equal([])
    })

    it(`with ${how}, between the open and Koa's response, is noticed at once`, async () => {
      let carryOn!: () => void
      const gate = new Promise<void>(resolve => (carryOn = resolve))
      let responding = false
      const source = stuck()
      const started = await start(
        ctx => ctx.sse.pipe(source),
        async (_, next) => {
          await next()
          await gate
          responding = true
        },
      )
      const socket = await say(started.port, GET)
      const { sse: stream } = await started.arrived
      await until(() => stream.eventsSent === 1)
      await noticed(stream, started, () => leave(socket))
      expect(source.released).to.equal(true)
      expect(responding).to.equal(false)
      carryOn()
      await until(() => responding)
      await new Promise(setImmediate)
      expect(await stream.closed).to.equal('client')
      expect(started.app.errors).to.deep.equal([])
    })
  }
})

describe('a stream that ended or failed before it opened', () => {
  const whole = async (ctx: Context): Promise<void> => {
    await once(ctx.req.socket, 'end')
    ctx.body = 'whole'
  }
  const cases: Record<string, [handler: (ctx: Context) => unknown, ...outer: Middleware[]]> = {
    'that its handler closed': [
      async ctx => {
        ctx.sse.close()
        expect(await ctx.sse.closed).to.equal('closed')
        await whole(ctx)
      },
    ],
    'that its handler closed, having asked for the signal': [
      async ctx => {
        const { signal } = ctx.sse
        ctx.sse.close()
        expect(signal.aborted).to.equal(true)
        await whole(ctx)
      },
    ],
    'whose handler failed, having asked for the signal': [
      ctx => {
        void ctx.sse.signal
        throw new Error('boom')
      },
      (ctx, next) => next().catch(() => whole(ctx)),
    ],
  }

  for (const [which, [handler, ...outer]] of Object.entries(cases)) {
    it(`cuts no answer short for a client that has said all it will, where the server lets it: one ${which}`, async () => {
      const { port, server, arrived } = await start(handler, ...outer)
      Object.assign(server, { httpAllowHalfOpen: true })
      const client = await say(port, GET)
      let text = ''
      client.on('data', chunk => (text += String(chunk)))
      await arrived
      client.end()
      await once(client, 'close')
      expect(text).to.match(/\r\n\r\nwhole$/)
    })
  }
})

describe('a connection that breaks by itself', () => {
  for (const [version, koaOf] of VERSIONS) {
    for (const when of ['before Koa responds', 'past the body', 'while Koa pipes the body'] as const) {
      it(`on Koa ${version}, ${when}, is a client that has left, whatever the kernel calls it`, async () => {
        let ctx: Context | undefined
        const { promise: broken, go } = signalled()
        // As Node does with what the kernel tells: a network that is gone, say, and keep-alive probes that nobody answers.
        const breakOff = (): void =>
          void ctx!.req.socket.destroy(Object.assign(new Error('read ETIMEDOUT'), { code: 'ETIMEDOUT', syscall: 'read' })).once('close', go)
        const app = koaOf(
          async (given, next) => {
            if (when === 'while Koa pipes the body') given.respond = true
            await next()
            if (when !== 'before Koa responds') return
            breakOff()
            await broken
          },
          sse(),
          given => {
            ctx = given
            ctx.sse.open()
          },
        )
        const { url } = await serve(app)
        if (when === 'before Koa responds') await connect(url).catch(() => {})
        else {
          await connect(url)
          breakOff()
        }
        await broken
        await new Promise(setImmediate)
        expect(await ctx!.sse.closed).to.equal('client')
        expect(app.errors).to.deep.equal([])
      })
    }
  }
})

describe('the end of a stream, as the client sees it', () => {
  it('is clean after close()', async () => {
    const { url } = await start(async ctx => {
      await ctx.sse.send('last')
      ctx.sse.close()
    })
    const client = await connect(url)
    expect(await client.ended).to.equal('clean')
    expect(client.events.map(({ data }) => data)).to.deep.equal(['last'])
  })

  it('is clean after a source has ended', async () => {
    const { url } = await start(ctx => ctx.sse.pipe(['a', 'b']))
    const client = await connect(url)
    expect(await client.ended).to.equal('clean')
    expect(client.events.map(({ data }) => data)).to.deep.equal(['a', 'b'])
  })

  it('is a cut after a failure, behind all that was sent', async () => {
    const { url } = await start(async ctx => {
      await ctx.sse.send('a')
      throw new Error('on purpose')
    })
    const client = await connect(url)
    expect(await client.ended).to.equal('cut')
    expect(client.events.map(({ data }) => data)).to.deep.equal(['a'])
  })

  it('is clean with megabytes on their way', async () => {
    const { url } = await start(ctx => {
      void ctx.sse.send(HUGE)
      ctx.sse.close()
    })
    const client = await connect(url)
    expect(await client.ended).to.equal('clean')
    expect(client.events[0]!.data.length).to.equal(HUGE.length)
  })
})

describe('a connection that is kept alive', () => {
  const counts = (socket: Socket): Record<string, number> =>
    Object.fromEntries(socket.eventNames().map(name => [String(name), socket.listenerCount(name)]))

  it('carries twenty streams, one after the other, and keeps no listener of theirs', async () => {
    const warnings: Error[] = []
    const warn = (warning: Error): unknown => warnings.push(warning)
    process.on('warning', warn)
    const seen: Record<string, number>[] = []
    const sockets = new Set<Socket>()
    const agent = new Agent({ keepAlive: true, maxSockets: 1 })
    const EVENTS = ['one', 'zwei 🎉', 'x'.repeat(100_000), '']
    try {
      const { app, url, streams } = await start(async ctx => {
        sockets.add(ctx.req.socket)
        seen.push(counts(ctx.req.socket))
        if (ctx.path === '/plain') {
          ctx.body = 'plain'
          return
        }
        void ctx.sse.signal
        for (const event of EVENTS) {
          await ctx.sse.send(event)
          await new Promise(setImmediate)
        }
        ctx.sse.close()
      })
      for (let n = 0; n < 20; n++) {
        const client = await connect(url, { agent })
        expect(await client.ended).to.equal('clean')
        expect(client.events.map(({ data }) => data)).to.deep.equal(EVENTS)
      }
      const plain = await connect(`${url}/plain`, { agent })
      expect(await plain.ended).to.equal('clean')
      expect(plain.text).to.equal('plain')
      expect(sockets.size).to.equal(1)
      // Node has its own way with a socket's first request.
      expect(seen[20]).to.deep.equal(seen[1])
      expect(seen[10]).to.deep.equal(seen[1])
      expect(streams.size).to.equal(0)
      expect(app.errors).to.deep.equal([])
      await new Promise(setImmediate)
      expect(warnings).to.deep.equal([])
    } finally {
      agent.destroy()
      process.removeListener('warning', warn)
    }
  })

  it('serves an ordinary handler that asked for the signal, and keeps no listener of it', async () => {
    const seen: Record<string, number>[] = []
    const agent = new Agent({ keepAlive: true, maxSockets: 1 })
    try {
      const { url } = await start(ctx => {
        seen.push(counts(ctx.req.socket))
        expect(ctx.sse.signal.aborted).to.equal(false)
        ctx.body = 'plain'
      })
      for (let n = 0; n < 12; n++) {
        const client = await connect(url, { agent })
        expect(await client.ended).to.equal('clean')
      }
      expect(seen[11]).to.deep.equal(seen[1])
    } finally {
      agent.destroy()
    }
  })

  it('does not tell a stream that has ended of a client that leaves later', async () => {
    const reasons: string[] = []
    const agent = new Agent({ keepAlive: true, maxSockets: 1 })
    try {
      const { url, arrived, sockets } = await start(ctx => {
        void ctx.sse.closed.then(reason => reasons.push(reason))
        return ctx.sse.pipe(['a'])
      })
      const client = await connect(url, { agent })
      expect(await client.ended).to.equal('clean')
      const { res } = await arrived
      expect(res.writableFinished).to.equal(true)
      client.rst()
      await until(() => sockets.size === 0)
      expect(reasons).to.deep.equal(['closed'])
    } finally {
      agent.destroy()
    }
  })

  it('is noticed to break in its second stream too', async () => {
    const opened: EventStream[] = []
    const agent = new Agent({ keepAlive: true, maxSockets: 1 })
    try {
      const { url } = await start(ctx => {
        opened.push(ctx.sse.open())
        if (opened.length === 1) ctx.sse.close()
      })
      await (
        await connect(url, { agent })
      ).ended
      const client = await connect(url, { agent })
      const left = performance.now()
      client.fin()
      expect(await opened[1]!.closed).to.equal('client')
      expect(performance.now() - left).to.be.below(PROMPT)
    } finally {
      agent.destroy()
    }
  })
})

describe('pipelined requests', () => {
  /** Reads until what has come so far holds `text`. */
  const reads = async (socket: Socket, text: string): Promise<string> => {
    let all = ''
    socket.setEncoding('utf8')
    const read = (chunk: string): unknown => (all += chunk)
    socket.on('data', read)
    await until(() => all.includes(text))
    socket.off('data', read)
    return all
  }

  it('are answered one after the other, behind a stream', async () => {
    const { port, arrived, app } = await start(ctx => {
      if (ctx.path === '/plain') ctx.body = 'the plain answer'
      else void ctx.sse.send('first')
    })
    const socket = await say(port, GET + GET.replace('/', '/plain'))
    const ctx = await arrived
    expect(await reads(socket, 'first')).not.to.include('the plain answer')
    ctx.sse.close()
    await reads(socket, 'the plain answer')
    socket.destroy()
    expect(app.errors).to.deep.equal([])
  })

  it('are no error when the client leaves before their turn, and outer middleware waits for the end', async () => {
    let over = false
    const { port, app, arrived } = await startWith(
      {},
      ctx => void ctx.sse.open(),
      async (ctx, next) => {
        if (ctx.path === '/slow') return new Promise(() => {})
        await next()
        await ctx.sse.closed
        // Koa answers when this has returned.
        setImmediate(() => setImmediate(() => (over = true)))
      },
    )
    const socket = await say(port, GET.replace('/', '/slow') + GET)
    const { sse: stream } = await arrived
    socket.end()
    expect(await stream.closed).to.equal('client')
    await until(() => over)
    expect(app.errors).to.deep.equal([])
  })

  it('may be streams that wait for their turn', async () => {
    const streams: EventStream[] = []
    const { port, app } = await start(ctx => {
      streams.push(ctx.sse)
      void ctx.sse.send(`stream ${streams.length}`)
    })
    const socket = await say(port, GET + GET)
    const all = reads(socket, 'stream 2')
    await until(() => streams.length === 2)
    expect(streams.map(({ connected }) => connected)).to.deep.equal([true, true])
    streams[0]!.close()
    expect(await all).to.include('stream 1')
    streams[1]!.close()
    socket.destroy()
    expect(app.errors).to.deep.equal([])
  })

  for (const [how, leave] of Object.entries({
    'a FIN': (socket: Socket): unknown => socket.end(),
    'a RST': (socket: Socket): unknown => reset(socket),
  })) {
    it(`all learn that the client has left with ${how}, those too that still wait`, async () => {
      const streams: EventStream[] = []
      const { port, app, sockets } = await start(ctx => {
        streams.push(ctx.sse)
        void ctx.sse.send(`stream ${streams.length}`)
      })
      const socket = await say(port, GET + GET)
      await reads(socket, 'stream 1')
      await until(() => streams.length === 2)
      expect(streams.map(({ connected }) => connected)).to.deep.equal([true, true])
      const left = performance.now()
      leave(socket)
      expect(await Promise.all(streams.map(({ closed }) => closed))).to.deep.equal(['client', 'client'])
      expect(performance.now() - left).to.be.below(PROMPT)
      await until(() => sockets.size === 0, PROMPT)
      expect(app.errors).to.deep.equal([])
    })
  }

  it('end in order, when a stream fails that waits for its turn', async () => {
    const failure = new Error('on purpose')
    const contexts: Context[] = []
    const { port, app } = await start(ctx => {
      contexts.push(ctx)
      void ctx.sse.send(ctx.path)
      if (ctx.path === '/2') throw failure
    })
    const socket = await say(port, GET + GET.replace('/', '/2'))
    const closed = once(socket, 'close')
    const all = reads(socket, '\r\n0\r\n\r\n')
    await until(() => contexts[1]?.res.destroyed === true)
    expect(await contexts[1]!.sse.closed).to.equal('error')
    expect(await contexts[0]!.sse.send('still here')).to.equal(true)
    contexts[0]!.sse.close()
    expect(await all).to.include('still here')
    await closed
    expect(app.errors).to.deep.equal([failure])
  })

  it('in their dozens cause no warning, and leave no listener behind', async () => {
    const warnings: Error[] = []
    const warn = (warning: Error): unknown => warnings.push(warning)
    process.on('warning', warn)
    try {
      const streams: EventStream[] = []
      const { port, sockets } = await start(ctx => void streams.push(ctx.sse.open()))
      const socket = await say(port, '')
      await until(() => sockets.size === 1)
      const [connection] = sockets
      const listeners = (): number[] => ['end', 'close'].map(event => connection!.listenerCount(event))
      const before = listeners()
      socket.write(GET.repeat(24))
      const last = reads(socket, 'stream 24')
      await until(() => streams.length === 24)
      for (const [n, stream] of streams.entries()) {
        await stream.send(`stream ${n + 1}`)
        stream.close()
      }
      await last
      await until(() => String(listeners()) === String(before))
      socket.destroy()
      await new Promise(setImmediate)
      expect(warnings).to.deep.equal([])
    } finally {
      process.removeListener('warning', warn)
    }
  })
})
