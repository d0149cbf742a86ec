import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { expect } from 'chai'
import type { Context } from 'koa'
import { Hub, MemoryBroker, sse, type EventStream, type SseOptions, type Subscription } from 'koa-sse'
import { connect, type LiveClient } from './support/client.ts'
import { koa, serve, until, type TestServer } from './support/serve.ts'

interface Started extends TestServer {
  hub: Hub
  streams: EventStream[]
  errors: unknown[]
}

const start = async (options: SseOptions = {}, hub = new Hub()): Promise<Started> => {
  const streams: EventStream[] = []
  const app = koa(
    (ctx, next) => {
      ctx.set('X-Test', 'x')
      return next()
    },
    sse({ heartbeat: false, ...options }),
    (ctx: Context, next) => {
      streams.push(ctx.sse)
      return next()
    },
    hub.subscriber((ctx: Context) => ctx.query['channel'] ?? 'news'),
  )
  return { hub, streams, errors: app.errors, ...(await serve(app)) }
}

const readers = async ({ url, hub }: Started, count: number): Promise<LiveClient[]> => {
  const clients = await Promise.all(Array.from({ length: count }, () => connect(url)))
  await until(() => hub.count() >= count)
  return clients
}

/** A client that reads nothing, and whose stream the kernel takes nothing of any more. */
const stalled = async (it: Started): Promise<LiveClient> => {
  const client = await connect(`${it.url}/?channel=flood`)
  const stream = it.streams.at(-1)!
  client.pause()
  for (let sent = -1; sent !== stream.eventsSent;) {
    sent = stream.eventsSent
    await it.hub.publish('flood', 'x'.repeat(500_000))
    await new Promise(resolve => setTimeout(resolve, 20))
  }
  return client
}

/** How long it took. */
const timed = async (promise: Promise<unknown>): Promise<number> => {
  const before = performance.now()
  await promise
  return performance.now() - before
}

const serverClosed = (it: TestServer): Promise<unknown> => new Promise(resolve => it.server.close(resolve))

