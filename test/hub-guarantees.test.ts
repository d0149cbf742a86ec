import { setImmediate as nextTurn } from 'node:timers/promises'
import { expect } from 'chai'
import type { Context } from 'koa'
import {
  Hub,
  MemoryBroker,
  sse,
  SseError,
  type Broker,
  type BrokerEntry,
  type BrokerSink,
  type EventStream,
  type SseEvent,
  type Subscription,
} from 'koa-sse'
import { connect, type LiveClient } from './support/client.ts'
import { clog } from './support/clog.ts'
import { collect } from './support/heap.ts'
import { makeHub, serveStreams } from './support/hub.ts'
import { koa, serve, until } from './support/serve.ts'

/** A broker that keeps everything, and is as slow to start and to answer as it is told. */
class SlowBroker implements Broker {
  sink!: BrokerSink
  readonly entries: BrokerEntry[] = []
  start_: Promise<unknown> = Promise.resolve()
  answer: Promise<unknown> = Promise.resolve()
  reads = 0

  async start(sink: BrokerSink): Promise<void> {
    this.sink = sink
    await this.start_
    sink.position('s-0')
  }

  async publish(channel: string | null, event: SseEvent): Promise<string> {
    return this.add({ id: `s-${this.entries.length + 1}`, channel, event })
  }

  add(entry: BrokerEntry): string {
    this.entries.push(entry)
    this.sink.event(entry)
    return entry.id
  }

  async read(after: string, limit: number): Promise<BrokerEntry[] | undefined> {
    this.reads++
    await this.answer
    const index = after === 's-0' ? 0 : this.entries.findIndex(({ id }) => id === after) + 1
    return this.entries.slice(index, index + limit)
  }

  async close(): Promise<void> {}
}

/** A hub on such a broker, whose window holds one event, and what it emits as 'error'. */
const serveSlow = async (): Promise<{ broker: SlowBroker; hub: Hub; errors: unknown[] } & Awaited<ReturnType<typeof serveHub>>> => {
  const broker = new SlowBroker()
  const hub = makeHub({ broker, history: { events: 1 } })
  const errors: unknown[] = []
  hub.on('error', error => errors.push(error))
  return { broker, hub, errors, ...(await serveHub(hub)) }
}

const serveHub = async (hub: Hub): Promise<{ open: (lastEventId?: string) => Promise<LiveClient>; contexts: WeakRef<Context>[] }> => {
  const contexts: WeakRef<Context>[] = []
  const app = koa(
    sse(),
    (ctx: Context, next) => {
      contexts.push(new WeakRef(ctx))
      return next()
    },
    hub.subscriber('a'),
  )
  const { url } = await serve(app)
  const open = (lastEventId?: string): Promise<LiveClient> =>
    connect(url, { headers: lastEventId === undefined ? {} : { 'Last-Event-ID': lastEventId } })
  return { open, contexts }
}

/** A client that is subscribed to 'a', and reads no more: the server has no room for it. */
const clogged = async (hub: Hub): Promise<{ client: LiveClient; stream: EventStream; subscription: Subscription }> => {
  const { url, streams } = await serveStreams({ stallTimeout: false })
  const client = await connect(url)
  const [stream] = streams as [EventStream]
  const subscription = await hub.subscribe(stream, 'a')
  await client.event()
  client.pause()
  await clog(stream)
  return { client, stream, subscription }
}

