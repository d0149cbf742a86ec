import { getMaxListeners, once } from 'node:events'
import { cpSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { connect as dial } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { pathToFileURL } from 'node:url'
import { expect } from 'chai'
import type { Context, Middleware } from 'koa'
import { MemoryBroker, sse, type Broker, type BrokerEntry, type BrokerSink, type Hub, type HubEvent, type SseEvent, type SseOptions } from 'koa-sse'
import type { SubscribeOptions, Subscription } from 'koa-sse'
import { connect, type LiveClient } from './support/client.ts'
import { makeHub, serveStreams } from './support/hub.ts'
import { koa, serve, until } from './support/serve.ts'
import { reset } from './support/reset.ts'

const POSITION = 'stream-position'
const RESET = 'stream-reset'

interface Started {
  hub: Hub
  url: string
  /** Connects to these channels. */
  join: (channels: string[], lastEventId?: string) => Promise<LiveClient>
  /** The same, with the first event, which tells the position, read. */
  enter: (...channels: string[]) => Promise<LiveClient>
  errors: unknown[]
}

/** The channels that a query names. */
const named = (ctx: Context): string[] => [ctx.query['channel'] ?? []].flat()

const start = async (subscription: SubscribeOptions = {}, options: SseOptions = {}, hub = makeHub()): Promise<Started> => {
  const app = koa(sse(options), hub.subscriber(named, subscription))
  const { url } = await serve(app)
  const join = (channels: string[], lastEventId?: string): Promise<LiveClient> =>
    connect(`${url}/?${channels.map(channel => `channel=${encodeURIComponent(channel)}`).join('&')}`, {
      headers: lastEventId === undefined ? {} : { 'Last-Event-ID': Buffer.from(lastEventId).toString('latin1') },
    })
  const enter = async (...channels: string[]): Promise<LiveClient> => {
    const client = await join(channels)
    expect(await client.event()).to.include({ event: POSITION, data: '' })
    return client
  }
  return { hub, url, join, enter, errors: app.errors }
}

const rejection = async (promise: Promise<unknown>): Promise<unknown> => {
  try {
    await promise
  } catch (error) {
    return error
  }
  throw new Error('it did not reject')
}

/** A broker that does nothing by itself. */
class ManualBroker implements Broker {
  sink!: BrokerSink
  readonly published: [string | null, SseEvent][] = []
  readonly #starting: Promise<void>

  constructor(starting: Promise<void> = Promise.resolve()) {
    this.#starting = starting
  }

  async start(sink: BrokerSink): Promise<void> {
    this.sink = sink
    await this.#starting
    sink.position('m-0')
  }

  async publish(channel: string | null, event: SseEvent): Promise<string> {
    this.published.push([channel, event])
    const id = `m-${this.published.length}`
    this.sink.event({ id, channel, event })
    return id
  }

  async read(_after: string): Promise<BrokerEntry[] | undefined> {
    return undefined
  }

  async close(): Promise<void> {}
}

describe('hub.publish()', () => {
  it('reaches the subscribers of its channel and nobody else, and resolves with the id that they see', async () => {
    const { hub, enter } = await start()
    const [news, both, sport] = [await enter('news'), await enter('news', 'sport'), await enter('sport')]
    const first = await hub.publish('news', 'n')
    const second = await hub.publish('sport', { event: 'goal', data: { score: [1, 0] } })
    expect(await news.event()).to.deep.include({ id: first, data: 'n', event: undefined })
    expect(await both.event()).to.deep.include({ id: first, data: 'n' })
    expect(await both.event()).to.deep.include({ id: second, event: 'goal', data: '{"score":[1,0]}' })
    expect(await sport.event()).to.deep.include({ id: second, event: 'goal' })
    await hub.broadcast('last')
    expect((await news.event()).data).to.equal('last')
    expect((await sport.event()).data).to.equal('last')
    expect(first).to.match(/^[0-9A-Za-z._~-]{1,128}$/)
    expect(second).not.to.equal(first)
  })

  it('writes id, event, data and retry as an event has them, and nothing else', async () => {
    const { hub, enter } = await start()
    const client = await enter('a')
    const before = client.text.length
    const id = await hub.publish('a', { comment: 'c', event: 'e', data: 'one\r\ntwo', retry: 7 })
    await hub.publish('a', { id: 'own', data: Buffer.from('ü') })
    await client.take(2)
    expect(client.text.slice(before)).to.equal(`: c\nid: ${id}\nevent: e\ndata: one\ndata: two\nretry: 7\n\nid: own\ndata: ü\n\n`)
  })

  for (const newline of ['\n', '\r\n', '\r'] as const) {
    it(`writes its own events too with the newline of each stream: ${JSON.stringify(newline)}`, async () => {
      const { hub, join } = await start({}, { newline })
      // Another, with the usual one, has just been told the same.
      await (await start({}, {}, hub)).enter('a')
      const client = await join(['a'])
      const lost = await join(['a'], 'lost')
      const position = hub.position!
      const id = await hub.publish('a', 'x\ny')
      const event = ['', '', `id: ${id}`, 'data: x', 'data: y', '', ''].join(newline)
      const told = [':', '', `id: ${position}`, `event: ${POSITION}`, 'data: '].join(newline) + event
      await until(() => client.text === told)
      const reset = [':', '', `id: ${position}`, `event: ${RESET}`, 'data: {"reason":"unknown"}'].join(newline) + event
      await until(() => lost.text === reset)
    })
  }

  it('keeps the order of calls that nobody awaits, whatever their channels', async () => {
    const { hub, enter } = await start()
    const client = await enter('a', 'b')
    const data = Array.from({ length: 300 }, (_, i) => `${i}`)
    const ids = Promise.all(data.map(text => (Number(text) % 5 === 0 ? hub.broadcast(text) : hub.publish(Number(text) % 2 === 0 ? 'a' : 'b', text))))
    expect(await client.take(300)).to.deep.equal(data)
    expect(client.events.slice(1).map(({ id }) => id)).to.deep.equal(await ids)
  })

  it('takes an event as it is at the call', async () => {
    const { hub, enter } = await start()
    const client = await enter('a')
    const event = { data: { n: 1 }, event: 'before' }
    const published = hub.publish('a', event)
    event.data.n = 2
    event.event = 'after'
    await published
    expect(await client.event()).to.include({ data: '{"n":1}', event: 'before' })
  })

  it('keeps what nobody listens to for replay, and leaves nothing else behind', async () => {
    const { hub, join } = await start()
    const before = hub.position!
    for (let i = 0; i < 100; i++) await hub.publish(`nobody:${i}`, `${i}`)
    expect(hub.stats()).to.include({ channels: 0, subscribers: 0, published: 100, delivered: 0 })
    expect([...hub.channels()]).to.deep.equal([])
    expect(hub.has('nobody:7')).to.equal(false)
    const client = await join(['nobody:7', 'nobody:70'], before)
    expect(await client.take(2)).to.deep.equal(['7', '70'])
  })

  it('puts an event’s own id on the wire, resolves with it, and resumes who comes back with it', async () => {
    const { hub, enter, join } = await start()
    const client = await enter('a')
    expect(await hub.publish('a', { id: 'ünï-日', data: 'own' })).to.equal('ünï-日')
    expect(await client.event()).to.include({ id: 'ünï-日', data: 'own' })
    await hub.publish('b', 'not for it')
    await hub.publish('a', 'missed')
    const back = await join(['a'], 'ünï-日')
    expect(await back.take(1)).to.deep.equal(['missed'])
  })

  it('is called from a filter: for everybody its event comes after the one that is being delivered', async () => {
    const hub = makeHub()
    let replied = false
    const filter = ({ data }: HubEvent): boolean => {
      if (data === 'question' && !replied) {
        replied = true
        void hub.publish('a', 'answer')
      }
      return true
    }
    const { enter } = await start({ filter }, {}, hub)
    const clients = [await enter('a'), await enter('a'), await enter('a')]
    for (const data of ['question', 'more', 'last']) await hub.publish('a', data)
    for (const client of clients) expect(await client.take(4)).to.deep.equal(['question', 'answer', 'more', 'last'])
  })

  it('is called by a listener of unsubscribe that a filter set off: order is kept all the same', async () => {
    const hub = makeHub()
    const { url, streams } = await serveStreams()
    const clients: LiveClient[] = []
    for (let i = 0; i < 4; i++) clients.push(await connect(url))
    await until(() => streams.length === 4)
    hub.on('unsubscribe', () => void hub.publish('room', 'somebody left'))
    for (const [i, stream] of streams.entries()) {
      const filter = ({ data }: HubEvent): boolean => {
        if (data === 'kick' && i === 1) streams[0]!.close()
        return true
      }
      await hub.subscribe(stream, 'room', { filter })
    }
    await hub.publish('room', 'kick')
    for (const client of clients.slice(1)) {
      await client.event()
      expect(await client.take(2)).to.deep.equal(['kick', 'somebody left'])
    }
  })
})

describe('hub.broadcast()', () => {
  it('reaches every subscriber, whatever its channels, and those without any', async () => {
    const { hub, enter } = await start()
    const clients = [await enter('a'), await enter('b', 'c'), await enter()]
    await hub.publish('a', 'for a alone')
    const id = await hub.broadcast({ event: 'notice', data: 'all' })
    expect(await clients[0]!.take(1)).to.deep.equal(['for a alone'])
    for (const client of clients) expect(await client.event()).to.include({ id, event: 'notice', data: 'all' })
  })

  it('is replayed like any event', async () => {
    const { hub, join } = await start()
    const before = hub.position!
    await hub.broadcast('one')
    await hub.publish('a', 'two')
    expect(await (await join([], before)).take(1)).to.deep.equal(['one'])
    expect(await (await join(['a'], before)).take(2)).to.deep.equal(['one', 'two'])
  })
})

describe('hub.pipe()', () => {
  it('publishes item after item, each once the one before has arrived', async () => {
    const log: string[] = []
    const broker = new ManualBroker()
    const publish = broker.publish.bind(broker)
    broker.publish = async (channel, event) => {
      log.push(`publish ${event.data as string}`)
      await new Promise(resolve => setImmediate(resolve))
      log.push(`published ${event.data as string}`)
      return publish(channel, event)
    }
    const hub = makeHub({ broker })
    await hub.pipe(
      'a',
      (function* () {
        for (const item of ['1', '2', '3']) {
          log.push(`yield ${item}`)
          yield item
        }
      })(),
    )
    expect(log).to.deep.equal(['1', '2', '3'].flatMap(n => [`yield ${n}`, `publish ${n}`, `published ${n}`]))
  })

  it('needs no client; one that comes later sees it all from the earliest', async () => {
    const { hub, join } = await start({ from: 'earliest' })
    await hub.pipe('a', ['1', { event: 'x', data: '2' }, Buffer.from('3')])
    const client = await join(['a'])
    expect(await client.event()).to.include({ event: POSITION, data: '' })
    expect(await client.take(3)).to.deep.equal(['1', '2', '3'])
  })

  it('runs on while its readers come and go', async () => {
    const { hub, enter, join } = await start({ from: 'earliest' })
    const tokens: (() => void)[] = []
    const source = async function* (): AsyncGenerator<string> {
      for (let i = 0; i < 6; i++) {
        await new Promise<void>(resolve => tokens.push(resolve))
        yield `token ${i}`
      }
    }
    const next = async (): Promise<void> => {
      await until(() => tokens.length > 0)
      tokens.shift()!()
    }
    const piped = hub.pipe('answer:42', source())
    await next()
    const first = await enter('answer:42')
    await next()
    expect(await first.take(2)).to.deep.equal(['token 0', 'token 1'])
    const { id } = first.events.at(-1)!
    first.rst()
    await until(() => !hub.has('answer:42'))
    await next()
    await next()
    const second = await join(['answer:42'], id)
    expect(await second.take(2)).to.deep.equal(['token 2', 'token 3'])
    await next()
    await next()
    await piped
    expect(await second.take(2)).to.deep.equal(['token 4', 'token 5'])
    const third = await enter('answer:42')
    expect(await third.take(6)).to.deep.equal([0, 1, 2, 3, 4, 5].map(i => `token ${i}`))
  })

  it('makes events of items with map, and takes functions, Readables and ReadableStreams', async () => {
    const { hub, enter } = await start()
    const client = await enter('a')
    await hub.pipe('a', [1, 2], { map: n => ({ event: 'n', data: { n } }) })
    await hub.pipe('a', () => Readable.from(['r']))
    await hub.pipe('a', new Response('web').body!)
    expect(await client.take(4)).to.deep.equal(['{"n":1}', '{"n":2}', 'r', 'web'])
  })

  it('stops at its signal, releases the source even while that owes an item, and resolves', async () => {
    const { hub } = await start()
    const controller = new AbortController()
    let released = 0
    const source = {
      [Symbol.asyncIterator]: () => ({
        next: () => new Promise<IteratorResult<string>>(() => {}),
        return: async () => {
          released++
          return { done: true as const, value: undefined }
        },
      }),
    }
    const piped = hub.pipe('a', source, { signal: controller.signal })
    let given: AbortSignal | undefined
    const other = hub.pipe(
      'a',
      signal => {
        given = signal
        return source
      },
      { signal: controller.signal },
    )
    await until(() => given !== undefined)
    controller.abort()
    await Promise.all([piped, other])
    expect(released).to.equal(2)
    expect(given!.aborted).to.equal(true)
    await hub.pipe('a', source, { signal: controller.signal })
    expect(released, 'a source that comes too late').to.equal(3)
    expect(hub.stats().published).to.equal(0)
  })

  it('leaves its signal one that fetch takes: undici asks for its limit of listeners, which Node 20 does not know of one that has 0', async () => {
    const { hub } = await start()
    const { signal } = new AbortController()
    await hub.pipe('a', ['one'], { signal })
    expect(getMaxListeners(signal)).to.equal(Infinity)
  })

  it('rejects with a source’s failure and emits it; nobody has to look', async () => {
    const { hub, enter } = await start()
    const client = await enter('a')
    const unhandled: unknown[] = []
    const note = (error: unknown): void => void unhandled.push(error)
    process.on('unhandledRejection', note)
    try {
      const errors: unknown[] = []
      hub.on('error', error => errors.push(error))
      const failing = function* (message: string): Generator<string> {
        yield message
        throw new Error(message)
      }
      void hub.pipe('a', failing('first'))
      expect(await rejection(hub.pipe('a', failing('second')))).to.have.property('message', 'second')
      expect(await rejection(hub.pipe('a', [5 as never as string]))).to.be.instanceOf(TypeError)
      const mapped = hub.pipe('a', ['x'], {
        map: () => {
          throw new Error('map')
        },
      })
      expect(await rejection(mapped)).to.be.instanceOf(TypeError)
      await until(() => errors.length === 4)
      hub.removeAllListeners('error')
      void hub.pipe('a', failing('third'))
      expect(await client.take(3)).to.have.members(['first', 'second', 'third'])
      await new Promise(resolve => setTimeout(resolve, 5))
      expect(unhandled).to.deep.equal([])
    } finally {
      process.off('unhandledRejection', note)
    }
  })

  it('fails when the broker does', async () => {
    const broker = new ManualBroker()
    broker.publish = () => Promise.reject(new Error('full'))
    const hub = makeHub({ broker })
    let released = false
    const source = function* (): Generator<string> {
      try {
        yield '1'
        yield '2'
      } finally {
        released = true
      }
    }
    expect(await rejection(hub.pipe('a', source()))).to.have.property('message', 'full')
    expect(released).to.equal(true)
  })
})

describe('hub.subscribe()', () => {
  it('opens a stream and resolves with its subscription', async () => {
    const hub = makeHub()
    let subscription: Subscription | undefined
    const { url } = await serve(
      koa(sse(), async ctx => {
        subscription = await hub.subscribe(ctx.sse, new Set(['a', 'b']))
        expect(subscription.stream).to.equal(ctx.sse)
      }),
    )
    const client = await connect(url)
    expect(await client.event()).to.include({ event: POSITION, id: hub.position })
    expect([...subscription!.channels]).to.deep.equal(['a', 'b'])
    expect(client.headers['content-type']).to.equal('text/event-stream')
  })

  it('lets a subscription go while its stream stays open, and takes another', async () => {
    const hub = makeHub()
    const { url, streams } = await serveStreams()
    const client = await connect(url)
    const [stream] = streams
    const subscription = await hub.subscribe(stream!, 'a')
    await client.event()
    await hub.publish('a', '1')
    subscription.close()
    subscription.close()
    expect(hub.count()).to.equal(0)
    expect(hub.has('a')).to.equal(false)
    await hub.publish('a', '2')
    await stream!.send('by hand')
    expect(await client.take(2)).to.deep.equal(['1', 'by hand'])
    await hub.subscribe(stream!, 'b')
    expect(await client.event()).to.include({ event: POSITION, id: hub.position })
    await hub.publish('b', '3')
    expect(await client.take(1)).to.deep.equal(['3'])
    expect(stream!.connected).to.equal(true)
  })

  it('refuses a second subscription of one stream at the call: two places in the log would be told by turns', async () => {
    const hub = makeHub()
    const { url, streams } = await serveStreams()
    const client = await connect(url)
    const [stream] = streams
    const first = await hub.subscribe(stream!, 'a')
    expect(() => hub.subscribe(stream!, 'b')).to.throw(TypeError)
    expect((await client.event()).event).to.equal(POSITION)
    expect([hub.count(), [...hub.channels()]]).to.deep.equal([1, ['a']])
    await hub.publish('b', 'not for it')
    await hub.publish('a', '1')
    expect(await client.take(1)).to.deep.equal(['1'])
    first.close()
    await hub.subscribe(stream!, ['a', 'b'])
    expect((await client.event()).event).to.equal(POSITION)
    await hub.publish('b', '2')
    expect(await client.take(1)).to.deep.equal(['2'])
    client.fin()
    await until(() => hub.count() === 0)
    expect([...hub.channels()]).to.deep.equal([])
  })

  it('lets two hubs share a stream', async () => {
    const [one, other] = [makeHub(), makeHub()]
    const { url, streams } = await serveStreams()
    const client = await connect(url)
    await one.subscribe(streams[0]!, 'a')
    await other.subscribe(streams[0]!, 'a')
    await client.event()
    await client.event()
    await one.publish('a', '1')
    await other.publish('a', '2')
    await one.publish('a', '3')
    expect(await client.take(3)).to.deep.equal(['1', '2', '3'])
    client.rst()
    await until(() => one.count() === 0 && other.count() === 0)
  })

  it('sends what was missed on several channels in one order, so that a client cut in between misses nothing', async () => {
    const hub = makeHub()
    const app = koa(sse({ highWaterMark: 1_024 }), async ctx => {
      await hub.subscribe(ctx.sse, ['a', 'b'])
    })
    const { url } = await serve(app)
    const before = hub.position!
    const expected: string[] = []
    for (let i = 0; i < 40; i++) {
      expected.push(`${i}`)
      await hub.publish(i % 2 === 0 ? 'a' : 'b', { event: `${i}`, data: 'x'.repeat(200) })
    }
    // Cut after the nth event, and back with the last id that was seen.
    for (const cut of [1, 5, 20, 21, 35]) {
      const first = await connect(url, { headers: { 'Last-Event-ID': before } })
      const seen: (string | undefined)[] = []
      let id: string | undefined
      while (seen.length < cut) {
        const event = await first.event()
        seen.push(event.event)
        id = event.id
      }
      first.destroy()
      const second = await connect(url, { headers: { 'Last-Event-ID': id! } })
      const last = await hub.broadcast({ event: 'end', data: '' })
      for (;;) {
        const event = await second.event()
        if (event.id === last) break
        if (event.event !== 'end') seen.push(event.event)
      }
      second.destroy()
      expect(seen, `cut after ${cut}`).to.deep.equal(expected)
    }
  })

  it('rejects with ERR_SSE_NOT_OPEN for a stream that has ended, and leaves nothing behind', async () => {
    const hub = makeHub()
    const { url, streams } = await serveStreams()
    const client = await connect(url)
    streams[0]!.close()
    await client.ended
    expect(await rejection(hub.subscribe(streams[0]!, 'a'))).to.have.property('code', 'ERR_SSE_NOT_OPEN')
    expect(hub.count()).to.equal(0)
    expect(hub.has('a')).to.equal(false)
  })

  it('leaves nothing behind when the client has left before', async () => {
    const hub = makeHub()
    let result: unknown
    const app = koa(sse(), async ctx => {
      await new Promise(resolve => ctx.res.on('close', resolve))
      result = await hub.subscribe(ctx.sse, 'a').catch((error: unknown) => error)
    })
    const { port, sockets } = await serve(app)
    const socket = dial(port, '127.0.0.1')
    socket.write('GET / HTTP/1.1\r\nHost: x\r\n\r\n')
    await until(() => sockets.size === 1)
    reset(socket)
    await until(() => result !== undefined)
    expect(result).to.have.property('code', 'ERR_SSE_NOT_OPEN')
    expect(hub.count()).to.equal(0)
    expect(app.errors).to.deep.equal([])
  })

  it('subscribes nobody for a HEAD', async () => {
    const { hub, url, errors } = await start()
    const client = await connect(`${url}/?channel=a`, { method: 'HEAD' })
    await client.ended
    expect(client.status).to.equal(200)
    expect(client.text).to.equal('')
    expect(hub.count()).to.equal(0)
    expect(errors).to.deep.equal([])
  })
})

describe('hub.subscriber()', () => {
  const answer = async (handler: Middleware, ...before: Middleware[]): Promise<{ status: number; client: LiveClient; errors: unknown[] }> => {
    const app = koa(...before, handler)
    const { url } = await serve(app)
    const client = await connect(url)
    return { status: client.status, client, errors: app.errors }
  }

  for (const [how, channels] of [
    ['a string', 'a'],
    ['an array', ['a', 'b']],
    ['a set', new Set(['a'])],
    ['a function', () => 'a'],
    ['a function that returns an array', () => ['b', 'a']],
    ['an async function', async () => new Set(['a'])],
  ] as const) {
    it(`takes ${how}`, async () => {
      const hub = makeHub()
      const { client } = await answer(hub.subscriber(channels as string), sse())
      await client.event()
      expect(hub.has('a')).to.equal(true)
      const id = await hub.publish('a', 'x')
      expect(await client.event()).to.include({ id, data: 'x' })
    })
  }

  it('hands its function the ctx', async () => {
    const hub = makeHub()
    const auth: Middleware = (ctx, next) => {
      ctx.state['user'] = { id: 7 }
      return next()
    }
    const { client } = await answer(
      hub.subscriber((ctx: Context) => [`user:${(ctx.state as { user: { id: number } }).user.id}`]),
      auth,
      sse(),
    )
    await client.event()
    expect([...hub.channels()]).to.deep.equal(['user:7'])
  })

  it('lets its function refuse: the response is an ordinary one still', async () => {
    const hub = makeHub()
    const refuse = (ctx: Context): string => ctx.throw(403, 'no')
    const { status, client } = await answer(hub.subscriber(refuse), sse())
    expect(status).to.equal(403)
    expect(await client.ended).to.equal('clean')
    expect(client.text).to.equal('no')
    const late = async (): Promise<string> => {
      await new Promise(resolve => setImmediate(resolve))
      throw new Error('secret')
    }
    const failed = await answer(hub.subscriber(late), sse())
    expect(failed.status).to.equal(500)
    expect(failed.errors).to.have.lengthOf(1)
    await failed.client.ended
    expect(failed.client.text).not.to.include('secret')
    expect(hub.count()).to.equal(0)
  })

  const wrong: [string, unknown][] = [
    ['an empty name', ''],
    ['a name with a line feed', 'a\nb'],
    ['a name with a NUL', ['ok', 'a\0']],
    ['a name with a C1 control character', 'a\u0085b'],
    ['a name of 256 bytes', 'ü'.repeat(128)],
    ['a number', [5]],
    ['nothing', undefined],
    ['an object', { channel: 'a' }],
    ['101 names', Array.from({ length: 101 }, (_, i) => `c${i}`)],
  ]
  for (const [what, channels] of wrong) {
    it(`answers 400 when its function returns ${what}`, async () => {
      const hub = makeHub()
      const { status, client, errors } = await answer(
        hub.subscriber(() => channels as string),
        sse(),
      )
      expect(status).to.equal(400)
      expect(client.headers['content-type']).not.to.include('event-stream')
      expect(errors.filter(error => (error as { expose?: boolean }).expose !== true)).to.deep.equal([])
      // For whoever looks: a function that has forgotten its `return` ends here, too.
      expect(errors.map(error => String((error as Error).cause))).to.match(/^(Type|Range)Error: Expected `channels?` to be /)
      expect(hub.count()).to.equal(0)
    })
  }

  it('takes 100 names, and one of 255 bytes; a name twice is one name', async () => {
    const hub = makeHub()
    const names = Array.from({ length: 99 }, (_, i) => `c${i}`)
    const { status } = await answer(
      hub.subscriber(() => [...names, 'x'.repeat(255), 'c1', 'c2']),
      sse(),
    )
    expect(status).to.equal(200)
    expect([...hub.channels()]).to.have.lengthOf(100)
    expect(hub.count()).to.equal(1)
  })

  it('says in a TypeError that sse() is missing', async () => {
    const hub = makeHub()
    const { status, errors } = await answer(hub.subscriber('a') as Middleware)
    expect(status).to.equal(500)
    expect(errors[0]).to.be.instanceOf(TypeError)
    expect((errors[0] as Error).message).to.include('sse()')
  })

  it('says that sse() is of another copy of the package', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'koa-sse-'))
    try {
      cpSync('src', folder, { recursive: true })
      writeFileSync(join(folder, 'package.json'), '{"type":"module"}')
      const other = (await import(pathToFileURL(join(folder, 'index.ts')).href)) as { sse: typeof sse }
      const hub = makeHub()
      for (const handler of [hub.subscriber('a') as Middleware, async (ctx: Context) => void (await hub.subscribe(ctx.sse, 'a'))]) {
        const { status, errors } = await answer(handler, other.sse())
        expect(status).to.equal(500)
        expect((errors[0] as Error).message).to.include('copy of koa-sse')
      }
    } finally {
      rmSync(folder, { recursive: true })
    }
  })
})

