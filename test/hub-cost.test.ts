import { Agent, request, type IncomingMessage } from 'node:http'
import { expect } from 'chai'
import type { Context, Middleware } from 'koa'
import { sse, type EventStream, type Hub, type HubEvent, type SseOptions } from 'koa-sse'
import { Log } from '../src/log.ts'
import { OpenStream } from '../src/open-stream.ts'
import { Subscriber } from '../src/subscription.ts'
import { connect, type LiveClient } from './support/client.ts'
import { makeHub } from './support/hub.ts'
import { collect, memory } from './support/heap.ts'
import { koa, serve, until } from './support/serve.ts'

const makeLarge = (): Hub => makeHub({ maxChannels: 20_000 })

const heap = (): number => {
  collect()
  return process.memoryUsage().heapUsed
}

/** Resources of the event loop, by kind: timers with and without a hold on the process too. */
const timers = (): number => process.getActiveResourcesInfo().filter(name => name === 'Timeout').length

const named = (ctx: Context): string[] => [ctx.query['channel'] ?? []].flat()

describe('a publish', () => {
  it('touches its channel’s subscribers only, with 10 000 other channels and many other streams there', async function () {
    this.timeout(20_000)
    const hub = makeLarge()
    const { url } = await serve(
      koa(
        sse({ heartbeat: false }),
        hub.subscriber((ctx: Context) =>
          ctx.query['many'] === undefined
            ? named(ctx)
            : Array.from({ length: 10_000 }, (_, i) => `other:${i % 5_000}:${String(ctx.query['many'])}${i}`),
        ),
      ),
    )
    const mine: LiveClient[] = []
    for (let i = 0; i < 3; i++) mine.push(await connect(`${url}/?channel=mine`))
    await connect(`${url}/?many=a`)
    for (let i = 0; i < 100; i++) await connect(`${url}/?channel=other:${i}`)
    for (const client of mine) await client.event()
    expect(hub.stats().channels).to.equal(10_101)
    expect(hub.count()).to.equal(104)

    let delivered = 0
    const deliver: Subscriber['deliver'] = Reflect.get(Subscriber.prototype, 'deliver')
    // Whatever walks over subscribers or channels shows in these.
    let steps = 0
    const iterators = [new Set(['x']).values(), new Map([['x', 1]]).entries()].map(iterator => Object.getPrototypeOf(iterator) as Iterator<unknown>)
    const nexts = iterators.map((prototype): Iterator<unknown>['next'] => Reflect.get(prototype, 'next'))
    Subscriber.prototype.deliver = function (...args: Parameters<typeof deliver>): void {
      delivered++
      deliver.apply(this, args)
    }
    for (const [i, prototype] of iterators.entries()) {
      const next = nexts[i]!
      prototype.next = function (): IteratorResult<unknown> {
        steps++
        return next.call(this)
      }
    }
    try {
      const published = hub.publish('mine', 'x')
      const [touches, walked] = [delivered, steps]
      await published
      expect(touches).to.equal(3)
      // Three, and the end, for each walk that is made; nothing that grows with what else is there.
      expect(walked).to.be.at.most(16)
      delivered = steps = 0
      const nobody = hub.publish('nobody', 'x')
      const [toNobody, walkedForNobody] = [delivered, steps]
      await nobody
      expect(toNobody).to.equal(0)
      expect(walkedForNobody).to.be.at.most(8)
    } finally {
      Subscriber.prototype.deliver = deliver
      for (const [i, prototype] of iterators.entries()) prototype.next = nexts[i]!
    }
    for (const client of mine) expect(await client.take(1)).to.deep.equal(['x'])
  })

  it('is kept once: the window is all the history of a hub in one process', async () => {
    const hub = makeLarge()
    const logs = new Set<Log<unknown>>()
    // oxlint-disable-next-line typescript/unbound-method -- it is called on a log
    const { append } = Log.prototype
    Log.prototype.append = function (...args: Parameters<typeof append>): number {
      logs.add(this)
      return append.apply(this, args)
    }
    try {
      for (let i = 0; i < 10; i++) await hub.publish('a', 'x')
    } finally {
      Log.prototype.append = append
    }
    expect([...logs].reduce((sum, { events }) => sum + events, 0)).to.equal(10)
    expect(hub.stats().window.events).to.equal(10)
  })

  it('that nobody here wants costs what it says, and no second copy of that as bytes', async () => {
    const hub = makeLarge()
    const size = 10_000
    const before = memory()
    // Each with data of its own, flat.
    for (let i = 0; i < 500; i++) await hub.publish('a', Buffer.alloc(size, `${i} `).toString('latin1'))
    expect((memory() - before) / 500).to.be.below(1.5 * size)
  })

  it('of pieces of longer strings does not keep those', async () => {
    const hub = makeLarge()
    const before = memory()
    for (let i = 0; i < 100; i++) {
      // As a match of a page that was fetched.
      const page = `${i} a piece of the page ${'x'.repeat(1_000_000)}`.replace('x', 'y')
      const piece = page.slice(0, 20)
      await hub.publish(piece, piece)
      await hub.publish('a', { data: page.slice(0, 20), event: page.slice(0, 20), id: piece, comment: page.slice(0, 20) })
    }
    expect((memory() - before) / 200, 'bytes per event').to.be.below(50_000)
  })

  it('that somebody got holds on to no memory of others, with whom it would have shared Node’s pool', async function () {
    this.timeout(30_000)
    const hub = makeLarge()
    const { url } = await serve(koa(sse(), hub.subscriber('a')))
    const client = await connect(url)
    const text = 'x'.repeat(4_000)
    const before = memory()
    for (let i = 0; i < 2_000; i++) {
      await hub.publish('a', 'small')
      // What an app does in between.
      for (let j = 0; j < 3; j++) Buffer.from(text)
    }
    await until(() => client.events.length >= 2_001)
    client.rst()
    await until(() => hub.count() === 0)
    client.text = ''
    client.blocks.length = 0
    expect(hub.stats().window.events).to.equal(2_000)
    expect((memory() - before) / 2_000, 'bytes per event').to.be.below(1_500)
  })

  it('asks the filters of its channel’s subscribers only, once each', async () => {
    const hub = makeLarge()
    const asked: string[] = []
    const app = koa(sse(), async (ctx: Context) => {
      const name = String(ctx.query['name'])
      const filter = ({ data }: HubEvent): boolean => {
        asked.push(`${name} ${data}`)
        return true
      }
      await hub.subscribe(ctx.sse, named(ctx), { filter })
    })
    const { url } = await serve(app)
    for (const name of ['a', 'b', 'c']) await connect(`${url}/?channel=${name}&name=${name}`)
    await connect(`${url}/?channel=a&channel=b&name=ab`)
    await hub.publish('a', '1')
    expect(asked.toSorted()).to.deep.equal(['a 1', 'ab 1'])
    await hub.publish('d', '2')
    expect(asked).to.have.lengthOf(2)
    await hub.broadcast('3')
    expect(asked.slice(2).toSorted()).to.deep.equal(['a 3', 'ab 3', 'b 3', 'c 3'])
  })

  it('is encoded once for each newline in use, and the very same bytes go to every subscriber, live and replayed', async () => {
    const hub = makeLarge()
    const kinds: Record<string, Middleware> = {
      '/lf': sse() as Middleware,
      '/crlf': sse({ newline: '\r\n' }) as Middleware,
      '/cr': sse({ newline: '\r' }) as Middleware,
    }
    const { url } = await serve(koa((ctx, next) => kinds[ctx.path]!(ctx, next), hub.subscriber('a')))
    const join = async (count: number, headers = {}): Promise<void> => {
      const before = hub.count()
      for (let i = 0; i < count; i++) for (const path of Object.keys(kinds)) await connect(`${url}${path}`, { headers })
      await until(() => hub.count() === before + 3 * count)
    }
    await join(10)
    const frames: unknown[] = []
    // oxlint-disable-next-line typescript/unbound-method -- it is called on a stream
    const { sendFrame } = OpenStream.prototype
    OpenStream.prototype.sendFrame = function (frame) {
      frames.push(frame)
      return sendFrame.call(this, frame)
    }
    try {
      const before = hub.position!
      await hub.publish('a', { event: 'e', data: { any: 'thing' } })
      expect(frames).to.have.lengthOf(30)
      expect(new Set(frames).size).to.equal(3)
      await join(2, { 'Last-Event-ID': before })
      await until(() => frames.length === 36)
      expect(new Set(frames).size).to.equal(3)
    } finally {
      OpenStream.prototype.sendFrame = sendFrame
    }
  })

  it('serialises its data once, however many there are to read it', async () => {
    const hub = makeLarge()
    const { url } = await serve(koa(sse(), hub.subscriber('a')))
    const clients: LiveClient[] = []
    for (let i = 0; i < 5; i++) clients.push(await connect(url))
    let serialised = 0
    const data = {
      toJSON: () => {
        serialised++
        return { n: serialised }
      },
    }
    await hub.publish('a', { data })
    expect(serialised).to.equal(1)
    for (const client of clients) {
      await client.event()
      expect(await client.take(1)).to.deep.equal(['{"n":1}'])
    }
    expect(serialised).to.equal(1)
  })
})

