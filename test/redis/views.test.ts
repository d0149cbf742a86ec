import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { expect } from 'chai'
import type { EventSourceMessage } from 'eventsource-parser'
import type { Context } from 'koa'
import type { EventStream } from '../../src/event-stream.ts'
import { Hub } from '../../src/hub.ts'
import type { HistoryOptions } from '../../src/hub-options.ts'
import { sse } from '../../src/middleware.ts'
import { encodeFields } from '../../src/redis/entry.ts'
import { RedisBroker, type Parts } from '../../src/redis/redis-broker.ts'
import type { RedisBrokerOptions } from '../../src/redis/redis-options.ts'
import type { HubEvent } from '../../src/shared-event.ts'
import type { SubscribeOptions } from '../../src/subscription.ts'
import { connect, type LiveClient } from '../support/client.ts'
import { hasRedis, needsRedis, Proxy, RedisServer } from '../support/redis.ts'
import { koa, serve, until } from '../support/serve.ts'
import { KEY, rejection } from './support.ts'

const POSITION = 'stream-position'
const RESET = 'stream-reset'
const MEGABYTE = 1_048_576
// On a machine that has much else to do.
const PATIENCE = 15_000

interface View {
  readonly hub: Hub
  /** What the hub emitted as 'error'. */
  readonly errors: unknown[]
  readonly streams: EventStream[]
  readonly open: (id?: string) => Promise<LiveClient>
}

interface StartOptions extends RedisBrokerOptions {
  parts?: Parts
  history?: HistoryOptions
  filter?: SubscribeOptions['filter']
}

/** What it was told, but for its positions. */
const told = ({ events }: LiveClient): string[] => events.filter(({ event }) => event !== POSITION).map(({ data }) => data)

const tells = async (client: LiveClient, ...texts: string[]): Promise<void> => {
  await until(() => told(client).length >= texts.length, PATIENCE)
  expect(told(client)).to.deep.equal(texts)
}

const comments = ({ blocks }: LiveClient): number => blocks.filter(block => 'comment' in block).length

/** It gets comments, so many more of them, and nothing else meanwhile. */
const onlyWaits = async (client: LiveClient, count = 3): Promise<void> => {
  const { length } = client.events
  const most = comments(client) + count
  await until(() => comments(client) >= most, PATIENCE)
  expect(client.events.slice(length)).to.deep.equal([])
}

/** Milliseconds and sequence number. */
const place = (id: string): [number, number] => id.split('.')[0]!.split('-').map(Number) as [number, number]

const precedes = (a: string, b: string): boolean => {
  const [[ms, seq], [otherMs, otherSeq]] = [place(a), place(b)]
  return ms < otherMs || (ms === otherMs && seq < otherSeq)
}

/** What holds whatever happens: the stream is open, and its ids only rise until it says that it begins anew. */
const isSound = (client: LiveClient): void => {
  expect(client.status).to.equal(200)
  expect(client.response.complete || client.socket.destroyed, 'the stream has ended').to.equal(false)
  let last: EventSourceMessage | undefined
  for (const event of client.events) {
    expect(event.id, JSON.stringify(event)).to.match(/^\d+-\d+\.[0-9a-z]{4}$/)
    if (last !== undefined && event.event !== RESET) expect(precedes(last.id!, event.id!), `${last.id} before ${event.id}`).to.equal(true)
    last = event
  }
}

const idOf = (client: LiveClient, data: string): string => client.events.find(event => event.data === data)!.id!