describe('hub.has(), count(), channels(), disconnect(), position and stats()', () => {
  it('tell who is subscribed here, at once when a client leaves', async () => {
    const { hub, enter } = await start()
    expect([hub.has('a'), hub.count(), hub.count('a'), [...hub.channels()]]).to.deep.equal([false, 0, 0, []])
    const one = await enter('a', 'b')
    const two = await enter('b')
    await enter()
    expect([hub.has('a'), hub.has('c'), hub.count(), hub.count('a'), hub.count('b'), hub.count('c')]).to.deep.equal([true, false, 3, 1, 2, 0])
    expect([...hub.channels()].toSorted()).to.deep.equal(['a', 'b'])
    one.fin()
    await until(() => hub.count() === 2)
    expect([hub.has('a'), hub.count('b'), [...hub.channels()]]).to.deep.equal([false, 1, ['b']])
    two.rst()
    await until(() => !hub.has('b'))
    expect([...hub.channels()]).to.deep.equal([])
    expect(hub.count()).to.equal(1)
  })

  it('know nothing of channels that are named like members of objects', async () => {
    const { hub, enter } = await start()
    for (const name of ['__proto__', 'constructor', 'toString', 'hasOwnProperty']) {
      expect(hub.has(name)).to.equal(false)
      expect(hub.count(name)).to.equal(0)
    }
    const client = await enter('__proto__', 'constructor')
    await hub.publish('__proto__', 'x')
    await hub.publish('toString', 'y')
    await hub.publish('constructor', 'z')
    expect(await client.take(2)).to.deep.equal(['x', 'z'])
  })

  it('disconnect() ends the streams of the subscriptions that match, cleanly, and says how many', async () => {
    const { hub, enter } = await start()
    const [a, b, both] = [await enter('a'), await enter('b'), await enter('a', 'b')]
    expect(hub.disconnect(() => false)).to.equal(0)
    expect(hub.disconnect(({ channels, stream }) => channels.has('a') && stream.connected)).to.equal(2)
    expect(await a.ended).to.equal('clean')
    expect(await both.ended).to.equal('clean')
    expect(hub.count()).to.equal(1)
    await hub.publish('b', 'still here')
    expect(await b.take(1)).to.deep.equal(['still here'])
  })

  it('position is the newest id: a page that connects with it, in the query, misses nothing', async () => {
    const { hub, url } = await start()
    const first = hub.position
    expect(first).to.be.a('string')
    const id = await hub.publish('a', 'in the page')
    expect(hub.position).to.equal(id)
    const position = hub.position!
    await hub.publish('a', 'after the page was made')
    await hub.publish('b', 'not for it')
    for (const name of ['lastEventId', 'last_event_id']) {
      const client = await connect(`${url}/?channel=a&${name}=${encodeURIComponent(position)}`)
      expect(await client.take(1), name).to.deep.equal(['after the page was made'])
    }
  })

  it('stats() counts', async () => {
    const { hub, enter, join } = await start()
    expect(hub.stats()).to.deep.include({ subscribers: 0, channels: 0, published: 0, delivered: 0, resets: {} })
    expect(hub.stats().window).to.deep.equal({ events: 0, bytes: hub.stats().window.bytes, ms: 0 })
    const [one, two] = [await enter('a'), await enter('a', 'b')]
    await hub.publish('a', 'x'.repeat(5_000))
    await hub.publish('b', 'y')
    await hub.publish('nobody', 'z')
    await one.take(1)
    await two.take(2)
    await (await join(['a'], 'forged')).event()
    await (await join(['a'], 'forged too')).event()
    const stats = hub.stats()
    expect(stats).to.deep.include({ subscribers: 4, channels: 2, published: 3, delivered: 3 })
    expect(Object.values(stats.resets).reduce((a, b) => a + b)).to.equal(2)
    expect(stats.window.events).to.equal(3)
    expect(stats.window.bytes).to.be.within(5_000, 7_000)
    expect(stats.window.ms).to.be.within(0, 5_000)
    expect(stats.broker.up).to.equal(true)
  })
})

