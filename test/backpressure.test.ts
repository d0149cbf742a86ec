import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { request, type IncomingMessage } from 'node:http'
import { connect as dial } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { getDefaultHighWaterMark, PassThrough, type Readable } from 'node:stream'
import { mock } from 'node:test'
import { expect } from 'chai'
import type { Context } from 'koa'
import type { EventStream } from 'koa-sse'
import { connect } from './support/client.ts'
import { memory } from './support/heap.ts'
import { until } from './support/serve.ts'
import { startWith, type Started } from './support/start.ts'

const KILOBYTE = 1_024
const MEGABYTE = 1_048_576

// What Node keeps of a response, and of a socket, before it says that it is full, and an event that had begun by then.
const NODE_BUFFERS = 3 * getDefaultHighWaterMark(false)

// More than the socket buffers of both ends swallow.
const HUGE = 'x'.repeat(16 * MEGABYTE)

const pass = (ms: number): Promise<void> => new Promise(resolve => setTimeout(resolve, ms))

/** Bytes of this response that the kernel has taken. */
const taken = ({ res }: Context): number => (res.socket === null || res.socket.destroyed ? 0 : res.socket.bytesWritten - res.socket.writableLength)

/** Resolves when the kernel takes no more bytes. */
const blocked = async (ctx: Context): Promise<void> => {
  // It may take more after a while: a window that grows, a probe of a closed one.
  for (let before = -1, quiet = 0; quiet < 8; quiet = taken(ctx) === before ? quiet + 1 : 0) {
    before = taken(ctx)
    await pass(40)
  }
  // Bytes may go past the response, straight to its socket.
  expect(ctx.res.writableNeedDrain || ctx.res.socket?.writableNeedDrain === true).to.equal(true)
}

/** Numbered events of 1 KB, and how many of them have been asked for. */
class Events {
  pulled = 0
  released = false
  readonly #count: number

  constructor(count = Infinity) {
    this.#count = count
  }

  static text(n: number): string {
    return `${n} `.padEnd(KILOBYTE - 8, 'x')
  }