describe('a subscription', () => {
  const streamsOf = async (count: number, options: SseOptions): Promise<EventStream[]> => {
    const streams: EventStream[] = []
    const { url } = await serve(koa(sse(options), ctx => void streams.push(ctx.sse.open())))
    for (let i = 0; i < count; i++) await connect(url)
    return streams
  }

  it('has no timer, and adds no listener to what its stream has', async () => {
    const hub = makeLarge()
    const intervals: unknown[] = []
    const { setInterval: every, setTimeout: once } = globalThis
    const streams = await streamsOf(50, { heartbeat: 10_000, stallTimeout: 10_000 })
    const listeners = (): number[] => streams.map(stream => stream.body.eventNames().reduce((sum, name) => sum + stream.body.listenerCount(name), 0))
    const before = { timers: timers(), listeners: listeners() }
    globalThis.setInterval = (...args: Parameters<typeof every>) => (intervals.push(args), every(...args))
    globalThis.setTimeout = ((...args: Parameters<typeof once>) => (intervals.push(args), once(...args))) as typeof once
    try {
      for (const stream of streams) void hub.subscribe(stream, ['a', 'b'], { filter: () => true })
      void hub.publish('a', 'x')
    } finally {
      globalThis.setInterval = every
      globalThis.setTimeout = once
    }
    await until(() => hub.stats().delivered === 50)
    expect(intervals).to.deep.equal([])
    expect(timers() - before.timers).to.equal(0)
    expect(listeners()).to.deep.equal(before.listeners)
    expect(hub.eventNames()).to.deep.equal([])
  })

  it('has no function of its own: what it can do is on the prototype', async () => {
    const hub = makeLarge()
    const [stream] = await streamsOf(1, {})
    const subscription = await hub.subscribe(stream!, 'a')
    for (const key of Reflect.ownKeys(subscription)) expect(typeof Reflect.get(subscription, key), String(key)).not.to.equal('function')
  })

  it('that comes and goes 20 000 times on one stream leaves nothing behind', async function () {
    this.timeout(20_000)
    const hub = makeLarge()
    const [stream] = await streamsOf(1, { highWaterMark: 16_000_000, maxBuffer: 64_000_000 })
    const comeAndGo = async (count: number): Promise<void> => {
      for (let i = 0; i < count; i++) {
        const subscription = await hub.subscribe(stream!, [`c${i}`, 'all'], { filter: () => true })
        subscription.close()
        if (i % 1_000 === 0) await new Promise(resolve => setImmediate(resolve))
      }
    }
    await comeAndGo(2_000)
    const settled = async (): Promise<number> => {
      await new Promise(resolve => setTimeout(resolve, 50))
      return heap()
    }
    const before = await settled()
    await comeAndGo(20_000)
    const growth = (await settled()) - before
    expect([hub.count(), [...hub.channels()].length]).to.deep.equal([0, 0])
    // The client of this test keeps what it has read: 100 bytes and an event each; that is below 600 bytes.
    expect(growth / 20_000).to.be.below(700)
  })
})