describe('the hub’s events', () => {
  it('tell of every subscription when it begins and when it ends, once', async () => {
    const { hub, enter } = await start()
    const log: [string, Subscription][] = []
    hub.on('subscribe', subscription => log.push(['+', subscription]))
    hub.on('unsubscribe', subscription => log.push(['-', subscription]))
    const client = await enter('a')
    expect(log).to.have.lengthOf(1)
    expect([...log[0]![1].channels]).to.deep.equal(['a'])
    const left = once(hub, 'unsubscribe')
    client.rst()
    await left
    await enter('b')
    hub.disconnect(() => true)
    expect(log.map(([sign]) => sign)).to.deep.equal(['+', '-', '+', '-'])
    expect(log[1]![1]).to.equal(log[0]![1])
    expect(log[3]![1]).to.equal(log[2]![1])
  })

  it('find the subscription in the counts at its beginning, and no more at its end', async () => {
    const { hub, enter } = await start()
    const counts: number[] = []
    hub.on('subscribe', () => counts.push(hub.count('a')))
    hub.on('unsubscribe', () => counts.push(hub.count('a')))
    await enter('a')
    hub.disconnect(() => true)
    expect(counts).to.deep.equal([1, 0])
  })

  it('may be answered with an event: who has just subscribed gets it, after its position', async () => {
    const { hub, join } = await start()
    const before = await hub.publish('a', 'before')
    hub.on('subscribe', () => void hub.publish('a', 'welcome'))
    const client = await join(['a'])
    expect(await client.event()).to.include({ event: POSITION, id: before })
    expect(await client.take(1)).to.deep.equal(['welcome'])
  })

  it('have listeners that fail: the hub says so, and the others get their events', async () => {
    const { hub, enter, errors } = await start()
    const told: unknown[] = []
    hub.on('error', error => told.push(error))
    for (const name of ['subscribe', 'unsubscribe'] as const) {
      hub.on(name, () => {
        throw new Error(name)
      })
    }
    await enter('a')
    const client = await enter('b')
    expect(hub.disconnect(({ channels }) => channels.has('a'))).to.equal(1)
    await hub.publish('b', '1')
    expect(await client.take(1)).to.deep.equal(['1'])
    expect([told.map(String), errors]).to.deep.equal([['Error: subscribe', 'Error: subscribe', 'Error: unsubscribe'], []])
  })

  it('emit an error only if somebody listens', async () => {
    const broker = new ManualBroker()
    const hub = makeHub({ broker })
    await until(() => hub.position !== undefined)
    broker.sink.error(new Error('nobody listens'))
    const told = once(hub, 'error')
    broker.sink.error(new Error('the broker'))
    expect(await told).to.have.nested.property('[0].message', 'the broker')
  })
})

