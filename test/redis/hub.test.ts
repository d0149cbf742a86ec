import { AsyncLocalStorage } from 'node:async_hooks'
import { expect } from 'chai'
import { Hub } from '../../src/hub.ts'
import { sse } from '../../src/middleware.ts'
import { RedisBroker, type Parts } from '../../src/redis/redis-broker.ts'
import type { RedisBrokerOptions } from '../../src/redis/redis-options.ts'
import { connect, type LiveClient } from '../support/client.ts'
import { hasRedis, needsRedis, Proxy, RedisServer } from '../support/redis.ts'
import { koa, serve, until } from '../support/serve.ts'
import { KEY, rejection } from './support.ts'

describe('a hub on RedisBroker', function () {
  this.timeout(20_000)
  needsRedis()
  let server: RedisServer
  const hubs: Hub[] = []
  beforeEach(async () => {
    if (hasRedis) server = await RedisServer.start({ persistent: true })
  })
  afterEach(async () => {
    await Promise.all(hubs.splice(0).map(async hub => hub.close({ graceMs: 500 })))
    await server?.stop()
  })

  const start = async (
    options: RedisBrokerOptions = {},
    parts: Parts = {},
    history?: { events: number },
  ): Promise<{ hub: Hub; open: (id?: string) => Promise<LiveClient> }> => {
    const hub = new Hub({ broker: new RedisBroker({ redis: server.options, ...options }, { block: 300, ...parts }), ...(history && { history }) })
    hubs.push(hub)
    const app = koa(sse({ heartbeat: 200 }), hub.subscriber('news'))
    const { url } = await serve(app)
    return { hub, open: async id => connect(url, id === undefined ? {} : { headers: { 'Last-Event-ID': id } }) }
  }
  const up = async ({ hub }: { hub: Hub }): Promise<void> => until(() => hub.stats().broker.up)

  it('lets clients wait with heartbeats while Redis is not there, and then tells them their position', async () => {
    await server.kill()
    const node = await start()
    const client = await node.open()
    expect(client.status).to.equal(200)
    for (let i = 0; i < 3; i++) expect(await client.next()).to.have.property('comment')
    await server.up()
    expect(await client.event()).to.include({ event: 'stream-position', data: '' })
    await node.hub.publish('news', 'live')
    expect(await client.take(1)).to.deep.equal(['live'])
  })

  it("asks nobody's filter in the async context of the request that it was made for", async () => {
    const storage = new AsyncLocalStorage<object>()
    const seen: unknown[] = []
    const hub = storage.run({}, () => new Hub({ broker: new RedisBroker({ redis: server.options }, { block: 300 }) }))
    hubs.push(hub)
    const { url } = await serve(koa(sse(), hub.subscriber('news', { filter: () => seen.push(storage.getStore()) > 0 })))
    const client = await connect(url)
    expect(await client.event()).to.include({ event: 'stream-position' })
    await hub.publish('news', 'x')
    expect(await client.take(1)).to.deep.equal(['x'])
    expect(seen).to.deep.equal([undefined])
  })

  it('keeps clients while Redis is away, and gives them what was published meanwhile', async () => {
    const [a, b] = [await start(), await start()]
    await Promise.all([up(a), up(b)])
    const client = await a.open()
    await client.event()
    await server.kill()
    const published = [a.hub.publish('news', '1'), a.hub.publish('news', '2')]
    for (let i = 0; i < 2; i++) expect(await client.next()).to.have.property('comment')
    await server.up()
    const ids = await Promise.all(published)
    expect([(await client.event()).id, (await client.event()).id]).to.deep.equal(ids)
    await b.hub.publish('news', '3')
    expect(await client.take(1)).to.deep.equal(['3'])
    expect(a.hub.stats().resets).to.deep.equal({})
  })

  it('rejects publishes in time while Redis is away, and says that the broker is down', async () => {
    const node = await start({ publishTimeout: 300 }, { heartbeat: 200 })
    await up(node)
    await server.kill()
    expect(await rejection(node.hub.publish('news', 'x'))).to.include({ name: 'SseError', code: 'ERR_SSE_BROKER_UNAVAILABLE' })
    await until(() => !node.hub.stats().broker.up)
  })

  it('resets every client of every node when Redis comes back empty, and those that come back later with an older id', async () => {
    const [a, b] = [await start(), await start()]
    await Promise.all([up(a), up(b)])
    const clients = [await a.open(), await b.open()]
    for (const client of clients) await client.event()
    const old = await a.hub.publish('news', 'old')
    for (const client of clients) expect(await client.take(1)).to.deep.equal(['old'])
    await server.restart({ data: false })
    for (const client of clients) {
      const reset = await client.event()
      expect([reset.event, reset.data]).to.deep.equal(['stream-reset', '{"reason":"lost"}'])
      expect(reset.id).not.to.equal(old)
    }
    await b.hub.publish('news', 'new')
    for (const client of clients) expect(await client.take(1)).to.deep.equal(['new'])
    expect((await (await b.open(old)).event()).data).to.equal('{"reason":"unknown"}')
    expect(a.hub.stats().resets).to.deep.equal({ lost: 1 })
  })

  it('takes a client over from another process, with exactly what it missed', async () => {
    const [a, b] = [await start(), await start()]
    await Promise.all([up(a), up(b)])
    const client = await a.open()
    await client.event()
    const id = await a.hub.publish('news', 'seen')
    expect(await client.take(1)).to.deep.equal(['seen'])
    client.destroy()
    for (let i = 0; i < 5; i++) await (i % 2 === 0 ? a : b).hub.publish('news', `missed ${i}`)
    await a.hub.publish('other', 'not ours')
    const back = await b.open(id)
    await b.hub.publish('news', 'live')
    expect(await back.take(6)).to.deep.equal([...Array.from({ length: 5 }, (_, i) => `missed ${i}`), 'live'])
  })

  it('replays from Redis what its own window has let go of, and resets whoever comes for more than is kept', async () => {
    const node = await start({}, {}, { events: 5 })
    await up(node)
    const ids: string[] = []
    for (let i = 0; i < 50; i++) ids.push(await node.hub.publish('news', `${i}`))
    const client = await node.open(ids[9])
    expect(await client.take(40)).to.deep.equal(Array.from({ length: 40 }, (_, i) => `${i + 10}`))
    await node.hub.publish('news', 'live')
    expect(await client.take(1)).to.deep.equal(['live'])
    // The oldest that is left is the 41st.
    await server.command('XTRIM', KEY, 'MINID', '=', ids[40]!.split('.')[0]!)
    expect(await (await node.open(ids[40])).take(10)).to.deep.equal([...Array.from({ length: 9 }, (_, i) => `${i + 41}`), 'live'])
    // At the boundary nothing is missing yet, but nobody can prove it.
    for (const id of [ids[9], ids[39]]) {
      const { event, data } = await (await node.open(id)).event()
      expect([event, data]).to.deep.equal(['stream-reset', '{"reason":"trimmed"}'])
    }
    expect(node.hub.stats().resets).to.deep.equal({ trimmed: 2 })
  })

  it('does not rewind a client that is ahead of the process that it comes back to', async () => {
    const proxy = await Proxy.start(server.port)
    try {
      const [a, slow] = [await start(), await start({ redis: proxy.options })]
      await Promise.all([up(a), up(slow)])
      proxy.freezeOne(0)
      await a.hub.publish('news', 'seen')
      const ahead = await a.hub.publish('news', 'seen, too')
      const client = await slow.open(ahead)
      await until(() => client.blocks.length > 1)
      expect(client.events).to.deep.equal([])
      await a.hub.publish('news', 'next')
      proxy.thaw()
      expect(await client.take(1)).to.deep.equal(['next'])
      expect(slow.hub.stats().resets).to.deep.equal({})
    } finally {
      await proxy.stop()
    }
  })

  it('gives it nothing again either when nothing has come after what it has', async () => {
    const proxy = await Proxy.start(server.port)
    try {
      const [a, slow] = [await start(), await start({ redis: proxy.options })]
      await Promise.all([up(a), up(slow)])
      proxy.freezeOne(0)
      await a.hub.publish('news', 'seen')
      const ahead = await a.hub.publish('news', 'seen, too')
      const client = await slow.open(ahead)
      proxy.thaw()
      await until(() => slow.hub.position === ahead)
      await a.hub.publish('news', 'next')
      expect(await client.take(1)).to.deep.equal(['next'])
    } finally {
      await proxy.stop()
    }
  })

  it('tells a forged id from a real one, and says no more than to anybody', async () => {
    const node = await start()
    await up(node)
    const id = await node.hub.publish('news', 'x')
    for (const forged of [id.replace(/^\d/, '9'), id.replace(/....$/, 'zzzz'), '$', '0-0', `${id}x`]) {
      const client = await node.open(forged)
      const { event, data } = await client.event()
      expect([event, data], forged).to.deep.equal(['stream-reset', '{"reason":"unknown"}'])
    }
  })

  it('tells a forged id of what is no longer kept the same as a real one, and calls nothing trimmed that it has not followed', async () => {
    const [node, other] = [await start({}, {}, { events: 1 }), await start({}, {}, { events: 1 })]
    await Promise.all([up(node), up(other)])
    const reason = async (of: typeof node, id: string): Promise<string> =>
      (JSON.parse((await (await of.open(id)).event()).data) as { reason: string }).reason
    const ids: string[] = []
    for (let i = 0; i < 4; i++) {
      const id = await node.hub.publish('news', `${i}`)
      ids.push(id)
      // The next one in another millisecond: places of this one are made up below.
      await until(() => Date.now() > Number.parseInt(id))
    }
    const [old, , , kept] = ids as [string, string, string, string]
    await server.command('XTRIM', KEY, 'MINID', '=', kept.split('.')[0]!)
    for (const id of [old, old.replace(/....$/, 'zzzz'), old.replace('-', '-7')]) expect(await reason(node, id)).to.equal('trimmed')
    // It is in the log, or before all that anybody here knows of, or no id at all.
    for (const id of [kept.replace(/....$/, 'zzzz'), kept.replace('-', '-7'), '1-1.aaaa', '$']) expect(await reason(node, id)).to.equal('unknown')
    const late = await start({}, {}, { events: 1 })
    await up(late)
    expect(await reason(late, old)).to.equal('unknown')
    // Another life of the log, which all of them hear of by a client of theirs.
    for (const each of [node, other, late]) await (await each.open()).event()
    await server.command('DEL', KEY)
    for (const each of [node, other, late]) await until(() => (each.hub.stats().resets['lost'] ?? 0) > 0)
    expect([await reason(node, kept), await reason(other, old)]).to.deep.equal(['unknown', 'unknown'])
  })

  it('says in stats() how the broker is', async () => {
    const node = await start()
    await up(node)
    const { broker } = node.hub.stats()
    expect(broker).to.include({ up: true, pending: 0, reconnects: 0, duplicates: 0, poison: 0 })
    expect(broker['lag']).to.be.within(0, 1_000)
    expect(broker['gaps']).to.deep.equal({ lost: 0, trimmed: 0 })
    expect(broker['window']).to.have.property('position').that.equals(node.hub.position)
  })
})