describe('publishes that nobody awaits', () => {
  for (const pause of [1, 2, 3, 4]) {
    it(`keep their order while the hub starts, with ${pause} microtasks between them`, async () => {
      const broker = new SlowBroker()
      const hub = makeHub({ broker })
      const published: Promise<string>[] = []
      for (let i = 0; i < 20; i++) {
        published.push(hub.publish('a', `${i}`))
        for (let n = 0; n < pause; n++) await Promise.resolve()
      }
      await Promise.all(published)
      expect(broker.entries.map(({ event }) => event.data)).to.deep.equal(Array.from({ length: 20 }, (_, i) => `${i}`))
    })
  }

  it('keep it when one of those that waited for the start makes somebody publish', async () => {
    const broker = new SlowBroker()
    let begin!: () => void
    broker.start_ = new Promise<void>(resolve => (begin = resolve))
    const hub = makeHub({ broker })
    const { url, streams } = await serveStreams()
    const client = await connect(url)
    const filter = ({ data }: { data?: string }): boolean => {
      if (data === '1') void hub.publish('a', 'because of 1')
      return true
    }
    await hub.subscribe(streams[0]!, 'a', { filter })
    for (const data of ['1', '2', '3']) void hub.publish('a', data)
    begin()
    await client.event()
    expect(await client.take(4)).to.deep.equal(['1', '2', '3', 'because of 1'])
  })

  it('are taken as they are at the call, with or without data, and with what an event inherits', async () => {
    const broker = new SlowBroker()
    let begin!: () => void
    broker.start_ = new Promise<void>(resolve => (begin = resolve))
    const hub = makeHub({ broker })
    const event: SseEvent = { event: 'tick' }
    const first = hub.publish('a', event)
    event.event = 'a\nb'
    class Headline {
      readonly data = 'x'
    }
    Object.defineProperty(Headline.prototype, 'event', { get: () => 'headline' })
    const second = hub.publish('a', new Headline())
    begin()
    await Promise.all([first, second])
    expect(broker.entries.map(entry => entry.event)).to.deep.equal([{ event: 'tick' }, { event: 'headline', data: 'x' }])
  })

  it('settle when the hub is closed before its broker ever started', async () => {
    const broker = new SlowBroker()
    broker.start_ = new Promise(() => {})
    const hub = new Hub({ broker })
    const outcome = hub.publish('a', 'x').catch(({ code }: { code: string }) => code)
    await hub.close({ graceMs: 100 })
    expect(await outcome).to.equal('ERR_SSE_HUB_CLOSED')
  })
})

describe('a source that is always ready', () => {
  it('leaves everybody else their turn, and a client that reads loses nothing', async () => {
    const hub = makeHub()
    const { open } = await serveHub(hub)
    const client = await open()
    await client.event()
    let turns = 0
    let counting = true
    const count = (): void => {
      turns++
      if (counting) setImmediate(count)
    }
    setImmediate(count)
    await hub.pipe(
      'a',
      Array.from({ length: 15_000 }, (_, i) => `${i}`),
    )
    for (let i = 0; i < 1_000; i++) await hub.publish('a', 'more')
    counting = false
    expect(turns).to.be.above(500)
    const texts = await client.take(16_000)
    expect(texts.slice(0, 15_000)).to.deep.equal(Array.from({ length: 15_000 }, (_, i) => `${i}`))
    expect(hub.stats().resets).to.deep.equal({})
  })

  it('is stopped by a signal that a timer aborts', async () => {
    const hub = makeHub()
    const signal = AbortSignal.timeout(20)
    let yielded = 0
    await hub.pipe(
      'a',
      (function* () {
        for (;;) yield `${yielded++}`
      })(),
      { signal },
    )
    expect(yielded).to.be.above(0)
  })
})

describe('two hubs that share a stream', () => {
  it('both look at the id of a client that comes back: who cannot prove it says so', async () => {
    const [one, two] = [makeHub(), makeHub()]
    const app = koa(sse(), async ctx => {
      await one.subscribe(ctx.sse, 'a')
      await two.subscribe(ctx.sse, 'b')
    })
    const { url } = await serve(app)
    const first = await connect(url)
    for (let i = 0; i < 2; i++) await first.event()
    const id = await one.publish('a', 'seen')
    await first.take(1)
    first.rst()
    await until(() => one.count() + two.count() === 0)
    await one.publish('a', 'missed on one')
    await two.publish('b', 'missed on two')
    const back = await connect(url, { headers: { 'Last-Event-ID': id } })
    expect((await back.event()).data).to.equal('missed on one')
    expect(await back.event()).to.include({ event: 'stream-reset', data: '{"reason":"unknown"}' })
  })

  it('need not begin at the same time: that there is room for one again says nothing to the other', async () => {
    const broker = new SlowBroker()
    let begin!: () => void
    broker.start_ = new Promise<void>(resolve => (begin = resolve))
    const [one, two] = [makeHub(), makeHub({ broker })]
    const { url, streams } = await serveStreams({ stallTimeout: false })
    const client = await connect(url)
    await one.subscribe(streams[0]!, 'a')
    await two.subscribe(streams[0]!, 'a')
    await client.event()
    client.pause()
    await clog(streams[0]!)
    for (const data of ['1', '2']) await one.publish('a', data)
    client.resume()
    expect((await client.event()).data).to.match(/^x+$/)
    expect(await client.take(2)).to.deep.equal(['1', '2'])
    begin()
    expect(await client.event()).to.include({ event: 'stream-position', id: 's-0' })
    expect(two.stats().resets).to.deep.equal({})
  })
})