describe('a hub whose broker is not ready', () => {
  it('lets subscribers connect and wait, with heartbeats, and publishes wait in their order', async () => {
    let begin!: () => void
    const broker = new ManualBroker(new Promise(resolve => (begin = resolve)))
    const hub = makeHub({ broker })
    const { join } = await start({}, { heartbeat: 20 }, hub)
    const fresh = await join(['a'])
    const back = await join(['a'], 'm-0')
    expect(await fresh.next()).to.have.property('comment')
    expect(await fresh.next()).to.deep.equal({ comment: 'ping' })
    expect(hub.position).to.equal(undefined)
    expect(hub.count('a')).to.equal(2)
    const ids = Promise.all([hub.publish('a', '1'), hub.broadcast('2'), hub.publish('a', '3')])
    await new Promise(resolve => setImmediate(resolve))
    expect(broker.published).to.deep.equal([])
    begin()
    expect(await ids).to.deep.equal(['m-1', 'm-2', 'm-3'])
    expect(await fresh.event()).to.include({ event: POSITION, id: 'm-0' })
    expect(await fresh.take(3)).to.deep.equal(['1', '2', '3'])
    expect(await back.take(3)).to.deep.equal(['1', '2', '3'])
  })

  it('rejects publishes with ERR_SSE_BROKER_UNAVAILABLE when the broker does not start at all, and emits why', async () => {
    const broker = new ManualBroker(Promise.reject(new Error('no')))
    const hub = makeHub({ broker })
    const told = once(hub, 'error')
    const published = hub.publish('a', '1')
    expect(await told).to.have.nested.property('[0].message', 'no')
    expect(await rejection(published)).to.have.property('code', 'ERR_SSE_BROKER_UNAVAILABLE')
  })

  it('resets every client when the broker has lost continuity, with the reason and the new position', async () => {
    const broker = new ManualBroker()
    const hub = makeHub({ broker })
    const { enter, join } = await start({}, {}, hub)
    const client = await enter('a')
    await hub.publish('a', 'before')
    await client.take(1)
    broker.sink.gap('lost', 'g-7')
    expect(await client.event()).to.deep.include({ event: RESET, data: '{"reason":"lost"}', id: 'g-7' })
    expect(hub.position).to.equal('g-7')
    broker.sink.event({ id: 'g-8', channel: 'a', event: { data: 'after' } })
    expect(await client.event()).to.include({ id: 'g-8', data: 'after' })
    expect((await (await join(['a'], 'm-1')).event()).event, 'an id of before the gap').to.equal(RESET)
    expect(await (await join(['a'], 'g-7')).take(1)).to.deep.equal(['after'])
  })

  it('resets a client that is full when continuity is lost before it gets anything of after', async () => {
    const broker = new ManualBroker()
    const hub = makeHub({ broker })
    const { url, streams } = await serveStreams({ maxBuffer: 64_000_000 })
    const client = await connect(url)
    await hub.subscribe(streams[0]!, 'a')
    await client.event()
    client.pause()
    const big = 'x'.repeat(32_000_000)
    void streams[0]!.send(big)
    broker.sink.gap('lost', 'g-7')
    broker.sink.event({ id: 'g-8', channel: 'a', event: { data: 'after' } })
    client.resume()
    expect((await client.event()).data.length).to.equal(big.length)
    const reset = await client.event()
    expect(reset).to.include({ event: RESET })
    if (reset.id === 'g-7') expect(await client.take(1)).to.deep.equal(['after'])
    else expect(reset.id).to.equal('g-8')
  })

  it('resets such a client as soon as there is room, without waiting for an event', async () => {
    const broker = new ManualBroker()
    const hub = makeHub({ broker })
    const { url, streams } = await serveStreams({ maxBuffer: 64_000_000 })
    const client = await connect(url)
    await hub.subscribe(streams[0]!, 'a')
    await client.event()
    client.pause()
    void streams[0]!.send('x'.repeat(32_000_000))
    broker.sink.gap('lost', 'g-7')
    client.resume()
    await client.event()
    expect(await client.event()).to.include({ event: RESET, id: 'g-7' })
  })
})