describe('a client of a hub on RedisBroker', function () {
  this.timeout(30_000)
  needsRedis()
  let server: RedisServer
  let stop: (() => Promise<unknown>)[] = []
  const hubs: Hub[] = []
  const startServer = async (...args: Parameters<typeof RedisServer.start>): Promise<RedisServer> => {
    const made = await RedisServer.start(...args)
    stop.push(async () => made.stop())
    return made
  }
  const startProxy = async (): Promise<Proxy> => {
    const made = await Proxy.start(server.port)
    stop.push(async () => made.stop())
    return made
  }
  afterEach(async () => {
    // One that is paused would keep everybody waiting.
    if (hasRedis) server?.resume()
    await Promise.all(hubs.splice(0).map(async hub => hub.close({ graceMs: 300 })))
    for (const each of stop.toReversed()) await each()
    stop = []
  })

  /** A process's hub and app. Its broker looks after the log often, and writes nothing by itself but one heartbeat at start. */
  const start = async ({ parts, history, filter, ...options }: StartOptions = {}): Promise<View> => {
    const broker = new RedisBroker({ redis: server.options, publishTimeout: PATIENCE, ...options }, { block: 150, heartbeat: 60_000, ...parts })
    const hub = new Hub({ broker, history })
    hubs.push(hub)
    const errors: unknown[] = []
    hub.on('error', error => errors.push(error))
    const streams: EventStream[] = []
    const app = koa(
      sse({ heartbeat: 40 }),
      async (ctx: Context, next) => {
        streams.push(ctx.sse)
        await next()
      },
      hub.subscriber('news', { filter }),
    )
    const { url } = await serve(app)
    await until(() => hub.stats().broker.up, PATIENCE)
    return { hub, errors, streams, open: async id => connect(url, id === undefined ? {} : { headers: { 'Last-Event-ID': id } }) }
  }

  /** Opens a stream in each, and gives each an event. The position comes first. */
  const open = async (...views: View[]): Promise<LiveClient[]> => {
    const clients = await Promise.all(views.map(async view => view.open()))
    for (const client of clients) expect(await client.event()).to.include({ event: POSITION, data: '' })
    await views[0]!.hub.publish('news', 'before')
    for (const client of clients) await tells(client, 'before')
    return clients
  }

  interface Situation {
    readonly a: View
    readonly b: View
    /** Of `a`, and of `b`. */
    readonly clients: readonly [LiveClient, LiveClient]
    /** Between Redis and `b`. */
    readonly link: Proxy
  }

  interface Row {
    /** How the server is started. */
    readonly server?: Parameters<typeof RedisServer.start>[0]
    readonly prepare?: () => Promise<unknown>
    readonly a?: StartOptions
    readonly b?: StartOptions
  }

  const situation = async (row: Row): Promise<Situation> => {
    server = await startServer(row.server)
    await row.prepare?.()
    const link = await startProxy()
    const [a, b] = await Promise.all([start(row.a), start({ redis: link.options, ...row.b })])
    return { a, b, clients: (await open(a, b)) as [LiveClient, LiveClient], link }
  }

  interface Delay extends Row {
    readonly begins: (situation: Situation) => unknown
    /** What a hub says of it, if anything. */
    readonly says?: string
    readonly ends: (situation: Situation) => unknown
  }

  const delays: Record<string, Delay> = {
    'Redis stops answering': {
      begins: () => server.pause(),
      ends: () => server.resume(),
    },
    'a link is half open': {
      begins: ({ link }) => link.freeze(),
      says: 'did not answer within',
      ends: ({ link }) => link.thaw(),
    },
    'Redis is a replica (-READONLY, -UNBLOCKED)': {
      begins: async () => server.command('REPLICAOF', '127.0.0.1', 1),
      says: 'READONLY',
      ends: async () => server.command('REPLICAOF', 'NO', 'ONE'),
    },
    'Redis wants replicas (-NOREPLICAS)': {
      begins: async () => server.command('CONFIG', 'SET', 'min-replicas-to-write', 1),
      says: 'NOREPLICAS',
      ends: async () => server.command('CONFIG', 'SET', 'min-replicas-to-write', 0),
    },
    'Redis is killed, and loads its data when it is back (-LOADING)': {
      server: { persistent: true, args: ['--key-load-delay', '200', '--loading-process-events-interval-bytes', '1024'] },
      prepare: async () => server.command('EVAL', "for i = 1, 4000 do redis.call('SET', i, i) end", 0),
      begins: async () => server.kill(),
      ends: async ({ a, b }) => {
        await server.up({ ready: false })
        await until(() => [...a.errors, ...b.errors].some(error => String(error).includes('LOADING')), PATIENCE)
      },
    },
  }

  for (const [what, row] of Object.entries(delays)) {
    it(`waits with heartbeats while ${what}, its position where it was; then gets everything, in order, once`, async () => {
      const it = await situation(row)
      const { a, b, clients } = it
      await row.begins(it)
      const texts = [a, b].map((_, n) => Array.from({ length: 20 }, (_, i) => `${n}: ${i}`))
      const published = [a, b].flatMap(({ hub }, n) => texts[n]!.map(async text => hub.publish('news', text)))
      for (const each of published) each.catch(() => {})
      await onlyWaits(clients[1])
      expect(b.hub.stats().broker['pending']).to.equal(20)
      if (row.says !== undefined) await until(() => b.errors.some(error => String(error).includes(row.says!)), PATIENCE)
      await row.ends(it)
      const ids = await Promise.all(published)
      await a.hub.publish('news', 'after')
      for (const client of clients) {
        await until(() => told(client).includes('after'), PATIENCE)
        const seen = told(client)
        expect(seen).to.have.lengthOf(42)
        for (const own of texts) expect(seen.filter(text => own.includes(text))).to.deep.equal(own)
        for (const [i, text] of texts.flat().entries()) expect(idOf(client, text)).to.equal(ids[i])
        isSound(client)
      }
      const seen = told(clients[0])
      expect(told(clients[1])).to.deep.equal(seen)
      // One that was cut comes back to the other process, and one that knows half of it.
      for (const from of [0, 21]) await tells(await b.open(idOf(clients[0], seen[from]!)), ...seen.slice(from + 1))
      expect([a.hub.stats().resets, b.hub.stats().resets]).to.deep.equal([{}, {}])
    })
  }

  interface Unnoticed extends Row {
    /** Resolves with what a client sees of it. */
    readonly happens: (situation: Situation) => Promise<string[]>
  }

  const unnoticed: Record<string, Unnoticed> = {
    'the reply to an XADD is lost: the event comes once': {
      happens: async ({ a, b, link, clients }) => {
        // Its reader is late, or it would see the event come, and not send it again. It was connected first, the writer second.
        link.freezeOne(0)
        let lost = 0
        link.onRequest = chunk => {
          if (chunk.includes('precious')) link.onReply = () => ++lost === 0
        }
        const published = b.hub.publish('news', 'precious')
        await tells(clients[0], 'before', 'precious')
        await until(() => lost > 0, PATIENCE)
        link.onRequest = link.onReply = undefined
        link.cutOne(1)
        await until(() => a.hub.stats().broker['duplicates'] === 1, PATIENCE)
        expect(told(clients[1])).to.deep.equal(['before'])
        link.thaw()
        const id = await published
        await tells(clients[1], 'before', 'precious')
        for (const client of clients) expect(idOf(client, 'precious')).to.equal(id)
        return ['precious']
      },
    },
    'somebody else writes to the log': {
      happens: async ({ a, b, clients }) => {
        const good = (count: number): string[] => encodeFields({ publisher: 'abcdefghijkl', count }, { channel: 'news', event: { data: 'x' } })
        const poison = [['a', 'b'], good(1).with(5, '{'), good(2).with(1, 'x'), [...good(3), 'more', 'fields'], good(4).with(5, '{"data":{}}')]
        for (const fields of poison) await server.command('XADD', KEY, '*', ...fields)
        for (const { hub } of [a, b]) await until(() => hub.stats().broker['poison'] === poison.length, PATIENCE)
        // Its position passes over them, and is one to come back with.
        const position = a.hub.position!
        await until(() => clients.every(({ events }) => events.at(-1)!.id === position), PATIENCE)
        const back = await b.open(position)
        await until(() => comments(back) > 0)
        expect(back.events).to.deep.equal([])
        return []
      },
    },
    'Redis has no memory left (-OOM): who publishes is told': {
      happens: async ({ a, b, clients }) => {
        await server.command('CONFIG', 'SET', 'maxmemory', 1)
        for (const { hub } of [a, b]) {
          const error = await rejection(hub.publish('news', 'refused'))
          expect(error).to.include({ name: 'SseError', code: 'ERR_SSE_BROKER_UNAVAILABLE' })
          expect(String((error as Error).cause)).to.include('OOM')
          // At once: it is no fault of the connection's.
          expect(hub.stats().broker['reconnects']).to.equal(0)
        }
        for (const client of clients) await onlyWaits(client)
        await server.command('CONFIG', 'SET', 'maxmemory', 0)
        return []
      },
    },
    'the clock of Redis goes back': {
      happens: async ({ clients }) => {
        const fields = encodeFields({ publisher: 'abcdefghijkl', count: 1 }, { channel: 'news', event: { data: 'by a clock that is fast' } })
        await server.command('XADD', KEY, `${Date.now() + 3_600_000}-5`, ...fields)
        for (const client of clients) await tells(client, 'before', 'by a clock that is fast')
        return ['by a clock that is fast']
      },
    },
    'every connection to Redis is cut': {
      happens: async ({ a, b }) => {
        await server.cutAll()
        await Promise.all([a.hub.publish('news', '1'), a.hub.publish('news', '2')])
        await until(() => [a, b].every(({ hub }) => Number(hub.stats().broker['reconnects']) > 0), PATIENCE)
        return ['1', '2']
      },
    },
  }

  for (const [what, row] of Object.entries(unnoticed)) {
    it(`notices nothing when ${what}`, async () => {
      const it = await situation(row)
      const { a, b, clients } = it
      const seen = ['before', ...(await row.happens(it)), 'after', 'the end']
      const ids = [await a.hub.publish('news', 'after'), await b.hub.publish('news', 'the end')]
      for (const client of clients) {
        await tells(client, ...seen)
        expect([idOf(client, 'after'), idOf(client, 'the end')]).to.deep.equal(ids)
        isSound(client)
      }
      for (const view of [a, b]) {
        await tells(await view.open(idOf(clients[0], 'before')), ...seen.slice(1))
        expect(view.hub.stats().resets).to.deep.equal({})
      }
    })
  }

  interface Loss extends Row {
    readonly happens: (situation: Situation) => Promise<unknown>
    readonly reason?: string
    /** Only the client of `b` is concerned. */
    readonly one?: boolean
    /** What one is told that comes back to `a` with an id of before. */
    readonly old: string
  }

  const flush = async ({ a }: Situation, traffic: number): Promise<void> => {
    await server.command('FLUSHALL')
    await Promise.all(Array.from({ length: traffic }, async (_, i) => a.hub.publish('other', `${i}`)))
  }

  const losses: Record<string, Loss> = {
    'the log is flushed while nothing happens': { happens: async it => flush(it, 0), old: 'unknown' },
    'the log is flushed under traffic': { happens: async it => flush(it, 20), old: 'unknown' },
    'Redis evicts the log': {
      happens: async () => {
        await server.command('CONFIG', 'SET', 'maxmemory-policy', 'allkeys-random')
        await server.command('CONFIG', 'SET', 'maxmemory', 1)
        for (let evicted = 0; evicted === 0;) evicted = Number(await server.info('stats', 'evicted_keys'))
        await server.command('CONFIG', 'SET', 'maxmemory', 0)
      },
      old: 'unknown',
    },
    'the log is lost and the clock of Redis has gone back': {
      happens: async ({ clients }) => {
        const fields = encodeFields({ publisher: 'abcdefghijkl', count: 1 }, { channel: 'other', event: { data: 'x' } })
        const ahead = `${Date.now() + 3_600_000}-5`
        await server.command('XADD', KEY, ahead, ...fields)
        await until(() => clients.every(({ events }) => events.at(-1)!.id!.startsWith(ahead)), PATIENCE)
        await server.command('DEL', KEY)
      },
      old: 'unknown',
    },
    'somebody puts something else at the key, for a while': {
      happens: async ({ a, clients }) => {
        await server.command('SET', KEY, 'not a stream')
        const error = await rejection(a.hub.publish('news', 'refused'))
        expect(error).to.include({ name: 'SseError', code: 'ERR_SSE_BROKER_UNAVAILABLE' })
        expect(String((error as Error).cause)).to.include('WRONGTYPE')
        for (const client of clients) await onlyWaits(client)
        await server.command('DEL', KEY)
      },
      old: 'unknown',
    },
    'its process is slower than what is kept': {
      // Otherwise a hundred entries are let go of together.
      server: { args: ['--stream-node-max-entries', '1'] },
      a: { publishTimeout: 1_000, retention: 1_000, history: { events: 5 } },
      b: { parts: { heartbeat: 200 } },
      happens: async ({ a, b, clients, link }) => {
        link.freeze()
        const floor = idOf(clients[1], 'before').split('.')[0]!
        for (let kept = 1; kept > 0;) {
          await a.hub.publish('other', 'more')
          kept = ((await server.command('XRANGE', KEY, '-', floor)) as unknown[]).length
        }
        await onlyWaits(clients[1])
        await until(() => !b.hub.stats().broker.up, PATIENCE)
        expect((b.hub.stats().broker['window'] as { age: number }).age).to.be.above(1_000)
        link.thaw()
        await until(() => b.hub.stats().broker.up, PATIENCE)
        expect(b.hub.stats().broker['gaps']).to.deep.equal({ lost: 0, trimmed: 1 })
        expect(b.hub.stats().broker['lag']).to.be.a('number')
      },
      reason: 'trimmed',
      one: true,
      old: 'trimmed',
    },
    'a failover has lost the last writes, which its own process never saw': {
      happens: async ({ a, clients, link }) => {
        link.freeze()
        const id = await a.hub.publish('other', 'lost')
        await until(() => clients[0].events.at(-1)!.id === id, PATIENCE)
        await server.command('XDEL', KEY, id.split('.')[0]!)
        // It is the newest: the next read finds it gone.
        await server.cutAll()
        await until(() => told(clients[0]).length > 1, PATIENCE)
        link.thaw()
      },
      old: 'resumed',
    },
    'another master has made another entry of the same id': {
      happens: async ({ a, clients }) => {
        const [kept] = idOf(clients[0], 'before').split('.') as [string]
        const id = await a.hub.publish('other', 'lost')
        await until(() => clients.every(({ events }) => events.at(-1)!.id === id), PATIENCE)
        const [redisId] = id.split('.') as [string]
        const fields = encodeFields({ publisher: 'abcdefghijkl', count: 1 }, { channel: 'other', event: { data: 'x' } })
        await server.command('MULTI')
        await server.command('XDEL', KEY, redisId)
        await server.command('XSETID', KEY, kept)
        await server.command('XADD', KEY, redisId, ...fields)
        await server.command('EXEC')
      },
      old: 'resumed',
    },
  }

  for (const [what, { reason = 'lost', one = false, ...row }] of Object.entries(losses)) {
    it(`is reset, once, and stays connected, when ${what}`, async () => {
      const it = await situation(row)
      const { a, b } = it
      const clients = one ? [it.clients[1]] : it.clients
      const others = one ? [it.clients[0]] : []
      await row.happens(it)
      const told = ['before', JSON.stringify({ reason })]
      for (const client of clients) await tells(client, ...told)
      const resets = clients.map(({ events }) => events.find(({ event }) => event === RESET)!)
      await b.hub.publish('news', 'after')
      for (const client of clients) {
        await tells(client, ...told, 'after')
        isSound(client)
      }
      for (const client of others) {
        await tells(client, 'before', 'after')
        isSound(client)
      }
      expect([a.hub.stats().resets, b.hub.stats().resets]).to.deep.equal([one ? {} : { [reason]: 1 }, { [reason]: 1 }])
      // The reset's id is a position: with it the client goes on, wherever it comes to.
      for (const { id } of resets) for (const view of [a, b]) await tells(await view.open(id), 'after')
      const back = await a.open(idOf(it.clients[0], 'before'))
      await tells(back, ...(row.old === 'resumed' ? ['after'] : [JSON.stringify({ reason: row.old })]))
    })
  }

  it('gets everything, late, when its process follows a server that is the master no more', async () => {
    server = await startServer({ args: ['--repl-diskless-sync-delay', '0'] })
    const replica = await startServer({ args: ['--replicaof', '127.0.0.1', `${server.port}`] })
    const link = await startProxy()
    const b = await start({ redis: link.options, parts: { heartbeat: 300, block: 60_000 } })
    const [client] = (await open(b)) as [LiveClient]
    const replicated = async (): Promise<boolean> => Number(await server.command('WAIT', 1, 1_000)) > 0
    while (!(await replicated()));
    await replica.command('REPLICAOF', 'NO', 'ONE')
    link.target = replica.port
    // Its writer, the second to connect, has noticed.
    link.cutOne(1)
    const a = await start({ redis: replica.options })
    await a.hub.publish('news', 'missed')
    await until(() => !b.hub.stats().broker.up, PATIENCE)
    await tells(client, 'before', 'missed')
    await b.hub.publish('news', 'after')
    await tells(client, 'before', 'missed', 'after')
    isSound(client)
    await until(() => b.hub.stats().broker.up, PATIENCE)
    expect(b.hub.stats().resets).to.deep.equal({})
  })

  it('is told of a rolling deploy, and goes on in the other process without loss, while events come without a pause', async () => {
    server = await startServer()
    const [a, b] = await Promise.all([start({ history: { events: 20 } }), start({ history: { events: 20 } })])
    const clients = await Promise.all(Array.from({ length: 8 }, async () => a.open()))
    for (const client of clients) expect((await client.event()).event).to.equal(POSITION)
    const published: string[] = []
    const end = new AbortController()
    const publishing = (async () => {
      while (!end.signal.aborted) {
        const burst = [0, 1, 2].map(() => published.push(`${published.length}`) - 1)
        await Promise.all(burst.map(async i => b.hub.publish('news', `${i}`)))
      }
    })()
    publishing.catch(() => {})
    await until(() => clients.every(client => told(client).length > 20), PATIENCE)
    const own = a.hub.publish('other', 'under way')
    own.catch(() => {})
    await a.hub.close({ event: { event: 'farewell', data: 'bye' }, retry: 20_000, graceMs: PATIENCE })
    expect(await own).to.be.a('string')
    const { length } = published
    for (const client of clients) {
      expect(await client.ended).to.equal('clean')
      expect(client.events.at(-1)).to.include({ event: 'farewell', data: 'bye' })
      expect(client.retry).to.be.within(20_000, 40_000)
    }
    expect(new Set(clients.map(({ retry }) => retry)).size).to.be.above(4)
    // By now the other one's window has gone on.
    await until(() => published.length > length + 100, PATIENCE)
    // A browser keeps the last id that it was given, and the farewell has none.
    const last = clients.map(({ events }) => events.findLast(({ id }) => id !== undefined)!.id!)
    const back = await Promise.all(last.map(async id => b.open(id)))
    await until(() => back.every(client => told(client).length > 100), PATIENCE)
    end.abort()
    await publishing
    for (const [i, client] of clients.entries()) {
      await until(() => told(back[i]!).at(-1) === published.at(-1), PATIENCE)
      expect([...told(client).slice(0, -1), ...told(back[i]!)]).to.deep.equal(published)
      isSound(back[i]!)
    }
    expect(b.hub.stats().resets).to.deep.equal({})
  })

  it('gets what its filter lets through, live, from the window and from Redis alike', async () => {
    server = await startServer()
    const asked: HubEvent[][] = [[], []]
    const filters = asked.map((_, n) => (event: HubEvent): boolean => {
      asked[n]!.push(event)
      if (event.data === 'fails') throw new Error('no')
      return event.data !== 'secret' && event.event !== 'internal'
    })
    const views = [await start({ filter: filters[0] }), await start({ filter: filters[1], history: { events: 1 } })]
    const clients = await open(...views)
    const [{ hub }] = views as [View]
    const published = ['1', 'secret', '2', 'fails', { event: 'internal', data: '3' }, { event: 'public', id: 'own', data: '4' }]
    for (let round = 0; round < 40; round++) for (const event of published) await hub.publish('news', event)
    await hub.publish('other', 'not ours')
    await hub.broadcast('secret')
    await hub.broadcast('all')
    const expected = ['before', ...Array.from({ length: 40 }, () => ['1', '2', '4']).flat(), 'all']
    const live: HubEvent[][] = []
    for (const [n, client] of clients.entries()) {
      await tells(client, ...expected)
      live.push(asked[n]!.splice(0))
    }
    expect(live[0]).to.deep.equal(live[1])
    const failed = views.map(({ errors }) => errors.splice(0).length)
    expect(failed).to.deep.equal([40, 40])
    for (const [n, view] of views.entries()) {
      const back = await view.open(idOf(clients[0]!, 'before'))
      await tells(back, ...expected.slice(1))
      expect(asked[n]).to.deep.equal(live[0]!.slice(1))
      expect(view.errors).to.have.lengthOf(40)
      expect(back.events.map(({ id, event, data }) => [id, event, data])).to.deep.equal(
        clients[0]!.events
          .filter(({ event }) => event !== POSITION)
          .slice(1)
          .map(({ id, event, data }) => [id, event, data]),
      )
    }
    expect(views[1]!.hub.stats().window.events).to.equal(1)
  })

  it('that does not read costs no memory, live or in a replay; it gets everything that it can, or is reset', async () => {
    setFlagsFromString('--expose-gc')
    const collect = runInNewContext('gc') as () => void
    const memory = (): number => {
      collect()
      collect()
      const { heapUsed, arrayBuffers } = process.memoryUsage()
      return heapUsed + arrayBuffers
    }
    server = await startServer()
    const history = { events: 50 }
    const [a, b] = [await start({ history }), await start({ history })]
    const mute = await a.open()
    await mute.event()
    mute.pause()
    const published: string[] = []
    const publish = async (count: number, bytes: number): Promise<void> => {
      const texts = Array.from({ length: count }, (_, i) => `${published.length + i} `.padEnd(bytes, 'x'))
      published.push(...texts.map(text => text.split(' ')[0]!))
      await Promise.all(texts.map(async text => b.hub.publish('news', text)))
      await until(() => [a, b].every(({ hub }) => hub.stats().published === published.length), PATIENCE)
    }
    // Until the kernel takes no more.
    for (let refused = 0; refused < 5;) {
      const { delivered } = a.hub.stats()
      await publish(1, 256 * 1_024)
      refused = a.hub.stats().delivered === delivered ? refused + 1 : 0
    }
    const { delivered } = a.hub.stats()
    await publish(100, 8_192)
    const before = memory()
    for (let i = 0; i < 8; i++) await publish(250, 8_192)
    expect(memory() - before, 'of 16 MB').to.be.below(6 * MEGABYTE)
    expect(a.hub.stats().delivered).to.equal(delivered)
    expect(a.streams[0]!.connected).to.equal(true)

    mute.resume()
    const last = ({ blocks }: LiveClient): EventSourceMessage | undefined =>
      blocks.findLast(block => 'data' in block && block.event !== POSITION) as EventSourceMessage | undefined
    const numbers = (client: LiveClient): string[] => told(client).map(data => data.split(' ')[0]!)
    await until(() => last(mute)?.event === RESET, PATIENCE)
    expect(numbers(mute)).to.deep.equal([...published.slice(0, delivered), '{"reason":"slow"}'])
    await publish(1, 10)
    await until(() => last(mute)?.event === undefined, PATIENCE)
    expect(numbers(mute).slice(-2)).to.deep.equal(['{"reason":"slow"}', published.at(-1)])
    isSound(mute)

    // What the window has let go of Redis has still.
    const calm = memory()
    const back = await a.open(mute.events.find(({ event }) => event !== POSITION)!.id)
    back.pause()
    for (let sent = -1, still = 0; still < 5;) {
      await new Promise(resolve => setTimeout(resolve, 10))
      still = a.streams[1]!.eventsSent === sent ? still + 1 : 0
      sent = a.streams[1]!.eventsSent
    }
    expect(a.streams[1]!.eventsSent).to.be.below(published.length)
    expect(memory() - calm, 'of 16 MB').to.be.below(6 * MEGABYTE)
    back.resume()
    await until(() => last(back)?.id === last(mute)!.id, PATIENCE)
    expect(numbers(back)).to.deep.equal(published.slice(1))
    isSound(back)
  })
})