describe('hub.close()', () => {
  it('gives every reader the farewell and a retry of its own, and ends all cleanly', async () => {
    const it = await start()
    const clients = await readers(it, 20)
    const took = await timed(it.hub.close({ event: { event: 'bye', data: { until: 'soon' } }, retry: 10_000 }))
    for (const client of clients) {
      expect(await client.ended).to.equal('clean')
      expect(client.events.at(-1)).to.include({ event: 'bye', data: '{"until":"soon"}' })
      expect(client.retry).to.be.within(10_000, 20_000)
    }
    expect(new Set(clients.map(({ retry }) => retry)).size).to.be.above(15)
    expect(took).to.be.below(3_000)
    expect(it.errors).to.deep.equal([])
    await Promise.all(it.streams.map(async ({ closed }) => expect(await closed).to.equal('shutdown')))
  })

  it('tells each client 2–4 s without options, and no event', async () => {
    const it = await start()
    const clients = await readers(it, 10)
    await it.hub.close()
    for (const client of clients) {
      expect(await client.ended).to.equal('clean')
      expect(client.events.map(({ event }) => event)).to.deep.equal(['stream-position'])
      expect(client.retry).to.be.within(2_000, 4_000)
    }
    expect(new Set(clients.map(({ retry }) => retry)).size).to.be.above(5)
  })

  it('writes the farewell with the newline of each stream', async () => {
    const it = await start({ newline: '\r\n' })
    const [client] = await readers(it, 1)
    await it.hub.close({ event: 'bye', retry: 0 })
    await client!.ended
    expect(client!.text).to.match(/\r\n\r\ndata: bye\r\nretry: 0\r\n\r\n$/)
  })

  it('keeps its deadline with readers, stalled readers and a crowd that comes back; then the server closes', async function () {
    this.timeout(20_000)
    const it = await start()
    const reading = await readers(it, 20)
    const mutes = [await stalled(it), await stalled(it)]
    const crowding = { over: false }
    let came = 0
    const answers: LiveClient[] = []
    const crowd = Array.from({ length: 10 }, async () => {
      while (!crowding.over) {
        const client = await connect(it.url)
        came++
        if (crowding.over) return
        answers.push(client)
        await client.ended
        await new Promise(resolve => setTimeout(resolve, 2))
      }
    })
    await until(() => came === 10)
    const before = answers.length
    const took = await timed(it.hub.close({ event: 'bye', graceMs: 400 }))
    await until(() => answers.length > before + 10)
    crowding.over = true
    expect(took).to.be.below(900)
    for (const client of reading) {
      expect(await client.ended).to.equal('clean')
      expect(client.events.at(-1)!.data).to.equal('bye')
    }
    for (const mute of mutes) {
      mute.resume()
      expect(await mute.ended).to.equal('cut')
    }
    for (const client of answers.slice(before)) {
      expect(client.status).to.equal(200)
      expect(client.headers['content-type']).to.equal('text/event-stream')
      expect(client.headers['x-test']).to.equal('x')
      expect(await client.ended).to.equal('clean')
      expect(client.events).to.deep.equal([])
      expect(client.retry).to.be.above(0)
    }
    await Promise.all(crowd)
    expect(await timed(serverClosed(it))).to.be.below(1_000)
    expect(it.errors).to.deep.equal([])
    expect(it.hub.count()).to.equal(0)
  })

  it('tells who comes while it closes another time each', async () => {
    const it = await start({ retry: 500 })
    await stalled(it)
    const closing = it.hub.close({ graceMs: 300 })
    const retries = new Set<number | undefined>()
    for (let i = 0; i < 12; i++) {
      const client = await connect(it.url)
      expect(client.status).to.equal(200)
      expect(await client.ended).to.equal('clean')
      expect(client.retry).to.be.within(500, 1_000)
      retries.add(client.retry)
    }
    expect(retries.size).to.be.above(6)
    await closing
    expect(it.errors).to.deep.equal([])
  })

  it('lets publishes arrive first that are under way, and no more than those', async () => {
    const broker = new MemoryBroker()
    const publish = broker.publish.bind(broker)
    broker.publish = async (channel, event) => {
      await new Promise(resolve => setTimeout(resolve, 30))
      return publish(channel, event)
    }
    const it = await start({}, new Hub({ broker }))
    const [client] = await readers(it, 1)
    const published = [it.hub.publish('news', '1'), it.hub.publish('news', '2')]
    const closing = timed(it.hub.close({ event: 'bye', graceMs: 40_000 }))
    const late = await it.hub.publish('news', 'late').then(
      () => undefined,
      (error: unknown) => error,
    )
    expect(late).to.have.property('code', 'ERR_SSE_HUB_CLOSED')
    // They are waited for, and not what there is of time for them.
    expect(await closing).to.be.below(5_000)
    expect(await Promise.all(published)).to.have.lengthOf(2)
    expect(await client!.ended).to.equal('clean')
    expect(client!.events.slice(1).map(({ data }) => data)).to.deep.equal(['1', '2', 'bye'])
  })

  it('has what is under way fail, though nobody waits for it: that ends no process', async () => {
    const broker = new MemoryBroker()
    const failed: ((error: Error) => void)[] = []
    broker.publish = () => new Promise((_, reject) => failed.push(reject))
    const hub = new Hub({ broker })
    void hub.publish('news', 'x')
    await until(() => failed.length === 1)
    const closing = hub.close()
    failed[0]!(new Error('gone'))
    await closing
    await new Promise(resolve => setImmediate(resolve))
  })

  it('keeps its deadline with a broker that answers nothing any more', async () => {
    const broker = new MemoryBroker()
    broker.publish = () => new Promise(() => {})
    broker.close = () => new Promise(() => {})
    const it = await start({}, new Hub({ broker }))
    const [client] = await readers(it, 1)
    void it.hub.publish('news', 'never')
    const took = await timed(it.hub.close({ event: 'bye', graceMs: 400 }))
    expect(took).to.be.below(900)
    expect(await client!.ended).to.equal('clean')
    expect(client!.events.at(-1)!.data).to.equal('bye')
  })

  it('closes nothing for a wrong farewell, and may be called again', async () => {
    const it = await start()
    const [client] = await readers(it, 1)
    for (const event of [5, {}, { type: 'bye' }, { id: 'a\nb' }]) {
      expect(() => it.hub.close({ event: event as never })).to.throw(TypeError)
    }
    await it.hub.publish('news', 'still open')
    await client!.event()
    expect(await client!.take(1)).to.deep.equal(['still open'])
    expect(it.hub.count()).to.equal(1)
    await it.hub.close({ event: 'bye' })
    expect(await client!.ended).to.equal('clean')
    expect(client!.events.at(-1)!.data).to.equal('bye')
  })

  it('says the farewell as it was at the call, and serialises it once', async () => {
    const it = await start()
    const clients = await readers(it, 2)
    let serialised = 0
    // A mistake that shows from the second time on.
    const data = {
      toJSON() {
        if (++serialised > 1) throw new Error('read again')
        return 'bye'
      },
    }
    const event: { event?: string; data?: unknown } = { event: 'farewell', data }
    // It is told after what is under way.
    const published = it.hub.publish('news', 'last news')
    const closed = it.hub.close({ event })
    event.event = 'a\nb'
    event.data = 1n
    await Promise.all([published, closed])
    for (const client of clients) {
      expect(await client.ended).to.equal('clean')
      expect(client.events.slice(1).map(each => [each.event, each.data])).to.deep.equal([
        [undefined, 'last news'],
        ['farewell', '"bye"'],
      ])
    }
  })

  it('says a farewell of a class, with accessors', async () => {
    class Bye {
      get event(): string {
        return 'farewell'
      }
      get data(): string {
        return 'bye'
      }
    }
    const it = await start()
    const [client] = await readers(it, 1)
    await it.hub.close({ event: new Bye() })
    expect(await client!.ended).to.equal('clean')
    expect(client!.events.at(-1)).to.deep.include({ event: 'farewell', data: 'bye' })
  })

  it('returns the same promise again, whatever is asked', async () => {
    const { hub } = await start()
    const first = hub.close({ graceMs: 100 })
    expect(hub.close()).to.equal(first)
    expect(hub.close({ event: 'other' })).to.equal(first)
    await first
    expect(hub.close()).to.equal(first)
  })

  it('resolves at once, nearly, without subscribers', async () => {
    expect(await timed(new Hub().close())).to.be.below(100)
  })

  it('tells of every subscription’s end', async () => {
    const it = await start()
    await readers(it, 5)
    const gone: Subscription[] = []
    it.hub.on('unsubscribe', subscription => gone.push(subscription))
    await it.hub.close()
    expect(gone).to.have.lengthOf(5)
  })

  it('refuses what a listener publishes meanwhile, though nobody waits for it: that ends no process', async () => {
    const it = await start()
    await readers(it, 2)
    const published: Promise<string>[] = []
    it.hub.on('unsubscribe', () => published.push(it.hub.publish('news', 'somebody left')))
    await it.hub.close()
    expect(published).to.have.lengthOf(2)
    // An unhandled rejection fails the test by then.
    await new Promise(resolve => setImmediate(resolve))
    for (const each of published) expect(await each.catch(({ code }: { code: string }) => code)).to.equal('ERR_SSE_HUB_CLOSED')
    expect(it.errors).to.deep.equal([])
  })

  it('stops its pipes and releases their sources', async () => {
    const { hub } = await start()
    let released = false
    let signal: AbortSignal | undefined
    const piped = hub.pipe('news', itsSignal => {
      signal = itsSignal
      return {
        [Symbol.asyncIterator]: () => ({
          next: () => new Promise<IteratorResult<string>>(() => {}),
          return: async () => {
            released = true
            return { done: true as const, value: undefined }
          },
        }),
      }
    })
    const outcome = piped.then(
      () => undefined,
      (error: unknown) => error,
    )
    await until(() => signal !== undefined)
    await new Promise(resolve => setImmediate(resolve))
    await hub.close()
    expect(await outcome).to.have.property('code', 'ERR_SSE_HUB_CLOSED')
    expect(released).to.equal(true)
    expect(signal!.aborted).to.equal(true)
  })

  it('reaches those that wait for a broker that never started', async () => {
    const broker = new MemoryBroker()
    broker.start = () => new Promise(() => {})
    const it = await start({}, new Hub({ broker }))
    const [client] = await readers(it, 1)
    const published = it.hub.publish('news', 'x').catch((error: unknown) => error)
    const took = await timed(it.hub.close({ event: 'bye', graceMs: 400 }))
    expect(took).to.be.below(900)
    expect(await client!.ended).to.equal('clean')
    expect(client!.events.at(-1)!.data).to.equal('bye')
    void published
  })

  it('leaves streams alone that are not subscribed to it', async () => {
    const hub = new Hub()
    const { url } = await serve(
      koa(sse(), async ctx => {
        const subscription = await hub.subscribe(ctx.sse, 'news')
        subscription.close()
        await ctx.sse.send('by hand')
      }),
    )
    const client = await connect(url)
    await client.event()
    await hub.close()
    expect(await client.take(1)).to.deep.equal(['by hand'])
    expect(client.retry).to.equal(undefined)
  })
})