describe('the first connect', () => {
  it('is told the position at once, in a named event with empty data', async () => {
    const { hub, join } = await start()
    await hub.publish('a', 'of before')
    const client = await join(['a'])
    await client.event()
    expect(client.text).to.equal(`:\n\nid: ${hub.position!}\nevent: stream-position\ndata: \n\n`)
    await hub.publish('a', 'live')
    expect(await client.take(1)).to.deep.equal(['live'])
  })

  it('resumes from it when it is cut before its first event', async () => {
    const { hub, enter, join } = await start()
    const client = await enter('a')
    const { id } = client.events[0]!
    client.rst()
    await until(() => hub.count() === 0)
    await hub.publish('a', 'missed')
    expect(await (await join(['a'], id)).take(1)).to.deep.equal(['missed'])
  })

  it('gets what the window holds with from: earliest, and resumes in the middle of that', async () => {
    const { hub, enter, join } = await start({ from: 'earliest' })
    for (let i = 0; i < 10; i++) await hub.publish(i % 2 === 0 ? 'a' : 'b', `${i}`)
    const client = await enter('a')
    expect(await client.take(5)).to.deep.equal(['0', '2', '4', '6', '8'])
    const [position, , second] = client.events
    expect(await (await join(['a'], position!.id)).take(5), 'cut before the first').to.deep.equal(['0', '2', '4', '6', '8'])
    expect(await (await join(['a'], second!.id)).take(3)).to.deep.equal(['4', '6', '8'])
    await hub.publish('a', 'live')
    expect(await client.take(1)).to.deep.equal(['live'])
  })

  it('gets nothing with from: earliest that is older than the window', async () => {
    const hub = makeHub({ history: { ms: 40 } })
    const { enter } = await start({ from: 'earliest' }, {}, hub)
    await hub.publish('a', 'too old')
    await new Promise(resolve => setTimeout(resolve, 60))
    const client = await enter('a')
    await hub.publish('a', 'live')
    expect(await client.take(1)).to.deep.equal(['live'])
  })
})