describe('a stream that joins in the middle of a delivery', () => {
  it('has that event in its position, and is not given it again', async () => {
    const hub = makeHub()
    const streams: EventStream[] = []
    const app = koa(sse(), async ctx => {
      streams.push(ctx.sse)
      if (ctx.path === '/') {
        await hub.subscribe(ctx.sse, 'a', {
          filter: () => {
            if (hub.count() === 1) void hub.subscribe(streams[1]!, 'a')
            return true
          },
        })
      } else ctx.sse.open()
    })
    const { url } = await serve(app)
    const first = await connect(url)
    await first.event()
    const second = await connect(`${url}/later`)
    await until(() => streams.length === 2)
    const id = await hub.publish('a', '1')
    expect(await first.take(1)).to.deep.equal(['1'])
    expect(await second.event()).to.include({ event: 'stream-position', id })
    await hub.publish('a', '2')
    expect(await second.take(1)).to.deep.equal(['2'])
  })
})

describe('a client that has missed more than can be replayed at once', () => {
  it('gets up to 5 000 events of the broker; past that it is reset', async () => {
    const { broker, hub, open } = await serveSlow()
    for (let i = 0; i < 5_200; i++) broker.add({ id: `s-${i + 1}`, channel: 'other', event: { data: 'x' } })
    const near = await open('s-300')
    await until(() => broker.reads > 40)
    const far = await open('s-0')
    expect(await far.event()).to.include({ event: 'stream-reset', data: '{"reason":"trimmed"}' })
    await hub.publish('a', 'live')
    expect(await near.take(1)).to.deep.equal(['live'])
    expect(hub.stats().resets).to.deep.equal({ trimmed: 1 })
  })
})

describe('a client that does not read while continuity is lost again and again', () => {
  it('is reset once, to where the log is then', async () => {
    const broker = new SlowBroker()
    const hub = makeHub({ broker })
    const { client } = await clogged(hub)
    for (let i = 1; i < 4; i++) broker.sink.gap('lost', `g-${i}`)
    client.resume()
    expect((await client.event()).data).to.match(/^x+$/)
    expect(await client.event()).to.include({ event: 'stream-reset', id: 'g-3', data: '{"reason":"lost"}' })
    await hub.publish('a', 'after')
    expect(await client.take(1)).to.deep.equal(['after'])
  })
})