  *[Symbol.iterator](): Generator<string> {
    try {
      while (this.pulled < this.#count) yield Events.text(this.pulled++)
    } finally {
      this.released = true
    }
  }
}

/** Whether these are the first `count` {@link Events}, in order. */
const expectAll = (data: string[], count: number): void => {
  expect(data.length).to.equal(count)
  const wrong = data.findIndex((text, n) => text !== Events.text(n))
  expect(wrong).to.equal(-1)
}

/**
 * Hands over to `read` so much of `stream` that the server can send some more, every 100 ms, until it is closed. How much that is
 * the kernels decide: they may give room back by the megabyte.
 */
const sip = async (stream: Readable, read: (piece: Buffer) => unknown, ctx: Context): Promise<void> => {
  while (!stream.closed) {
    for (const before = taken(ctx); taken(ctx) === before && !stream.closed; await new Promise(setImmediate)) {
      const piece = stream.read() as Buffer | null
      if (piece !== null) read(piece)
    }
    await pass(100)
  }
}

/** A client that reads a little every 100 ms, and no more. */
const slowReader = async ({ url, arrived }: Started): Promise<string> => {
  const req = request(url, { agent: false }).end()
  const [response] = (await once(req, 'response')) as [IncomingMessage]
  response.on('error', () => {})
  const pieces: Buffer[] = []
  await sip(response, piece => pieces.push(piece), await arrived)
  if (!response.complete) throw new Error(`cut after ${Buffer.concat(pieces).length} bytes`)
  return Buffer.concat(pieces).toString()
}

describe('a client that does not read', () => {
  for (const [what, wrap] of Object.entries({
    'a generator': (events: Events): Iterable<string> => events[Symbol.iterator](),
    'an async generator': (events: Events): AsyncIterable<string> =>
      (async function* () {
        yield* events
      })(),
    'an async generator that takes its time': (events: Events): AsyncIterable<string> =>
      (async function* () {
        for (const event of events) {
          if (events.pulled % 64 === 0) await new Promise(setImmediate)
          yield event
        }
      })(),
  })) {
    it(`makes ${what} wait, and gets everything in order when it reads`, async () => {
      const COUNT = 20_000
      const events = new Events(COUNT)
      const { url, arrived, app } = await startWith({}, ctx => ctx.sse.pipe(wrap(events)))
      const client = await connect(url)
      client.pause()
      const ctx = await arrived
      await blocked(ctx)
      const { pulled } = events
      expect(pulled).to.be.below(COUNT)
      expect(ctx.sse.bytesWritten).to.be.within((pulled - 1) * KILOBYTE, pulled * KILOBYTE + 3)
      expect(pulled * KILOBYTE - taken(ctx)).to.be.below(16_384 + NODE_BUFFERS)
      const before = memory()
      await pass(150)
      expect(events.pulled).to.equal(pulled)
      expect(memory() - before).to.be.below(256 * KILOBYTE)
      client.resume()
      expect(await client.ended).to.equal('clean')
      expectAll(
        client.events.map(({ data }) => data),
        COUNT,
      )
      expect(app.errors).to.deep.equal([])
    })
  }

  it('makes a handler that awaits its sends wait', async () => {
    let sent = 0
    const { url, arrived } = await startWith({}, async ctx => {
      while (await ctx.sse.send(Events.text(sent))) sent++
    })
    const client = await connect(url)
    client.pause()
    const ctx = await arrived
    await blocked(ctx)
    const before = sent
    expect((before + 1) * KILOBYTE - taken(ctx)).to.be.below(16_384 + NODE_BUFFERS)
    await pass(100)
    expect(sent).to.equal(before)
    client.resume()
    await until(() => sent > before + 1_000)
    ctx.sse.close()
    expect(await client.ended).to.equal('clean')
    expectAll(
      client.events.map(({ data }) => data),
      ctx.sse.eventsSent,
    )
  })

  it('makes a source wait whose body goes through a stream of the handler', async () => {
    const events = new Events(20_000)
    const { url, arrived } = await startWith({}, async (ctx: Context) => {
      void ctx.sse.pipe(events)
      ctx.body = ctx.sse.body.pipe(new PassThrough())
    })
    const client = await connect(url)
    client.pause()
    const ctx = await arrived
    await blocked(ctx)
    const { pulled } = events
    // Two more streams that buffer, on both their sides.
    expect(pulled * KILOBYTE - taken(ctx)).to.be.below(16_384 + NODE_BUFFERS + 4 * getDefaultHighWaterMark(false))
    await pass(100)
    expect(events.pulled).to.equal(pulled)
    client.resume()
    expect(await client.ended).to.equal('clean')
    expectAll(
      client.events.map(({ data }) => data),
      20_000,
    )
  })

  it('does not make anybody else wait', async () => {
    const all: Events[] = []
    const { url, arrived } = await startWith({}, ctx => {
      const events = new Events(all.length === 0 ? Infinity : 5_000)
      all.push(events)
      return ctx.sse.pipe(events)
    })
    const deaf = await connect(url)
    deaf.pause()
    await blocked(await arrived)
    const client = await connect(url)
    expect(await client.ended).to.equal('clean')
    expectAll(
      client.events.map(({ data }) => data),
      5_000,
    )
  })

  it('is told apart from one that nobody has answered yet: before Koa responds, a source waits as well', async () => {
    const events = new Events(2_000)
    let respond!: () => void
    const gate = new Promise<void>(resolve => (respond = resolve))
    const { url, arrived } = await startWith(
      { stallTimeout: 60 },
      ctx => ctx.sse.pipe(events),
      async (_, next) => {
        await next()
        await gate
      },
    )
    const connecting = connect(url)
    const ctx = await arrived
    await pass(250)
    expect(events.pulled).to.be.within(1, 17)
    // Nobody could have read.
    expect(ctx.sse.connected).to.equal(true)
    respond()
    const client = await connecting
    expect(await client.ended).to.equal('clean')
    expectAll(
      client.events.map(({ data }) => data),
      2_000,
    )
  })
})

describe('highWaterMark', () => {
  for (const highWaterMark of [1, 100, 200_000, MEGABYTE]) {
    it(`of ${highWaterMark} bounds what waits for the client`, async () => {
      const events = new Events()
      const { url, arrived } = await startWith({ highWaterMark }, ctx => ctx.sse.pipe(events))
      const client = await connect(url)
      client.pause()
      const ctx = await arrived
      await blocked(ctx)
      const waiting = events.pulled * KILOBYTE - taken(ctx)
      // A piece of what waits is with Node already, or one in the body and one behind it.
      expect(waiting).to.be.below(highWaterMark + NODE_BUFFERS + 2 * 64 * KILOBYTE)
      // The chunks' own framing counts against it.
      expect(waiting).to.be.above(highWaterMark - 64 * KILOBYTE)
    })
  }

  for (const highWaterMark of [1, 100]) {
    it(`of ${highWaterMark} loses nothing`, async () => {
      const { url } = await startWith({ highWaterMark }, async ctx => {
        await ctx.sse.pipe(new Events(1_000), { end: false })
        for (let n = 1_000; n < 2_000; n++) expect(await ctx.sse.send(Events.text(n))).to.equal(true)
        ctx.sse.close()
      })
      const client = await connect(url)
      expect(await client.ended).to.equal('clean')
      expectAll(
        client.events.map(({ data }) => data),
        2_000,
      )
    })
  }
})

describe('send()', () => {
  it('resolves with true when there is room again, and not before', async () => {
    const settled: boolean[] = []
    const { url, arrived } = await startWith({ maxBuffer: 64 * MEGABYTE }, ctx => void ctx.sse.send(HUGE).then(value => settled.push(value)))
    const client = await connect(url)
    client.pause()
    const ctx = await arrived
    await blocked(ctx)
    expect(settled).to.deep.equal([])
    const second = ctx.sse.send('second').then(value => settled.push(value))
    await pass(50)
    expect(settled).to.deep.equal([])
    client.resume()
    await second
    expect(settled).to.deep.equal([true, true])
    expect((await client.event()).data.length).to.equal(HUGE.length)
    expect((await client.event()).data).to.equal('second')
  })

  it('un-awaited past maxBuffer ends the stream, reason slow, and calls it no error', async () => {
    const { url, arrived, app, sockets, streams } = await startWith({ highWaterMark: 1_000, maxBuffer: 2_000 }, async ctx => {
      ctx.sse.open()
      const event = 'x'.repeat(100 - 'data: \n\n'.length)
      const results: Promise<boolean>[] = []
      // In one turn, so that nothing can leave.
      while (ctx.sse.connected) results.push(ctx.sse.send(event))
      // The first bytes wait too.
      expect(results.length).to.be.within(20, 21)
      expect(ctx.sse.signal.aborted).to.equal(true)
      expect(await Promise.all(results.slice(-11))).to.deep.equal(Array(11).fill(false))
      expect(await ctx.sse.send('too late')).to.equal(false)
    })
    await connect(url).catch(() => {})
    expect(await (await arrived).sse.closed).to.equal('slow')
    await until(() => sockets.size === 0)
    expect(streams.size).to.equal(0)
    expect(app.errors).to.deep.equal([])
  })

  it('un-awaited, turn by turn, to a client that does not read, ends the stream when maxBuffer bytes wait', async () => {
    const { url, arrived, app, sockets } = await startWith({}, ctx => void ctx.sse.open())
    const client = await connect(url)
    client.pause()
    const ctx = await arrived
    const { sse: stream } = ctx
    let most = 0
    while (stream.connected) {
      for (let n = 0; n < 50 && stream.connected; n++) {
        most = Math.max(most, stream.bytesWritten - taken(ctx))
        void stream.send(Events.text(n))
      }
      await new Promise(setImmediate)
    }
    expect(await stream.closed).to.equal('slow')
    expect(most).to.be.within(MEGABYTE - 64 * KILOBYTE, MEGABYTE + NODE_BUFFERS)
    await until(() => sockets.size === 0)
    client.resume()
    expect(await client.ended).to.equal('cut')
    expect(app.errors).to.deep.equal([])
  })

  it('frees what waited in a stream that was too slow', async () => {
    const streams: EventStream[] = []
    const { url } = await startWith({}, ctx => void streams.push(ctx.sse.open()))
    for (let n = 0; n < 20; n++) (await connect(url)).pause()
    const before = memory()
    for (const stream of streams) {
      while (stream.connected) void stream.send(Events.text(0))
      expect(await stream.closed).to.equal('slow')
    }
    await new Promise(setImmediate)
    // 20 MB have waited.
    expect(memory() - before).to.be.below(4 * MEGABYTE)
    expect(streams.length).to.equal(20)
  })

  it('un-awaited up to maxBuffer is fine for a client that reads', async () => {
    const { url } = await startWith({}, async ctx => {
      for (let n = 0; n < 1_000; n++) void ctx.sse.send(Events.text(n))
      ctx.sse.close()
    })
    const client = await connect(url)
    expect(await client.ended).to.equal('clean')
    expectAll(
      client.events.map(({ data }) => data),
      1_000,
    )
  })

  it('awaited never ends the stream, however large its events and slow its reader', async () => {
    const event = 'x'.repeat(3 * MEGABYTE)
    const server = await startWith({ maxBuffer: MEGABYTE }, async ctx => {
      for (let n = 0; n < 5; n++) expect(await ctx.sse.send(event)).to.equal(true)
      await ctx.sse.pipe([event, 'last'])
    })
    expect(await slowReader(server)).to.equal(`:\n\n${`data: ${event}\n\n`.repeat(6)}data: last\n\n`)
    expect(server.app.errors).to.deep.equal([])
  })

  it('takes an event of any size while fewer than highWaterMark bytes wait, and the next one no more', async () => {
    const { url, arrived } = await startWith({ highWaterMark: 1_000, maxBuffer: 2_000 }, ctx => {
      void ctx.sse.send('x'.repeat(900))
      void ctx.sse.send(HUGE)
      expect(ctx.sse.connected).to.equal(true)
      void ctx.sse.send('')
      expect(ctx.sse.connected).to.equal(false)
    })
    await connect(url).catch(() => {})
    expect(await (await arrived).sse.closed).to.equal('slow')
  })
})

describe('stallTimeout', () => {
  /** Resolves with the milliseconds between the last byte that left and the stream's end. */
  const stall = async (ctx: Context, over: () => boolean): Promise<number> => {
    let last = performance.now()
    for (let before = taken(ctx); !over();) {
      await pass(1)
      const now = taken(ctx)
      if (now > before) last = performance.now()
      before = Math.max(before, now)
    }
    return performance.now() - last
  }

  // A tick is a quarter of the period, and the first of them may come at once; the machine may be busy.
  const LATEST = 200 * 1.5 + 250

  it('ends a stream whose reader has stalled, heartbeats notwithstanding, but no sooner', async () => {
    const events = new Events()
    const { url, arrived, app, sockets, streams } = await startWith({ stallTimeout: 200, heartbeat: 20 }, ctx => ctx.sse.pipe(events))
    const client = await connect(url)
    client.pause()
    const ctx = await arrived
    const took = await stall(ctx, () => !ctx.sse.connected)
    expect(await ctx.sse.closed).to.equal('stalled')
    expect(took).to.be.within(198, LATEST)
    expect(ctx.sse.signal.aborted).to.equal(true)
    expect(events.released).to.equal(true)
    expect(streams.size).to.equal(0)
    await until(() => sockets.size === 0)
    client.resume()
    expect(await client.ended).to.equal('cut')
    expect(app.errors).to.deep.equal([])
  })

  it('lets a send that waits resolve with false', async () => {
    const { url, arrived } = await startWith({ stallTimeout: 100 }, async ctx => {
      expect(await ctx.sse.send(HUGE)).to.equal(false)
      ctx.app.emit('resolved')
    })
    const client = await connect(url)
    client.pause()
    const ctx = await arrived
    await Promise.all([once(ctx.app, 'resolved'), ctx.sse.closed])
    expect(await ctx.sse.closed).to.equal('stalled')
  })

  it('does not end a stream that is idle, or quiet but for heartbeats', async () => {
    const { url, arrived } = await startWith({ stallTimeout: 40 }, ctx => ctx.sse.open())
    const client = await connect(url)
    const beating = await startWith({ stallTimeout: 40, heartbeat: 15 }, ctx => ctx.sse.open())
    await connect(beating.url)
    await pass(300)
    const streams = [(await arrived).sse, (await beating.arrived).sse]
    expect(streams.map(({ connected }) => connected)).to.deep.equal([true, true])
    await streams[0]!.send('x')
    expect((await client.event()).data).to.equal('x')
  })

  it('false lets a reader stall for as long as it likes', async () => {
    const { url, arrived } = await startWith({ stallTimeout: false }, ctx => ctx.sse.pipe(new Events()))
    const client = await connect(url)
    client.pause()
    const ctx = await arrived
    await blocked(ctx)
    await pass(200)
    expect(ctx.sse.connected).to.equal(true)
  })

  it('begins anew when a reader that had paused reads again', async () => {
    const { url, arrived } = await startWith({ stallTimeout: 1_000 }, ctx => ctx.sse.pipe(new Events()))
    const client = await connect(url)
    const ctx = await arrived
    for (let n = 0; n < 3; n++) {
      client.pause()
      const before = taken(ctx)
      await pass(500)
      client.resume()
      await until(() => taken(ctx) > before + 2 * MEGABYTE)
    }
    expect(ctx.sse.connected).to.equal(true)
  })

  it('does not end a stream whose reader is slow, though it takes many times as long', async () => {
    const server = await startWith({ stallTimeout: 400 }, ctx => ctx.sse.pipe(new Events()))
    const reading = slowReader(server)
    const { sse: stream } = await server.arrived
    await pass(1_500)
    expect(stream.connected).to.equal(true)
    stream.close()
    expect((await reading).length).to.equal(3 + stream.eventsSent * KILOBYTE)
    expect(await stream.closed).to.equal('closed')
  })

  it('does not end a stream whose reader is slow to read a single event of 16 MB', async () => {
    const server = await startWith({ stallTimeout: 400 }, async ctx => {
      expect(await ctx.sse.send(HUGE)).to.equal(true)
      ctx.sse.close()
    })
    const began = performance.now()
    expect((await slowReader(server)).length).to.equal(3 + HUGE.length + 'data: \n\n'.length)
    expect(performance.now() - began).to.be.above(600)
    expect(await (await server.arrived).sse.closed).to.equal('closed')
  })

  it('takes no reader for stalled that has read while this process slept', async () => {
    mock.timers.enable({ apis: ['setInterval'] })
    const directory = mkdtempSync(join(tmpdir(), 'koa-sse-'))
    const hasRead = join(directory, 'has-read')
    const events = new Events()
    const { port, arrived } = await startWith({ stallTimeout: 400 }, ctx => ctx.sse.pipe(events))
    // A process of its own, which reads when it is told to; then, when no more comes, it says so.
    const reader = `
      const socket = require('node:net').connect(${port}, '127.0.0.1').pause()
      socket.write('GET / HTTP/1.1\\r\\nHost: test\\r\\n\\r\\n')
      let quiet
      const read = () => {
        clearTimeout(quiet)
        quiet = setTimeout(() => require('node:fs').writeFileSync(${JSON.stringify(hasRead)}, ''), 200)
      }
      process.stdin.once('data', () => socket.on('data', read).resume())`
    const child = spawn(process.execPath, ['-e', reader], { stdio: ['pipe', 'inherit', 'inherit'] })
    try {
      const ctx = await arrived
      await blocked(ctx)
      mock.timers.tick(400)
      const before = taken(ctx)
      child.stdin.write('read')
      while (!existsSync(hasRead)) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 10)
      mock.timers.tick(100)
      await until(() => taken(ctx) > before)
      expect(ctx.sse.connected).to.equal(true)
    } finally {
      mock.timers.reset()
      child.kill()
      await once(child, 'exit')
      rmSync(directory, { recursive: true })
    }
  })

  const endings: Record<string, (ctx: Context) => void> = {
    'that was closed': ctx => ctx.sse.close(),
    'that has failed': () => {
      throw new Error('on purpose')
    },
  }
  for (const [which, end] of Object.entries(endings)) {
    it(`destroys the connection of a stream ${which} when its reader has stalled`, async () => {
      const { url, arrived, app, sockets } = await startWith({ stallTimeout: 200 }, ctx => {
        void ctx.sse.send(HUGE)
        end(ctx)
      })
      const client = await connect(url)
      client.pause()
      const ctx = await arrived
      const reason = await ctx.sse.closed
      const took = await stall(ctx, () => sockets.size === 0)
      expect(took).to.be.within(198, LATEST)
      expect(reason).to.equal(which === 'that was closed' ? 'closed' : 'error')
      client.resume()
      expect(await client.ended).to.equal('cut')
      expect(app.errors.length).to.equal(which === 'that was closed' ? 0 : 1)
    })

    it(`lets a slow reader finish a stream ${which}`, async () => {
      const { port, arrived } = await startWith({ stallTimeout: 400 }, ctx => {
        void ctx.sse.send(HUGE)
        end(ctx)
      })
      // An IncomingMessage that was cut drops what has not been read of it.
      const socket = dial(port, '127.0.0.1')
      socket.write('GET / HTTP/1.1\r\nHost: test\r\n\r\n')
      let xs = 0
      let last = Buffer.alloc(0)
      const read = (piece: Buffer): void => {
        last = Buffer.concat([last.subarray(-16), piece])
        for (const byte of piece) if (byte === 120) xs++
        if (last.includes('0\r\n\r\n')) socket.end()
      }
      const began = performance.now()
      await sip(socket, read, await arrived)
      expect(performance.now() - began).to.be.above(600)
      expect(xs).to.be.within(HUGE.length, HUGE.length + 20)
      expect(last.includes('\n\n')).to.equal(true)
      expect(last.includes('\r\n0\r\n\r\n')).to.equal(which === 'that was closed')
    })
  }
})