describe('the heartbeat', () => {
  it('tells the newer position when the log has moved on while the channels were quiet, and is a comment otherwise', async () => {
    const { hub, enter, join } = await start({}, { heartbeat: 30 })
    const client = await enter('a')
    expect(await client.next()).to.deep.equal({ comment: 'ping' })
    const id = await hub.publish('b', 'not for it')
    expect(await client.next()).to.deep.include({ event: POSITION, id, data: '' })
    expect(await client.next()).to.deep.equal({ comment: 'ping' })
    await hub.publish('a', 'for it')
    expect(await client.next()).to.include({ data: 'for it' })
    expect(await client.next()).to.deep.equal({ comment: 'ping' })
    const back = await join(['a'], hub.position)
    expect(await back.next()).to.have.property('comment')
    expect(await back.next()).to.deep.equal({ comment: 'ping' })
  })

  it('is a comment again when the subscription has been closed', async () => {
    const hub = makeHub()
    const { url, streams } = await serveStreams({ heartbeat: 30 })
    const client = await connect(url)
    const subscription = await hub.subscribe(streams[0]!, 'a')
    expect(await client.event()).to.include({ event: POSITION })
    subscription.close()
    await hub.publish('a', 'not for it any more')
    for (let i = 0; i < 2; i++) expect(await client.next()).to.deep.equal({ comment: 'ping' })
  })

  it('does so too after events that the filter dropped, and after a position that the broker told', async () => {
    const broker = new ManualBroker()
    const hub = makeHub({ broker })
    const { enter } = await start({ filter: () => false }, { heartbeat: 30 }, hub)
    const client = await enter('a')
    await hub.publish('a', 'dropped')
    expect(await client.event()).to.include({ event: POSITION, id: 'm-1' })
    broker.sink.position('m-9')
    expect(await client.event()).to.include({ event: POSITION, id: 'm-9' })
    expect(hub.position).to.equal('m-9')
  })

  it('is an id alone, as the position before it was, where that is no event', async () => {
    const hub = makeHub({ broker: new ManualBroker(), positionEvent: false })
    const { join } = await start({}, { heartbeat: 30, heartbeatText: 'quiet' }, hub)
    // One of another hub has just been told the usual one, at the same id.
    await (await start({}, {}, makeHub({ broker: new ManualBroker() }))).enter('a')
    const before = hub.position
    const client = await join(['a'])
    await until(() => client.text.endsWith(': quiet\n\n'))
    const id = await hub.publish('b', 'not for it')
    await until(() => client.text.includes(id))
    expect(client.text.replaceAll(': quiet\n\n', '')).to.equal(`:\n\nid: ${before}\n\nid: ${id}\n\n`)
    expect(client.events).to.deep.equal([])
    await hub.publish('a', 'for it')
    expect(await client.take(1)).to.deep.equal(['for it'])
    expect(await (await join(['a'], 'forged')).event()).to.include({ event: RESET })
  })

  it('keeps a quiet client resumable although the window has long left its last event behind', async () => {
    const hub = makeHub({ history: { events: 3 } })
    const { enter, join } = await start({}, { heartbeat: 30 }, hub)
    const client = await enter('a')
    for (let i = 0; i < 10; i++) await hub.publish('b', `${i}`)
    const { id } = await client.event()
    client.rst()
    await until(() => hub.count() === 0)
    await hub.publish('a', 'missed')
    expect(await (await join(['a'], id)).take(1)).to.deep.equal(['missed'])
  })
})