describe('a stream that is subscribed again', () => {
  it('is reset when its subscription before still owed it something', async () => {
    const hub = makeHub()
    const { client, stream, subscription: before } = await clogged(hub)
    // The first that finds no room goes out still; the next is what is owed.
    await hub.publish('a', 'taken')
    await hub.publish('a', 'owed')
    before.close()
    await hub.subscribe(stream, ['a', 'b'])
    await hub.publish('a', 'after')
    client.resume()
    expect((await client.event()).data).to.match(/^x+$/)
    expect((await client.event()).data).to.equal('taken')
    expect(await client.event()).to.include({ event: 'stream-reset', data: '{"reason":"slow"}' })
    expect(await client.take(1)).to.deep.equal(['after'])
    expect(hub.stats().resets).to.deep.equal({ slow: 1 })
  })

  it('is reset when continuity was lost, and its subscription before had no room to say so', async () => {
    const broker = new SlowBroker()
    const hub = makeHub({ broker })
    const { client, stream, subscription: before } = await clogged(hub)
    broker.sink.gap('lost', 'g-1')
    before.close()
    await hub.subscribe(stream, 'a')
    client.resume()
    expect((await client.event()).data).to.match(/^x+$/)
    expect(await client.event()).to.include({ event: 'stream-reset', id: 'g-1', data: '{"reason":"slow"}' })
    await hub.publish('a', 'after')
    expect(await client.take(1)).to.deep.equal(['after'])
  })

  it('is told its position when nothing was owed, and its Last-Event-ID is not asked again', async () => {
    const hub = makeHub()
    const { url, streams } = await serveStreams({ stallTimeout: false })
    const id = await hub.publish('a', 'old')
    await hub.publish('a', 'newer')
    const client = await connect(url, { headers: { 'Last-Event-ID': id } })
    const before = await hub.subscribe(streams[0]!, 'a')
    expect(await client.take(1)).to.deep.equal(['newer'])
    before.close()
    await hub.subscribe(streams[0]!, 'a')
    expect(await client.event()).to.include({ event: 'stream-position' })
    expect(hub.stats().resets).to.deep.equal({})
  })

  it('gets what it missed when its subscription before had not begun', async () => {
    const broker = new SlowBroker()
    let begin!: () => void
    broker.start_ = new Promise<void>(resolve => (begin = resolve))
    const hub = makeHub({ broker })
    const { url, streams } = await serveStreams()
    const client = await connect(url, { headers: { 'Last-Event-ID': 's-0' } })
    const before = await hub.subscribe(streams[0]!, 'a')
    before.close()
    await hub.subscribe(streams[0]!, 'a')
    const published = hub.publish('a', 'missed')
    begin()
    await published
    expect(await client.event()).to.include({ id: 's-1', data: 'missed' })
  })

  it('is reset once, and told nothing else, when its subscription before waited for the broker', async () => {
    const { broker, hub } = await serveSlow()
    const { url, streams } = await serveStreams()
    for (const data of ['1', '2', '3']) await hub.publish('a', data)
    broker.answer = new Promise(() => {})
    const client = await connect(url, { headers: { 'Last-Event-ID': 's-0' } })
    const before = await hub.subscribe(streams[0]!, 'a')
    before.close()
    await hub.subscribe(streams[0]!, 'a')
    await hub.publish('a', '4')
    expect(await client.event()).to.include({ event: 'stream-reset', id: 's-3', data: '{"reason":"slow"}' })
    expect(await client.event()).to.include({ id: 's-4', data: '4' })
    expect(hub.stats().resets).to.deep.equal({ slow: 1 })
  })

  it('gets nothing when a listener closes the subscription as it begins', async () => {
    const hub = makeHub()
    hub.once('subscribe', subscription => subscription.close())
    const { url, streams } = await serveStreams()
    const client = await connect(url)
    await hub.subscribe(streams[0]!, 'a')
    await streams[0]!.send('by hand')
    expect(await client.event()).to.include({ data: 'by hand' })
  })
})

