import { once } from 'node:events'
import { connect as dial, type Socket } from 'node:net'
import { PassThrough, Readable } from 'node:stream'
import { mock } from 'node:test'
import { expect } from 'chai'
import type { Context } from 'koa'
import { Hub, sse, type EventStream, type Source, type SseOptions } from 'koa-sse'
import { connect } from './support/client.ts'
import { koa, serve, until } from './support/serve.ts'

const ITEMS = Array.from({ length: 50 }, (_, n) => `item ${n}`)
const wire = (items: string[]): string => items.map(item => `data: ${item}\n\n`).join('')

/** A client that sees where one write ends and the next begins: each is a chunk of HTTP/1.1's chunked encoding (RFC 9112, section 7.1). */
class ChunkReader {
  readonly socket: Socket
  readonly chunks: string[] = []
  #rest = Buffer.alloc(0)
  #inBody = false

  constructor(port: number) {
    this.socket = dial(port, '127.0.0.1')
    this.socket.write('GET / HTTP/1.1\r\nHost: test\r\n\r\n')
    this.socket.on('error', () => {})
    this.socket.on('data', piece => {
      this.#rest = Buffer.concat([this.#rest, piece])
      while (this.#readOne());
    })
  }

  #readOne(): boolean {
    if (!this.#inBody) {
      const end = this.#rest.indexOf('\r\n\r\n')
      if (end === -1) return false
      this.#rest = this.#rest.subarray(end + 4)
      this.#inBody = true
    }
    const end = this.#rest.indexOf('\r\n')
    if (end === -1) return false
    const length = parseInt(this.#rest.toString('latin1', 0, end), 16)
    if (this.#rest.length < end + length + 4) return false
    this.chunks.push(this.#rest.toString('utf8', end + 2, end + 2 + length))
    this.#rest = this.#rest.subarray(end + length + 4)
    return true
  }

  /** The chunks behind the first bytes, when the body is over. */
  async events(): Promise<string[]> {
    await until(() => this.chunks.at(-1) === '')
    this.socket.destroy()
    expect(this.chunks[0]).to.equal(':\n\n')
    return this.chunks.slice(1, -1)
  }
}

/** The chunks that leave an open stream, whose first bytes the client has read, while `act` runs; then it is closed. */
const chunksOf = async (act: (stream: EventStream, ctx: Context) => unknown, options: SseOptions = {}): Promise<string[]> => {
  let go!: () => void
  const gate = new Promise<void>(resolve => (go = resolve))
  const app = koa(sse(options), async ctx => {
    ctx.sse.open()
    await gate
    await act(ctx.sse, ctx)
    ctx.sse.close()
  })
  const { port } = await serve(app)
  const reader = new ChunkReader(port)
  await until(() => reader.chunks.length === 1)
  go()
  const chunks = await reader.events()
  expect(app.errors).to.deep.equal([])
  return chunks
}

const turn = (): Promise<void> => new Promise(resolve => setImmediate(resolve))

describe('what is ready in the same turn of the event loop leaves in one write:', () => {
  const sources: Record<string, () => Source> = {
    'an array': () => ITEMS,
    'a generator': () =>
      (function* () {
        yield* ITEMS
      })(),
    'an async generator that does not wait': () =>
      (async function* () {
        for (const item of ITEMS) yield item
      })(),
    'an async generator that awaits what is there': () =>
      (async function* () {
        for (const item of ITEMS) yield await Promise.resolve(item)
      })(),
    'a function that promises an array': () => async () => ITEMS,
    'a Readable that has buffered them': () => {
      const readable = new Readable({ objectMode: true, highWaterMark: 100, read: () => {} })
      for (const item of ITEMS) readable.push(item)
      readable.push(null)
      return readable
    },
    'a ReadableStream that has queued them': () =>
      new ReadableStream<string>({
        start: controller => {
          for (const item of ITEMS) controller.enqueue(item)
          controller.close()
        },
      }),
  }
  for (const [kind, make] of Object.entries(sources)) {
    it(`the items of ${kind}`, async () => {
      expect(await chunksOf(stream => stream.pipe(make()))).to.deep.equal([wire(ITEMS)])
    })
  }

  it('what somebody writes to a PassThrough in one turn', async () => {
    const source = new PassThrough({ objectMode: true, highWaterMark: 100 })
    const chunks = await chunksOf(async stream => {
      const piped = stream.pipe(source)
      for (const batch of [ITEMS, ITEMS]) {
        await turn()
        for (const item of batch) source.write(item)
        await turn()
      }
      source.end()
      await piped
    })
    expect(chunks).to.deep.equal([wire(ITEMS), wire(ITEMS)])
  })

  it('sends that nobody awaits', async () => {
    const chunks = await chunksOf(stream => {
      for (const item of ITEMS) void stream.send(item)
    })
    expect(chunks).to.deep.equal([wire(ITEMS)])
  })

  it('sends that are awaited, one after the other', async () => {
    const chunks = await chunksOf(async stream => {
      for (const item of ITEMS) await stream.send(item)
    })
    expect(chunks).to.deep.equal([wire(ITEMS)])
  })

  it('sends, comments and a source, in their order', async () => {
    const chunks = await chunksOf(async stream => {
      void stream.send('first')
      void stream.comment('second')
      const piped = stream.pipe(['third'], { end: false })
      await piped
      void stream.send({ id: '4', data: 'fourth' })
    })
    expect(chunks).to.deep.equal(['data: first\n\n: second\n\ndata: third\n\nid: 4\ndata: fourth\n\n'])
  })

  it('the first bytes too, and the last', async () => {
    const { port } = await serve(koa(sse(), ctx => ctx.sse.pipe(ITEMS)))
    const reader = new ChunkReader(port)
    await until(() => reader.chunks.length === 2)
    reader.socket.destroy()
    expect(reader.chunks).to.deep.equal([`:\n\n${wire(ITEMS)}`, ''])
  })

  it('through a stream that the handler put behind the body', async () => {
    let go!: () => void
    const gate = new Promise<void>(resolve => (go = resolve))
    const { port } = await serve(
      koa(sse(), async ctx => {
        ctx.body = ctx.sse.open().body.pipe(new PassThrough())
        await gate
        await ctx.sse.pipe(ITEMS)
      }),
    )
    const reader = new ChunkReader(port)
    await until(() => reader.chunks.length === 1)
    go()
    expect(await reader.events()).to.deep.equal([wire(ITEMS)])
  })
})

describe('what is ready in different turns leaves in different writes:', () => {
  const each = ITEMS.map(item => wire([item]))

  it('the items of a generator that waits for a turn', async () => {
    const chunks = await chunksOf(stream =>
      stream.pipe(
        (async function* () {
          for (const item of ITEMS) {
            yield item
            await turn()
          }
        })(),
      ),
    )
    expect(chunks).to.deep.equal(each)
  })

  it('sends', async () => {
    const chunks = await chunksOf(async stream => {
      for (const item of ITEMS) {
        await stream.send(item)
        await turn()
      }
    })
    expect(chunks).to.deep.equal(each)
  })

  it('the batches of a generator, a write each', async () => {
    const chunks = await chunksOf(stream =>
      stream.pipe(
        (async function* () {
          for (let n = 0; n < 50; n += 10) {
            yield* ITEMS.slice(n, n + 10)
            await turn()
          }
        })(),
      ),
    )
    expect(chunks).to.deep.equal([0, 10, 20, 30, 40].map(n => wire(ITEMS.slice(n, n + 10))))
  })
})

describe('one event alone', () => {
  it('leaves at once, in the turn in which it was sent', async () => {
    let before = 0
    let after = 0
    const chunks = await chunksOf(async (stream, { res }) => {
      const socket = res.socket!
      before = socket.bytesWritten
      // Asked for before the event, and so served before whatever the stream might ask for.
      const nextTurn = turn().then(() => (after = socket.bytesWritten))
      void stream.send('alone')
      await nextTurn
    })
    expect(after).to.be.greaterThan(before)
    expect(chunks).to.deep.equal(['data: alone\n\n'])
  })

  it('needs no timer to reach its client', async () => {
    let opened: EventStream | undefined
    const { url } = await serve(koa(sse({ heartbeat: false }), ctx => void (opened = ctx.sse.open())))
    const client = await connect(url)
    await client.next()
    const took: number[] = []
    for (let n = 0; n < 20; n++) {
      const sent = performance.now()
      void opened!.send(`${n}`)
      await client.event()
      took.push(performance.now() - sent)
    }
    // The median: the machine may be busy.
    expect(took.toSorted((a, b) => a - b)[10]).to.be.below(5)
  })

  it('is the only one to leave: two streams do not wait for each other', async () => {
    const streams: EventStream[] = []
    const { url } = await serve(koa(sse(), ctx => void streams.push(ctx.sse.open())))
    const clients = [await connect(url), await connect(url)]
    void streams[0]!.send('for the first')
    expect((await clients[0]!.event()).data).to.equal('for the first')
    expect(clients[1]!.events).to.deep.equal([])
  })
})

describe('more than highWaterMark', () => {
  it('leaves in few large writes, and whole events', async () => {
    const count = 5_000
    const chunks = await chunksOf(stream => stream.pipe(Array(count).fill('x'.repeat(92))))
    expect(chunks.join('')).to.equal(wire(Array(count).fill('x'.repeat(92))))
    expect(chunks.length).to.be.below((count * 100) / 16_384 + 5)
    for (const chunk of chunks) expect(chunk.endsWith('\n\n')).to.equal(true)
  })

  it('of a single byte loses nothing, and keeps the order', async () => {
    const chunks = await chunksOf(
      stream => {
        for (const item of ITEMS) void stream.send(item)
      },
      { highWaterMark: 1 },
    )
    expect(chunks.join('')).to.equal(wire(ITEMS))
  })

  it('is one write for one event, up to 64 KB', async () => {
    const data = 'x'.repeat(60_000)
    expect(await chunksOf(stream => stream.send(data))).to.deep.equal([wire([data])])
  })
})

it('a client that leaves between a send and its write does no harm', async () => {
  let opened: EventStream | undefined
  const app = koa(sse(), ctx => void (opened = ctx.sse.open()))
  const { url, sockets } = await serve(app)
  const client = await connect(url)
  const [socket] = sockets
  const gone = once(socket!, 'close')
  void opened!.send('never read')
  socket!.destroy()
  await gone
  expect(await opened!.closed).to.equal('client')
  await turn()
  expect(app.errors).to.deep.equal([])
  expect(client.events).to.deep.equal([])
})

describe('a fake clock of a user’s test, which stands still', () => {
  beforeEach(() => mock.timers.enable({ apis: ['setImmediate', 'setTimeout'] }))
  afterEach(() => mock.timers.reset())

  it('keeps no stream waiting, nor who publishes, nor what comes after it', async () => {
    const { url } = await serve(
      koa(sse(), async ctx => {
        for (const item of ITEMS) {
          await ctx.sse.send(item)
          await new Promise<void>(resolve => process.nextTick(resolve))
        }
        if (ctx.path === '/fails') throw new Error('the last event is not the end')
        ctx.sse.close()
      }),
    )
    const hub = new Hub()
    const visit = async (path: string): Promise<string> => {
      const client = await connect(url + path)
      const how = await client.ended
      expect(client.text).to.equal(`:\n\n${wire(ITEMS)}`)
      for (const item of ITEMS) await hub.publish('news', item)
      return how
    }
    expect(await visit('/')).to.equal('clean')
    expect(await visit('/fails')).to.equal('cut')
    mock.timers.reset()
    expect(await visit('/')).to.equal('clean')
  })
})