describe('a client that waits for what the broker has', () => {
  it('gets no newer position meanwhile: cut then, it would miss what it waits for', async () => {
    const broker = new ManualBroker()
    let answer!: (page: BrokerEntry[]) => void
    const asked: string[] = []
    broker.read = async (after: string) => {
      asked.push(after)
      return new Promise<BrokerEntry[]>(resolve => (answer = resolve))
    }
    const hub = makeHub({ broker, history: { events: 2 } })
    const { join } = await start({}, { heartbeat: 15 }, hub)
    for (let i = 1; i <= 5; i++) await hub.publish('a', `${i}`)
    const client = await join(['a'], 'm-1')
    await until(() => asked.length === 1)
    await hub.publish('b', '6')
    await hub.publish('a', '7')
    expect(await client.next()).to.have.property('comment')
    for (let i = 0; i < 3; i++) expect(await client.next()).to.deep.equal({ comment: 'ping' })
    const entries = broker.published.map(([channel, event], i) => ({ id: `m-${i + 1}`, channel, event }))
    answer(entries.slice(1))
    expect(await client.take(5)).to.deep.equal(['2', '3', '4', '5', '7'])
    await hub.publish('a', '8')
    expect(await client.take(1)).to.deep.equal(['8'])
    expect(asked).to.deep.equal(['m-1'])
  })

  it('gets what comes while it is found out that nothing came before', async () => {
    const broker = new ManualBroker()
    const asked: string[] = []
    let answer!: (page: BrokerEntry[]) => void
    broker.read = async (after: string) => {
      asked.push(after)
      return new Promise<BrokerEntry[]>(resolve => (answer = resolve))
    }
    // Two places without an event, or one with.
    const hub = makeHub({ broker, history: { bytes: 500 } })
    const { join } = await start({}, {}, hub)
    await until(() => hub.position === 'm-0')
    for (const id of ['p-1', 'p-2', 'p-3', 'p-4']) broker.sink.position(id)
    const client = await join(['a'], 'p-1')
    await until(() => asked.length === 1)
    await hub.publish('a', '1')
    answer([])
    expect(await client.event()).to.include({ data: '1' })
    await hub.publish('a', '2')
    expect(await client.take(1)).to.deep.equal(['2'])
    expect(asked).to.deep.equal(['p-1'])
  })

  for (const what of ['a place without an event', 'an event'] as const) {
    it(`is not reset where no window holds what comes meanwhile: ${what}`, async () => {
      const broker = new ManualBroker()
      let answer!: (page: BrokerEntry[]) => void
      const first = new Promise<BrokerEntry[]>(resolve => (answer = resolve))
      let reads = 0
      broker.read = async () => (reads++ === 0 ? first : broker.published.map(([channel, event], i) => ({ id: `m-${i + 1}`, channel, event })))
      const hub = makeHub({ broker, history: false })
      const { join } = await start({}, {}, hub)
      await until(() => hub.position === 'm-0')
      for (const id of ['p-1', 'p-2']) broker.sink.position(id)
      const client = await join(['a'], 'p-1')
      await until(() => reads === 1)
      if (what === 'an event') await hub.publish('a', '1')
      else broker.sink.position('p-3')
      answer([])
      if (what === 'an event') expect(await client.take(1)).to.deep.equal(['1'])
      else await new Promise(setImmediate)
      await hub.publish('a', '2')
      expect(await client.take(1)).to.deep.equal(['2'])
      expect(hub.stats().resets).to.deep.equal({})
    })
  }

  it('is not reset for being slow when nothing has left the window but places without an event', async () => {
    const broker = new ManualBroker()
    const hub = makeHub({ broker, history: false })
    const { enter } = await start({}, {}, hub)
    const client = await enter('a')
    client.pause()
    await hub.publish('a', 'x'.repeat(1_000_000))
    broker.sink.position('p-1')
    client.resume()
    expect((await client.event()).data.length).to.equal(1_000_000)
    await hub.publish('a', '2')
    expect(await client.take(1)).to.deep.equal(['2'])
    expect(hub.stats().resets).to.deep.equal({})
  })

  it('is not given again what it has, when it was ahead and nothing came after', async () => {
    const broker = new ManualBroker()
    let answer!: (page: BrokerEntry[]) => void
    broker.read = async () => new Promise<BrokerEntry[]>(resolve => (answer = resolve))
    const hub = makeHub({ broker })
    const { join } = await start({}, {}, hub)
    const client = await join(['a'], 'm-2')
    await until(() => answer !== undefined)
    for (let i = 1; i <= 2; i++) await hub.publish('a', `${i}`)
    answer([])
    await hub.publish('a', '3')
    expect(await client.take(1)).to.deep.equal(['3'])
  })

  it('waits on when the broker fails, and is resumed when it answers again', async () => {
    const broker = new ManualBroker()
    let failing = true
    broker.read = async (after: string) => {
      if (failing) throw new Error('away')
      const number = Number(after.slice(2))
      return broker.published.map(([channel, event], i) => ({ id: `m-${i + 1}`, channel, event })).slice(number)
    }
    const hub = makeHub({ broker, history: { events: 2 } })
    const { join } = await start({}, {}, hub)
    for (let i = 1; i <= 5; i++) await hub.publish('a', `${i}`)
    const told = once(hub, 'error')
    const client = await join(['a'], 'm-1')
    expect(await told).to.have.nested.property('[0].message', 'away')
    failing = false
    await hub.publish('a', '6')
    expect(await client.take(5)).to.deep.equal(['2', '3', '4', '5', '6'])
    expect(hub.stats().resets).to.deep.equal({})
  })
})

describe('a client that comes back', () => {
  it('gets exactly what it missed, in order, then live events, and no position event', async () => {
    const { hub, enter, join } = await start()
    const client = await enter('a', 'b')
    await hub.publish('a', '0')
    await client.take(1)
    const { id } = client.events.at(-1)!
    client.rst()
    await until(() => hub.count() === 0)
    await hub.publish('b', '1')
    await hub.publish('c', 'not for it')
    await hub.broadcast('2')
    const back = await join(['a', 'b'], id)
    await hub.publish('a', '3')
    expect(await back.take(3)).to.deep.equal(['1', '2', '3'])
    expect(back.events.map(({ event }) => event)).to.deep.equal([undefined, undefined, undefined])
  })

  it('is told nothing at all when it missed nothing', async () => {
    const { hub, join } = await start()
    await hub.publish('a', 'seen')
    const back = await join(['a'], hub.position)
    await hub.publish('a', 'live')
    expect(await back.take(1)).to.deep.equal(['live'])
  })

  it('is believed by its header before the query', async () => {
    const { hub, url } = await start()
    const [first, second] = [await hub.publish('a', '1'), await hub.publish('a', '2')]
    await hub.publish('a', '3')
    const client = await connect(`${url}/?channel=a&lastEventId=${first}&last_event_id=forged`, { headers: { 'Last-Event-ID': second } })
    expect(await client.take(1)).to.deep.equal(['3'])
  })

  it('begins where the log is with replay: false, whatever it says', async () => {
    const { hub, join } = await start({ replay: false })
    const first = await hub.publish('a', '1')
    await hub.publish('a', '2')
    for (const id of [first, 'forged']) {
      const client = await join(['a'], id)
      expect(await client.event()).to.include({ event: POSITION, id: hub.position })
      await hub.publish('a', 'live')
      expect(await client.take(1)).to.deep.equal(['live'])
    }
  })

  it('is believed before from: earliest', async () => {
    const { hub, join } = await start({ from: 'earliest' })
    await hub.publish('a', '1')
    const second = await hub.publish('a', '2')
    await hub.publish('a', '3')
    expect(await (await join(['a'], second)).take(1)).to.deep.equal(['3'])
  })

  it('may ask for other channels than before', async () => {
    const { hub, join } = await start()
    const before = hub.position!
    await hub.publish('a', 'a')
    await hub.publish('b', 'b')
    expect(await (await join(['b'], before)).take(1)).to.deep.equal(['b'])
  })

  it('gets more than fits at once, all of it in order', async () => {
    const { hub, join } = await start({}, { highWaterMark: 1_000 })
    const before = hub.position!
    const data = Array.from({ length: 2_000 }, (_, i) => `${i} ${'x'.repeat(1_000)}`)
    for (const text of data) void hub.publish('a', text)
    const client = await join(['a'], before)
    void hub.publish('a', 'live')
    expect(await client.take(2_001)).to.deep.equal([...data, 'live'])
  })
})

describe('a client that missed more than the window holds', () => {
  for (const [what, bytes] of [
    ['small', 10],
    ['large', 4_000],
  ] as const) {
    it(`gets it all, when the broker has it: ${what} events`, async () => {
      const hub = makeHub({ broker: new MemoryBroker(), history: { events: 10 } })
      await until(() => hub.position !== undefined)
      const { join } = await start({}, {}, hub)
      const before = hub.position!
      const data = Array.from({ length: 2_500 }, (_, i) => `${i} ${'x'.repeat(bytes)}`)
      await Promise.all(data.map(text => hub.publish('a', text)))
      const client = await join(['a'], before)
      void hub.publish('a', 'live')
      const seen: string[] = []
      while (seen.at(-1) !== 'live') {
        const event = await client.event()
        expect(event.event, `after ${seen.length} events: ${event.data}`).to.equal(undefined)
        seen.push(event.data)
      }
      expect(seen).to.deep.equal([...data, 'live'])
    })
  }
})