describe('a broker that is somebody else’s', () => {
  it('has an entry that nobody can encode: it is passed over in a replay too, and told', async () => {
    const { broker, hub, errors, open } = await serveSlow()
    await hub.publish('a', '1')
    broker.add({ id: 's-2', channel: 'a', event: { event: 'bad\nevent' } })
    expect(hub.position).to.equal('s-2')
    for (const data of ['3', '4']) await hub.publish('a', data)
    expect(errors).to.have.lengthOf(1)
    const client = await open('s-0')
    expect(await client.take(3)).to.deep.equal(['1', '3', '4'])
    await hub.publish('a', '5')
    expect(await client.take(1)).to.deep.equal(['5'])
    expect(errors).to.have.lengthOf(2)
  })

  it('throws where it should reject: the client waits, and the fault is told', async () => {
    const { broker, hub, errors, open } = await serveSlow()
    for (const data of ['1', '2', '3']) await hub.publish('a', data)
    const read = broker.read.bind(broker)
    broker.read = () => {
      throw new Error('not yet')
    }
    const client = await open('s-0')
    await until(() => errors.length > 0)
    broker.read = read
    await hub.publish('a', '4')
    expect(await client.take(4)).to.deep.equal(['1', '2', '3', '4'])
  })

  for (const [what, trimmed, message] of [
    [
      'throws',
      () => {
        throw new Error('no idea')
      },
      'no idea',
    ],
    ['rejects', () => Promise.reject(new Error('no idea')) as unknown as boolean, 'Expected `trimmed` to return a boolean, got a promise'],
  ] as const) {
    it(`${what} when it is asked why an id proves nothing: the client is reset, and the hub says what it was`, async () => {
      const { broker, hub, errors, open } = await serveSlow()
      broker.read = async () => undefined
      Object.assign(broker, { trimmed })
      await hub.publish('a', 'before')
      const client = await open('s-7')
      expect(await client.event()).to.include({ event: 'stream-reset', id: 's-1', data: '{"reason":"unknown"}' })
      expect(errors.join()).to.include(message)
      await hub.publish('a', 'after')
      expect(await client.take(1)).to.deep.equal(['after'])
    })
  }

  it('answers with what is no page: that proves nothing, and the hub says what it was', async () => {
    const { broker, hub, errors, open } = await serveSlow()
    for (const data of ['1', '2', '3']) await hub.publish('a', data)
    for (const page of [null, 5, {}, [null], [{}]]) {
      broker.read = async () => page as never
      const client = await open('s-0')
      expect(await client.event()).to.include({ event: 'stream-reset', data: '{"reason":"unknown"}' })
      expect(errors.splice(0).join()).to.match(/^TypeError: Expected `page` to be an array of entries, each with an id, or undefined, got /)
    }
    // Nor does the sink throw.
    broker.sink.event(null as never)
    expect(errors.map(String)).to.deep.equal(['TypeError: Expected `entry` to be an entry with an id, got null'])
  })

  it('fails, and then loses continuity while the client is full: that is reset, and is given nothing of before', async () => {
    const broker = new SlowBroker()
    const hub = makeHub({ broker, history: { events: 1 } })
    const failed = new Promise(resolve => hub.once('error', resolve))
    const { url, streams } = await serveStreams({ stallTimeout: false })
    for (const data of ['1', '2', '3']) await hub.publish('a', data)
    const client = await connect(url, { headers: { 'Last-Event-ID': 's-0' } })
    client.pause()
    await clog(streams[0]!)
    const read = broker.read.bind(broker)
    broker.read = async () => Promise.reject(new Error('a hiccup'))
    await hub.subscribe(streams[0]!, 'a')
    await failed
    broker.read = read
    broker.sink.gap('lost', 'g-1')
    broker.sink.position('g-2')
    await nextTurn()
    client.resume()
    expect((await client.event()).data).to.match(/^x+$/)
    expect(await client.event()).to.include({ event: 'stream-reset', id: 'g-2', data: '{"reason":"lost"}' })
  })

  it('fails twice, and nothing is published any more: who waits for it gets what it missed all the same', async () => {
    const { broker, hub, open } = await serveSlow()
    for (const data of ['1', '2', '3']) await hub.publish('a', data)
    const read = broker.read.bind(broker)
    let failures = 0
    broker.read = async () => {
      if (++failures === 2) broker.read = read
      throw new Error('a hiccup')
    }
    const client = await open('s-0')
    expect(await client.take(3)).to.deep.equal(['1', '2', '3'])
  })

  it('fails with nothing to say, and then never answers one client: it is asked by one at a time, and none is left behind by another', async () => {
    const { broker, hub, errors, open } = await serveSlow()
    for (const data of ['1', '2', '3']) await hub.publish('a', data)
    const read = broker.read.bind(broker)
    broker.read = async () => Promise.reject()
    const client = await open('s-0')
    await open('s-1')
    await until(() => errors.length === 3)
    const failed = performance.now()
    let asked = 0
    broker.read = async (id, limit) => {
      if (id !== 's-1') return read(id, limit)
      asked = performance.now()
      return new Promise(() => {})
    }
    expect(await client.take(3)).to.deep.equal(['1', '2', '3'])
    expect(asked - failed).to.be.above(500)
    expect(errors).to.deep.equal([undefined, undefined, undefined])
  })

  it('is too busy for a crowd: nobody is told, it is asked again by some at a time, and all get their events', async () => {
    const { broker, errors, open } = await serveSlow()
    for (let i = 1; i <= 300; i++) broker.add({ id: `s-${i}`, channel: 'a', event: { data: `${i}` } })
    const read = broker.read.bind(broker)
    let [atOnce, refused] = [0, 0]
    broker.read = async (...args) => {
      if (atOnce === 5) {
        refused++
        throw new SseError('ERR_SSE_BROKER_BUSY', 'five reads wait already')
      }
      atOnce++
      return read(...args).finally(() => atOnce--)
    }
    let answer!: (value?: unknown) => void
    broker.answer = new Promise(resolve => (answer = resolve))
    const clients = await Promise.all(Array.from({ length: 250 }, async (_, i) => open(`s-${i + 1}`)))
    await until(() => refused === 245)
    broker.add({ id: 's-301', channel: 'a', event: { data: '301' } })
    await until(() => refused > 245)
    expect(refused).to.equal(245 + 100)
    // No move of the log is needed.
    answer()
    for (const [i, client] of clients.entries()) {
      expect(await client.take(300 - i)).to.deep.equal(Array.from({ length: 300 - i }, (_, n) => `${i + 2 + n}`))
    }
    expect(errors).to.deep.equal([])
  })

  it('names its newest id again: that is as good as ever', async () => {
    const broker = new SlowBroker()
    const hub = makeHub({ broker })
    const { open } = await serveHub(hub)
    const id = await hub.publish('a', '1')
    for (let i = 0; i < 2; i++) broker.sink.position(id)
    const client = await open(hub.position)
    await hub.publish('a', '2')
    expect(await client.take(1)).to.deep.equal(['2'])
    broker.sink.gap('lost', 's-7')
    broker.sink.position('s-7')
    expect(await client.event()).to.include({ event: 'stream-reset' })
    const back = await open('s-7')
    broker.add({ id: 's-8', channel: 'a', event: { data: '3' } })
    expect(await back.take(1)).to.deep.equal(['3'])
    expect(hub.stats().resets).to.deep.equal({ lost: 1 })
  })

  for (const what of ['has not started', 'does not answer'] as const) {
    it(`${what}: clients that leave meanwhile are let go`, async () => {
      const broker = new SlowBroker()
      const never = new Promise(() => {})
      if (what === 'has not started') broker.start_ = never
      const hub = makeHub({ broker, history: { events: 1 } })
      const { open, contexts } = await serveHub(hub)
      if (what === 'does not answer') {
        for (let i = 0; i < 5; i++) await hub.publish('a', `${i}`)
        broker.answer = never
      }
      for (let i = 0; i < 20; i++) (await open('s-1')).rst()
      await until(() => contexts.length === 20 && hub.count() === 0)
      if (what === 'does not answer') expect(broker.reads).to.equal(20)
      collect()
      // The newest may stand in a register still.
      expect(contexts.filter(context => context.deref() !== undefined).length).to.be.below(3)
    })
  }

  it('did not start before the hub was closed: that is no fault', async () => {
    const broker = new SlowBroker()
    let fail!: (error: Error) => void
    broker.start_ = new Promise((_, reject) => (fail = reject))
    const hub = new Hub({ broker })
    const errors: unknown[] = []
    hub.on('error', error => errors.push(error))
    await hub.close({ graceMs: 50 })
    fail(new Error('closed'))
    await new Promise(resolve => setImmediate(resolve))
    expect(errors).to.deep.equal([])
  })
})

