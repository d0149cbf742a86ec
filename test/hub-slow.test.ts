import type { Socket } from 'node:net'
import { expect } from 'chai'
import type { Context } from 'koa'
import { sse, type EventStream, type Hub, type HubEvent, type HubOptions, type SseOptions } from 'koa-sse'
import { connect, type LiveClient } from './support/client.ts'
import { makeHub } from './support/hub.ts'
import { memory } from './support/heap.ts'
import { koa, serve, until } from './support/serve.ts'

const READERS = 300
const KILOBYTE = 1_024
const MEGABYTE = 1_048_576

interface Started {
  hub: Hub
  streams: EventStream[]
  errors: unknown[]
  url: string
  join: (query?: string, headers?: Record<string, string>) => Promise<LiveClient>
}

/** A client's channels are those of its query, else `news`. */
const start = async (history: HubOptions['history'], options: SseOptions = {}): Promise<Started> => {
  const hub = makeHub({ history })
  const streams: EventStream[] = []
  const app = koa(sse({ heartbeat: false, ...options }), async (ctx: Context) => {
    streams.push(ctx.sse)
    await hub.subscribe(ctx.sse, ctx.query['channel'] ?? 'news')
  })
  const { url } = await serve(app)
  const join = async (query = '', headers = {}): Promise<LiveClient> => connect(`${url}/?${query}`, { headers })
  return { hub, streams, errors: app.errors, url, join }
}

/** Resolves when a client's stream holds bytes that the kernel does not take. */
const filled = async (hub: Hub, stream: EventStream, channel: string): Promise<number> => {
  const text = 'x'.repeat(256 * KILOBYTE)
  let sent = 0
  for (let delivered = -1; stream.eventsSent !== delivered; sent++) {
    delivered = stream.eventsSent
    await hub.publish(channel, `${sent} ${text}`)
    // It may take more after a while, on a busy machine.
    for (let quiet = 0; quiet < 160 && stream.eventsSent === delivered; quiet++) await new Promise(resolve => setTimeout(resolve, 2))
  }
  return sent
}