describe('a SIGTERM', () => {
  const boot = async (): Promise<{ url: string; exited: Promise<[number | null, string | null]>; kill: () => void; output: string[] }> => {
    const child = spawn(process.execPath, ['--import', 'tsx', '--conditions', '@koa-sse/source', 'test/fixtures/sigterm.ts'], {
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    const exited = once(child, 'exit') as Promise<[number | null, string | null]>
    const output: string[] = []
    child.stderr.on('data', data => output.push(String(data)))
    const lines = createInterface(child.stdout)
    const [line] = (await once(lines, 'line')) as [string]
    return { url: line, exited, kill: () => child.kill('SIGTERM'), output }
  }

  it('ends a real process with 0, in time, whoever reads or does not', async function () {
    this.timeout(20_000)
    const { url, exited, kill, output } = await boot()
    const clients = await Promise.all(Array.from({ length: 5 }, () => connect(`${url}/events`)))
    const mute = await connect(`${url}/events?flood`)
    mute.pause()
    for (const client of clients) await client.event()
    // Long enough for the mute one's buffers to be full.
    await new Promise(resolve => setTimeout(resolve, 300))
    const before = performance.now()
    kill()
    const [code, signal] = await exited
    expect([code, signal], output.join('')).to.deep.equal([0, null])
    expect(performance.now() - before).to.be.below(4_000)
    for (const client of clients) {
      expect(await client.ended).to.equal('clean')
      expect(client.events.at(-1)).to.include({ event: 'bye' })
      expect(client.retry).to.be.within(2_000, 4_000)
    }
    expect(output.join('')).to.equal('')
  })

  it('ends one that serves nobody at once', async function () {
    this.timeout(20_000)
    const { exited, kill } = await boot()
    const before = performance.now()
    kill()
    expect(await exited).to.deep.equal([0, null])
    expect(performance.now() - before).to.be.below(1_500)
  })
})