describe('clients that come and go', () => {
  it('leave nothing behind: no stream, no channel, no memory', async function () {
    this.timeout(30_000)
    const hub = makeLarge()
    const kept: WeakRef<EventStream>[] = []
    let leave: (() => void)[] = []
    const app = koa(sse(), async (ctx: Context) => {
      kept.push(new WeakRef(ctx.sse))
      const { sse: stream } = ctx
      await hub.subscribe(stream, [...named(ctx), 'all'], { filter: () => true })
      leave.push(() => stream.close())
    })
    const { url, sockets } = await serve(app)
    const agent = new Agent({ keepAlive: true, maxSockets: 20 })
    let visits = 0
    /** Comes, sees the position, and is shown out, so that the connection serves the next one. */
    const visit = async (): Promise<void> => {
      const res = await new Promise<IncomingMessage>((resolve, reject) => {
        request(`${url}/?channel=c${visits++}`, { agent }, resolve).on('error', reject).end()
      })
      const ended = new Promise(resolve => res.on('close', resolve))
      res.resume()
      await ended
    }
    const shown = setInterval(() => {
      const now = leave
      leave = []
      for (const each of now) each()
    }, 1)
    const crowd = async (count: number): Promise<void> => {
      await Promise.all(
        Array.from({ length: 20 }, async () => {
          for (let i = 0; i < count / 20; i++) await visit()
        }),
      )
      await until(() => hub.count() === 0)
      await new Promise(resolve => setTimeout(resolve, 30))
    }
    try {
      // Until the engine has compiled what there is to compile.
      await crowd(3_000)
      kept.length = 0
      const before = heap()
      await crowd(3_000)
      expect(sockets.size).to.be.at.most(20)
      expect([hub.count(), [...hub.channels()].length, hub.has('all')]).to.deep.equal([0, 0, false])
      leave = []
      collect()
      await new Promise(resolve => setTimeout(resolve, 10))
      collect()
      // The last on each connection may be held by Node until the next one comes.
      expect(kept.filter(ref => ref.deref() !== undefined).length).to.be.at.most(20)
      kept.length = 0
      expect((heap() - before) / 3_000, 'bytes per visit').to.be.below(150)
      expect(app.errors).to.deep.equal([])
    } finally {
      clearInterval(shown)
      agent.destroy()
    }
  })

  it('by breaking their connections leave nothing behind either', async function () {
    this.timeout(30_000)
    const hub = makeLarge()
    const kept: WeakRef<EventStream>[] = []
    const app = koa(sse(), async (ctx: Context) => {
      kept.push(new WeakRef(ctx.sse))
      await hub.subscribe(ctx.sse, named(ctx))
    })
    const { url, sockets } = await serve(app)
    for (let i = 0; i < 30; i++) {
      const clients = await Promise.all(Array.from({ length: 10 }, (_, j) => connect(`${url}/?channel=c${i}:${j}`)))
      for (const client of clients) client.rst()
    }
    await until(() => hub.count() === 0 && sockets.size === 0)
    expect([...hub.channels()]).to.deep.equal([])
    collect()
    await new Promise(resolve => setTimeout(resolve, 10))
    collect()
    expect(kept.filter(ref => ref.deref() !== undefined).length).to.be.at.most(5)
    expect(app.errors).to.deep.equal([])
  })
})