describe('a client that never reads', () => {
  it(`among ${READERS} that do costs them no event and no time, and the server a number`, async function () {
    this.timeout(30_000)
    const { hub, streams, join } = await start({ events: 50 })
    const mute = await join('channel=news&channel=heavy')
    mute.pause()
    const [stream] = streams
    const readers: LiveClient[] = []
    for (let i = 0; i < READERS; i++) readers.push(await join())
    await until(() => hub.count('news') === READERS + 1)
    await filled(hub, stream!, 'heavy')
    for (let i = 0; i < 50; i++) await hub.publish('heavy', `${i}${'w'.repeat(256 * KILOBYTE)}`)
    const before = { memory: memory(), sent: stream!.eventsSent, bytes: stream!.bytesWritten }

    const published: string[] = []
    for (let i = 0; i < 60; i++) {
      const text = `${i} ${'n'.repeat(100)}`
      published.push(text)
      // Each has come to all the rest before the next one is published, although the mute one holds out.
      await hub.publish('news', text)
      if (i % 20 === 0) await until(() => readers.every(({ events }) => events.length === i + 2))
    }
    await until(() => readers.every(({ events }) => events.length === 61))
    for (const { events } of readers) expect(events.slice(1).map(({ data }) => data)).to.deep.equal(published)

    for (let i = 0; i < 200; i++) await hub.publish('heavy', `${i}${'y'.repeat(256 * KILOBYTE)}`)
    expect(stream!.eventsSent, 'what was sent to the mute one meanwhile').to.equal(before.sent)
    expect(stream!.bytesWritten).to.equal(before.bytes)
    // The window was full before; 50 MB were published.
    expect(memory() - before.memory).to.be.below(8 * MEGABYTE)
    expect(stream!.connected).to.equal(true)
  })

  it('holds what it cannot take once only, however many such there are', async () => {
    const { hub, streams, join } = await start({ events: 4 })
    const mutes: LiveClient[] = []
    for (let i = 0; i < 20; i++) {
      mutes.push(await join())
      mutes[i]!.pause()
    }
    await until(() => streams.length === 20)
    const text = 'x'.repeat(512 * KILOBYTE)
    // Until none of them takes any more.
    for (let sent = -1; sent !== hub.stats().delivered;) {
      sent = hub.stats().delivered
      await hub.publish('news', text)
      await new Promise(resolve => setTimeout(resolve, 20))
    }
    const { delivered } = hub.stats()
    const before = memory()
    for (let i = 0; i < 100; i++) await hub.publish('news', `${i}${'y'.repeat(512 * KILOBYTE)}`)
    expect(memory() - before).to.be.below(6 * MEGABYTE)
    expect(hub.stats().delivered).to.equal(delivered)
  })

  it('is told in a stream-reset, reason slow, when it reads again and the window has gone on; then come live events', async () => {
    const { hub, streams, join } = await start({ events: 5 })
    const client = await join()
    await client.event()
    client.pause()
    const sent = await filled(hub, streams[0]!, 'news')
    const ids: string[] = []
    for (let i = 0; i < 20; i++) ids.push(await hub.publish('news', `late ${i}`))
    client.resume()
    const seen: string[] = []
    let event = await client.event()
    for (; event.event !== 'stream-reset'; event = await client.event()) seen.push(event.data.split(' ')[0]!)
    expect(JSON.parse(event.data)).to.deep.equal({ reason: 'slow' })
    expect(event.id).to.equal(ids.at(-1))
    expect(seen.length).to.be.within(1, sent)
    expect(seen).to.deep.equal(seen.map((_, i) => `${i}`))
    expect(hub.stats().resets).to.deep.equal({ slow: 1 })
    const live = await hub.publish('news', 'live')
    expect(await client.event()).to.include({ id: live, data: 'live' })
  })

  it('gets it all, in order, when it reads again and the window holds it', async () => {
    const { hub, streams, join } = await start({})
    const client = await join()
    await client.event()
    client.pause()
    const sent = await filled(hub, streams[0]!, 'news')
    const others = await join('channel=other')
    for (let i = 0; i < 500; i++) await hub.publish(i % 2 === 0 ? 'news' : 'other', `${sent + i / 2} ${'z'.repeat(1_000)}`)
    await hub.broadcast(`${sent + 250} all`)
    client.resume()
    const seen = await client.take(sent + 251)
    expect(seen.map(data => data.split(' ')[0])).to.deep.equal(seen.map((_, i) => `${i}`))
    await hub.publish('news', 'live')
    expect(await client.take(1)).to.deep.equal(['live'])
    expect(hub.stats().resets).to.deep.equal({})
    await others.event()
    expect(await others.take(251)).to.have.lengthOf(251)
  })

  it('is asked its filter for the events that it catches up with, too', async () => {
    const hub = makeHub()
    let stream: EventStream | undefined
    const filter = ({ data }: HubEvent): boolean => !data!.startsWith('no')
    const { url } = await serve(
      koa(sse(), async ctx => {
        stream = ctx.sse
        await hub.subscribe(ctx.sse, 'news', { filter })
      }),
    )
    const client = await connect(url)
    await client.event()
    client.pause()
    const sent = await filled(hub, stream!, 'news')
    for (let i = 0; i < 10; i++) await hub.publish('news', i % 2 === 0 ? `no ${i}` : `yes ${i}`)
    client.resume()
    const seen = await client.take(sent + 5)
    expect(seen.slice(sent)).to.deep.equal(['yes 1', 'yes 3', 'yes 5', 'yes 7', 'yes 9'])
  })

  it('is ended after stallTimeout, reason stalled, and leaves nothing behind', async () => {
    const { hub, streams, join, errors } = await start({ events: 5 }, { stallTimeout: 150 })
    const client = await join()
    const reader = await join()
    await client.event()
    client.pause()
    const [stream] = streams
    const { closed } = stream!
    await filled(hub, stream!, 'news')
    expect(await closed).to.equal('stalled')
    expect(hub.count()).to.equal(1)
    client.resume()
    expect(await client.ended).to.equal('cut')
    await hub.publish('news', 'end')
    await until(() => reader.events.at(-1)?.data === 'end')
    expect(errors).to.deep.equal([])
  })

  it('comes back after that with its last id and is resumed, or told', async () => {
    const { hub, streams, join } = await start({ events: 30 }, { stallTimeout: 150 })
    const client = await join()
    await client.event()
    client.pause()
    const { closed } = streams[0]!
    await filled(hub, streams[0]!, 'news')
    await closed
    const last = await hub.publish('news', 'last')
    client.resume()
    await client.ended
    const { id } = client.events.at(-1)!
    const back = await join('', { 'Last-Event-ID': id! })
    const seen: (string | undefined)[] = []
    while (seen.at(-1) !== last) seen.push((await back.event()).id)
    expect(back.events.every(({ event }) => event === undefined || event === 'stream-reset')).to.equal(true)
  })
})