describe('a filter', () => {
  it('decides live and replayed events alike, broadcasts too', async () => {
    const seen: HubEvent[] = []
    const filter = (event: HubEvent): boolean => {
      seen.push(event)
      return event.data !== 'no'
    }
    const { hub, join } = await start({ filter })
    const before = hub.position!
    const publishAll = async (): Promise<void> => {
      await hub.publish('a', { id: undefined, event: 'e', data: { n: 1 } })
      await hub.publish('a', 'no')
      await hub.broadcast('no')
      await hub.publish('b', 'not for it')
      await hub.broadcast('yes')
    }
    await publishAll()
    const client = await join(['a'], before)
    expect(await client.take(2)).to.deep.equal(['{"n":1}', 'yes'])
    await publishAll()
    expect(await client.take(2)).to.deep.equal(['{"n":1}', 'yes'])
    const shape = ({ id: _id, ...event }: HubEvent): unknown => event
    expect(seen.map(shape)).to.deep.equal(
      [0, 1].flatMap(() => [
        { channel: 'a', event: 'e', data: '{"n":1}' },
        { channel: 'a', data: 'no' },
        { channel: null, data: 'no' },
        { channel: null, data: 'yes' },
      ]),
    )
    expect(seen[0]!.id).to.equal(client.events[0]!.id)
    expect(hub.stats().delivered).to.equal(4)
  })

  it('is asked by from: earliest too', async () => {
    const { hub, enter } = await start({ from: 'earliest', filter: ({ data }) => data === 'yes' })
    await hub.publish('a', 'no')
    await hub.publish('a', 'yes')
    expect(await (await enter('a')).take(1)).to.deep.equal(['yes'])
  })

  it('that throws drops the event for its stream alone, live and replayed, and the hub emits it', async () => {
    const filter = ({ data }: HubEvent): boolean => {
      if (data === 'bad') throw new Error('filter')
      return true
    }
    const hub = makeHub()
    const strict = await start({ filter }, {}, hub)
    const plain = await start({}, {}, hub)
    const [first, other, third] = [await strict.enter('a'), await plain.enter('a'), await strict.enter('a')]
    const before = hub.position!
    await hub.publish('a', 'bad') // nobody listens for 'error', and nothing is thrown
    const errors: unknown[] = []
    hub.on('error', error => errors.push(error))
    await hub.publish('a', 'bad')
    await hub.publish('a', 'good')
    expect(await first.take(1)).to.deep.equal(['good'])
    expect(await third.take(1)).to.deep.equal(['good'])
    expect(await other.take(3)).to.deep.equal(['bad', 'bad', 'good'])
    expect(errors.map(error => (error as Error).message)).to.deep.equal(['filter', 'filter'])
    const back = await strict.join(['a'], before)
    expect(await back.take(1)).to.deep.equal(['good'])
    expect(errors).to.have.lengthOf(4)
    expect([...strict.errors, ...plain.errors]).to.deep.equal([])
  })

  it('that ends its own stream gives it a clean end, and nothing more', async () => {
    const hub = makeHub()
    const { url, streams } = await serveStreams()
    const client = await connect(url)
    const [stream] = streams
    const filter = (): boolean => {
      stream!.close()
      return true
    }
    await hub.subscribe(stream!, 'a', { filter })
    await client.event()
    await hub.publish('a', 'too late')
    expect(await client.ended).to.equal('clean')
    expect(client.text).not.to.include('too late')
    expect(stream!.eventsSent).to.equal(0)
    expect(hub.stats().delivered).to.equal(0)
  })
})

describe('an id that proves nothing', () => {
  const expectReset = async (hub: Hub, client: LiveClient): Promise<string> => {
    const position = hub.position
    const reset = await client.event()
    expect(reset).to.include({ event: RESET, id: position })
    const data = JSON.parse(reset.data) as Record<string, unknown>
    expect(Object.keys(data)).to.deep.equal(['reason'])
    expect(data['reason']).to.be.a('string')
    // Nothing comes between the reset and live events: no position event above all.
    const id = await hub.publish('a', 'live')
    expect(await client.event()).to.include({ id, data: 'live', event: undefined })
    return data['reason'] as string
  }

  it('is one of another life', async () => {
    const former = makeHub()
    const id = await former.publish('a', 'of the life before')
    const { hub, join } = await start()
    for (let i = 0; i < 5; i++) await hub.publish('a', `${i}`)
    await expectReset(hub, await join(['a'], id))
  })

  it('is forged or malformed', async () => {
    const { hub, join, errors } = await start()
    const faults: unknown[] = []
    hub.on('error', error => faults.push(error))
    const first = await hub.publish('a', '1')
    for (let i = 0; i < 5; i++) await hub.publish('a', `${i}`)
    const epoch = first.slice(0, first.indexOf('-'))
    const ids = [`${epoch}-99`, `${epoch}--1`, `${epoch}-1.5`, `${epoch}-01`, `${epoch}-1e0`, `${epoch}-`, epoch, `${first}x`, `0${first}`]
    const strange = ['0', '-1', '$', '*', '0-0', '1-1', '__proto__', 'constructor', '{"a":1}', '../..', '日本', '\u00ff', '%00', 'undefined', ' x y ']
    for (const id of [...ids, ...strange]) {
      const reason = await expectReset(hub, await join(['a'], id))
      expect(reason, id).to.match(/^[a-z-]+$/)
    }
    expect(hub.count()).to.equal(ids.length + strange.length)
    expect([...errors, ...faults]).to.deep.equal([])
  })

  it('is not valid UTF-8', async () => {
    const { hub, url } = await start()
    await hub.publish('a', '1')
    await expectReset(hub, await connect(`${url}/?channel=a`, { headers: { 'Last-Event-ID': '\u00ff\u00fe' } }))
  })

  it('is huge, in the header and in the query', async () => {
    const { hub, url, join } = await start()
    await hub.publish('a', '1')
    const huge = 'x'.repeat(8_192)
    await expectReset(hub, await join(['a'], huge))
    const client = await connect(`${url}/?channel=a&lastEventId=${huge}`)
    await expectReset(hub, client)
    expect(client.text).not.to.include('xxx')
    const digits = await join(['a'], `${hub.position!.slice(0, hub.position!.indexOf('-'))}-${'9'.repeat(8_000)}`)
    await expectReset(hub, digits)
  })

  it('is no longer in the window', async () => {
    const hub = makeHub({ history: { events: 5 } })
    const { join } = await start({}, {}, hub)
    const ids: string[] = []
    for (let i = 0; i < 10; i++) ids.push(await hub.publish('a', `${i}`))
    // Five are held: who has seen the one before them misses nothing.
    expect(await (await join(['a'], ids[4])).take(5)).to.deep.equal(['5', '6', '7', '8', '9'])
    expect(await expectReset(hub, await join(['a'], ids[3]))).to.equal('trimmed')
    expect(hub.stats().resets).to.deep.equal({ trimmed: 1 })
  })

  it('is an event’s own, and used twice in the window', async () => {
    const { hub, join } = await start()
    await hub.publish('a', { id: 'own', data: '1' })
    await hub.publish('a', 'between')
    await hub.publish('b', { id: 'own', data: '2' })
    await hub.publish('a', 'after')
    await expectReset(hub, await join(['a'], 'own'))
  })

  it('is an event’s own that looks like one of the broker’s, which would go on from that', async () => {
    const { hub, join } = await start({}, {}, makeHub({ broker: new MemoryBroker() }))
    const first = await hub.publish('a', '1')
    await hub.publish('a', '2')
    await hub.publish('a', { id: first, data: '3' })
    await hub.publish('a', '4')
    await expectReset(hub, await join(['a'], first))
  })

  it('tells nothing of what happened on channels that are not the client’s', async () => {
    const { hub, join } = await start()
    await hub.publish('secret', 'secret words')
    const client = await join(['a'], 'secret')
    await expectReset(hub, client)
    expect(client.text).not.to.include('secret')
  })

  it('does not matter with another name for the events', async () => {
    const hub = makeHub({ broker: new ManualBroker(), resetEvent: 'begin-anew', positionEvent: 'here' })
    const { join } = await start({}, {}, hub)
    // One of another hub has just been told the same.
    await (await start({}, {}, makeHub({ broker: new ManualBroker() }))).enter('a')
    expect(await (await join(['a'])).event()).to.include({ event: 'here', data: '' })
    expect(await (await join(['a'], 'forged')).event()).to.include({ event: 'begin-anew' })
  })
})