describe('a filter that is async', () => {
  it('lets nothing through, and the hub says why', async () => {
    const hub = makeHub()
    const errors: unknown[] = []
    hub.on('error', error => errors.push(error))
    const app = koa(
      sse(),
      hub.subscriber('a', {
        filter: (async () => {
          throw new Error('forbidden')
        }) as never,
      }),
    )
    const client = await connect((await serve(app)).url)
    await client.event()
    await hub.publish('a', 'secret')
    expect(errors).to.have.lengthOf(1)
    expect(errors[0]).to.be.an.instanceOf(TypeError)
    await hub.close({ event: 'bye' })
    expect(await client.take(1)).to.deep.equal(['bye'])
  })
})

describe('a MemoryBroker that has a hub', () => {
  it('takes no second one: the first would get nothing any more', async () => {
    const broker = new MemoryBroker()
    const hub = makeHub({ broker })
    await hub.publish('a', 'x')
    const other = makeHub({ broker })
    const error: unknown = await other.publish('a', 'y').catch((cause: unknown) => cause)
    expect(error).to.have.property('code', 'ERR_SSE_BROKER_UNAVAILABLE')
    await hub.publish('a', 'z')
    expect(hub.stats().published).to.equal(2)
  })
})

describe('hub.close() and new MemoryBroker()', () => {
  it('refuse wrong options, at any time', async () => {
    const hub = makeHub()
    await hub.close()
    expect(() => hub.close({ graceMs: 'x' as never })).to.throw(TypeError)
    for (const options of [{ events: -1 }, { ms: Number.NaN }, { bytes: -5 }]) expect(() => new MemoryBroker(options)).to.throw(RangeError)
    for (const options of [{ events: '10' }, { event: 5 }, null, [], 'x', 5])
      expect(() => new MemoryBroker(options as never)).to.throw(TypeError, /Expected|Unknown key/)
  })
})