const sockets = new WeakMap<EventStream, Socket>()

describe('a broken subscriber disturbs nobody', () => {
  const several = async (
    count: number,
    filterOf: (i: number, streams: EventStream[], hub: Hub) => ((event: HubEvent) => boolean) | undefined,
  ): Promise<{ hub: Hub; clients: LiveClient[]; streams: EventStream[]; errors: unknown[] }> => {
    const hub = makeHub()
    const streams: EventStream[] = []
    const app = koa(sse(), async ctx => {
      const filter = filterOf(streams.length, streams, hub)
      streams.push(ctx.sse)
      sockets.set(ctx.sse, ctx.req.socket)
      await hub.subscribe(ctx.sse, 'news', { filter })
    })
    const { url } = await serve(app)
    const clients: LiveClient[] = []
    for (let i = 0; i < count; i++) {
      clients.push(await connect(url))
      await clients[i]!.event()
    }
    return { hub, clients, streams, errors: app.errors }
  }

  const numbers = (count: number): string[] => Array.from({ length: count }, (_, i) => `${i}`)

  it('when its filter throws', async () => {
    const throwing = (): boolean => {
      throw new Error('filter')
    }
    const { hub, clients, errors } = await several(9, i => (i % 3 === 0 ? throwing : undefined))
    const faults: unknown[] = []
    hub.on('error', error => faults.push(error))
    for (const data of numbers(5)) await hub.publish('news', data)
    for (const [i, client] of clients.entries()) if (i % 3 !== 0) expect(await client.take(5)).to.deep.equal(numbers(5))
    expect(faults).to.have.lengthOf(15)
    expect(errors).to.deep.equal([])
    expect(clients[0]!.events).to.have.lengthOf(1)
  })

  it('when its filter throws, and a listener for the hub’s errors throws too', async () => {
    const throwing = (): boolean => {
      throw new Error('filter')
    }
    const { hub, clients } = await several(3, i => (i === 0 ? throwing : undefined))
    hub.on('error', error => {
      throw error
    })
    await hub.publish('news', 'x').catch(() => {})
    for (const client of clients.slice(1)) expect(await client.take(1)).to.deep.equal(['x'])
  })

  for (const [how, end] of [
    ['is closed', (stream: EventStream): void => stream.close()],
    ['loses its connection', (stream: EventStream): unknown => sockets.get(stream)!.destroy()],
    ['is disconnected by the hub', (stream: EventStream, hub: Hub): unknown => hub.disconnect(each => each.stream === stream)],
  ] as const) {
    it(`when it ${how} in the middle of a publish, by another’s filter`, async () => {
      const { hub, clients, streams, errors } = await several(9, (i, all, itsHub) =>
        i === 4
          ? ({ data }) => {
              if (data === '2') for (const other of [0, 3, 5, 8]) end(all[other]!, itsHub)
              return true
            }
          : undefined,
      )
      for (const data of numbers(6)) await hub.publish('news', data)
      for (const i of [1, 2, 4, 6, 7]) expect(await clients[i]!.take(6), `client ${i}`).to.deep.equal(numbers(6))
      for (const i of [0, 3, 5, 8]) {
        await clients[i]!.ended
        const data = clients[i]!.events.slice(1).map(event => event.data)
        expect(data).to.deep.equal(numbers(data.length))
        expect(data.length).to.be.at.most(3)
        expect(streams[i]!.connected).to.equal(false)
      }
      expect(hub.count('news')).to.equal(5)
      expect(errors).to.deep.equal([])
    })
  }

  it('when its client resets the connection while events go out', async () => {
    const { hub, clients, errors } = await several(6, () => undefined)
    for (let i = 0; i < 200; i++) {
      void hub.publish('news', `${i}`)
      if (i === 50) clients[0]!.rst()
      if (i === 100) clients[1]!.fin()
      if (i % 10 === 0) await new Promise(resolve => setImmediate(resolve))
    }
    for (const client of clients.slice(2)) expect(await client.take(200)).to.deep.equal(numbers(200))
    await until(() => hub.count() === 4)
    expect(errors).to.deep.equal([])
  })
})
