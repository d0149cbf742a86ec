import { AsyncLocalStorage } from 'node:async_hooks'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { expect } from 'chai'
import { Redis } from 'ioredis'
import { encodeFields } from '../../src/redis/entry.ts'
import { readPage } from '../../src/redis/page.ts'
import type { Parts } from '../../src/redis/redis-broker.ts'
import { collect } from '../support/heap.ts'
import { hasRedis, needsRedis, Proxy, RedisServer } from '../support/redis.ts'
import { signalled } from '../support/promises.ts'
import { until } from '../support/serve.ts'
import { closeNodes, KEY, node, type Node, passes, rejection, startedNode } from './support.ts'

const UNAVAILABLE = { name: 'SseError', code: 'ERR_SSE_BROKER_UNAVAILABLE' }
const text = (data: string): { data: string } => ({ data })
const after = async (ms: number): Promise<void> => new Promise(resolve => setTimeout(resolve, ms))

describe('RedisBroker, when', function () {
  this.timeout(20_000)
  needsRedis()
  let server: RedisServer
  const proxies: Proxy[] = []
  const proxy = async (): Promise<Proxy> => {
    const made = await Proxy.start(server.port)
    proxies.push(made)
    return made
  }
  beforeEach(async () => {
    if (hasRedis) server = await RedisServer.start({ persistent: true })
  })
  afterEach(async () => {
    await closeNodes()
    for (const each of proxies.splice(0)) await each.stop()
    await server?.stop()
  })

  it('Redis is not there at start: waits for it, without haste; publishes reject in time, or arrive in order', async () => {
    await server.kill()
    const hasty = node(server.options, { publishTimeout: 300 })
    const early = await rejection(hasty.broker.publish('a', text('too early')))
    expect(early).to.include(UNAVAILABLE)
    expect((early as Error).cause).to.have.property('code', 'ECONNREFUSED')
    expect(hasty.broker.stats()).to.include({ up: false, pending: 0 })
    const late = node(server.options)
    const published = ['1', '2', '3'].map(async data => late.broker.publish('a', text(data)))
    await server.up()
    await late.started
    await Promise.all(published)
    await late.sink.have(3)
    expect(late.sink.data).to.deep.equal(['1', '2', '3'])
    expect(late.sink.calls[0]![0]).to.satisfy((kind: string) => kind === 'error' || kind === 'position')
    await until(() => late.broker.stats().up)
  })

  it('Redis stays away: tries again ever less often, and tells the sink once', async () => {
    const one = await startedNode(server.options)
    await server.kill()
    await after(3_000)
    // Reader and writer; by 50 ms each it would be 120.
    expect(one.broker.stats().reconnects).to.be.within(2, 40)
    const refused = one.sink.errors.filter(error => String(error).includes('ECONNREFUSED'))
    expect(refused.length).to.equal(1)
    expect(one.sink.errors.length).to.be.at.most(4)
  })

  it('Redis stays away, and there is always something that waits: nothing is kept of what was rejected', async () => {
    await server.kill()
    const { broker } = node(server.options, { publishTimeout: 200 })
    const errors: WeakRef<object>[] = []
    const batch = async (): Promise<unknown> =>
      Promise.all(
        Array.from({ length: 2_000 }, async () => {
          errors.push(new WeakRef((await rejection(broker.publish('a', text('in vain')))) as object))
        }),
      )
    let first = batch()
    await after(100)
    let second = batch()
    for (let i = 0; i < 3; i++) {
      await first
      ;[first, second] = [second, batch()]
    }
    // WeakRefs hold on until the end of the turn in which they were made.
    await after(0)
    expect(broker.stats().pending).to.be.at.least(2_000)
    collect()
    expect(errors.length).to.be.at.least(6_000)
    expect(errors.filter(error => error.deref() !== undefined).length).to.be.below(2_000)
    await Promise.all([first, second])
  })

  it("the connection was made for a request: that one's AsyncLocalStorage store is not kept with it, and no later failure is told in it", async () => {
    const storage = new AsyncLocalStorage<object>()
    const { broker, sink } = await startedNode(server.options)
    const stores: WeakRef<object>[] = []
    const seen: unknown[] = []
    sink.error = () => void seen.push(storage.getStore())
    const ask = async <T>(action: () => Promise<T>): Promise<T> => {
      const store = {}
      stores.push(new WeakRef(store))
      return storage.run(store, action)
    }
    // Both are connected anew, each for who asks first.
    await server.cutAll()
    await until(() => seen.length > 0)
    const id = await ask(async () => broker.publish('a', text('x')))
    await ask(async () => broker.read(id, 1))
    await until(() => {
      collect()
      return stores.every(store => store.deref() === undefined)
    })
    await server.kill()
    await until(() => seen.length > 1)
    expect(seen).to.deep.equal(seen.map(() => undefined))
  })

  it('thousands are published in one turn: others have theirs in between, and all arrive, in order', async () => {
    const one = await startedNode(server.options)
    // Redis takes what it is given from now on.
    await passes('first', one, one)
    const all = Array.from({ length: 5_000 }, (_, i) => `${i}`)
    let inTurn = 0
    let most = 0
    // oxlint-disable-next-line typescript/unbound-method -- it is called on a connection
    const { sendCommand } = Redis.prototype
    Redis.prototype.sendCommand = function (...args: Parameters<typeof sendCommand>) {
      most = Math.max(most, ++inTurn)
      return sendCommand.apply(this, args)
    }
    try {
      const published = Promise.all(all.map(async data => one.broker.publish('a', text(data))))
      const { promise: over, go } = signalled()
      published.then(go, go)
      while (await Promise.race([over.then(() => false), nextTurn().then(() => true)])) inTurn = 0
      await published
    } finally {
      Redis.prototype.sendCommand = sendCommand
    }
    expect(most).to.be.within(100, 1_000)
    await until(() => one.sink.data.length > all.length)
    expect(one.sink.data.slice(1)).to.deep.equal(all)
  })

  it('Redis went while nothing was under way: a publish that rejects has the cause, and a later one no old cause', async () => {
    const one = await startedNode(server.options, { publishTimeout: 300 })
    await server.kill()
    await until(() => one.sink.errors.some(error => String(error).includes('ECONNREFUSED')))
    const error = await rejection(one.broker.publish('a', text('x')))
    expect(error).to.include(UNAVAILABLE)
    expect((error as Error).cause).to.have.property('code', 'ECONNREFUSED')
    await server.up()
    while (!one.sink.data.includes('y')) await rejection(one.broker.publish('a', text('y')))
    server.pause()
    const later = await rejection(one.broker.publish('a', text('z')))
    expect(later).to.include(UNAVAILABLE)
    expect((later as Error).cause).to.equal(undefined)
    server.resume()
  })

  it('does not let us trim the log: tells that once, and goes on', async () => {
    await server.command('ACL', 'SETUSER', 'default', '-xtrim')
    try {
      const one = await startedNode(server.options, {}, { heartbeat: 20 })
      await until(() => one.sink.errors.length > 0)
      for (const data of ['x', 'y']) await passes(data, one, one)
      expect(String(one.sink.errors)).to.match(/^ReplyError: NOPERM [^,]* 'xtrim' command/)
    } finally {
      await server.command('ACL', 'SETUSER', 'default', '+xtrim')
    }
  })

  it('the bell is forbidden: reads without it, ever less often, and publishes; and goes on as before when it is allowed', async () => {
    await server.command('ACL', 'SETUSER', 'default', '-xread')
    const { random } = Math
    // Each pause is as long as it can be.
    Math.random = () => 0.999
    try {
      const begin = performance.now()
      const one = await startedNode(server.options, {}, { block: 300 })
      await one.broker.publish('a', text('read without'))
      await until(() => one.broker.stats().reconnects >= 4)
      // 100, 200, 400 and 800 ms; it was 100 ms each time.
      expect(performance.now() - begin).to.be.above(1_400)
      expect(one.sink.errors.filter(error => String(error).includes('NOPERM')).length).to.equal(1)
      expect(one.sink.data).to.deep.equal(['read without'])
      await server.command('ACL', 'SETUSER', 'default', '+xread')
      for (let i = 0; i < 5; i++) {
        // Whoever has read both has heard the bell between them.
        for (const data of [`${i} first`, `${i} second`]) await passes(data, one, one)
        await server.cutAll()
        const cut = performance.now()
        await passes(`${i} after the cut`, one, one)
        // 100 ms again; the next of before was 1 600, and the fifth in a row is.
        expect(performance.now() - cut).to.be.below(1_000)
      }
    } finally {
      Math.random = random
    }
  })

  it('may not raise the ids of a log that is lost, by a clock that is fast: goes on below them', async () => {
    await server.command('ACL', 'SETUSER', 'default', '-xsetid')
    const one = await startedNode(server.options, {}, { block: 100 })
    const fields = encodeFields({ publisher: 'abcdefghijkl', count: 1 }, { channel: 'a', event: text('ahead') })
    await server.command('XADD', KEY, `${Date.now() + 3_600_000}-5`, ...fields)
    await one.sink.have(1)
    await server.command('DEL', KEY)
    await until(() => one.sink.gaps.length > 0)
    const id = await passes('after', one, one)
    expect(Number.parseInt(id)).to.be.below(Date.now() + 60_000)
    expect([one.sink.data, one.sink.gaps, one.sink.errors, one.broker.stats().reconnects]).to.deep.equal([['ahead', 'after'], ['lost'], [], 0])
  })

  it('Redis goes and comes back with its data: everything arrives, in order, once', async () => {
    const [a, b] = [await startedNode(server.options), await startedNode(server.options)]
    await passes('before', a, a, b)
    await server.kill()
    const published = Array.from({ length: 100 }, async (_, i) => (i % 2 === 0 ? a : b).broker.publish('a', text(`${i}`)))
    await after(300)
    await server.up()
    const ids = await Promise.all(published)
    await a.sink.have(101)
    await b.sink.have(101)
    expect(a.sink.events).to.deep.equal(b.sink.events)
    expect(new Set(a.sink.events.slice(1).map(({ id }) => id))).to.deep.equal(new Set(ids))
    const even = a.sink.data.map(Number).filter(i => i % 2 === 0)
    expect(even).to.deep.equal(even.toSorted((x, y) => x - y))
    expect([...a.sink.gaps, ...b.sink.gaps]).to.deep.equal([])
  })

  it('Redis comes back empty: every node reports that the log was lost, and goes on', async () => {
    const [a, b] = [await startedNode(server.options), await startedNode(server.options)]
    const old = await passes('before', a, a, b)
    await server.restart({ data: false })
    await until(() => a.sink.gaps.length === 1 && b.sink.gaps.length === 1, 10_000)
    await passes('after', b, a, b)
    expect([a.sink.gaps, b.sink.gaps]).to.deep.equal([['lost'], ['lost']])
    expect(await a.broker.read(old, 10)).to.equal(undefined)
    expect(a.broker.stats().gaps).to.deep.equal({ lost: 1, trimmed: 0 })
  })

  for (const [how, traffic] of Object.entries({ 'nothing happens': 0, 'events come': 1 })) {
    it(`the log is flushed while ${how}: every node reports it, though no connection broke`, async () => {
      const parts = { block: 300 }
      const [a, b] = [await startedNode(server.options, {}, parts), await startedNode(server.options, {}, parts)]
      await passes('before', a, a, b)
      await server.command('FLUSHALL')
      if (traffic > 0) await Promise.all(Array.from({ length: 20 }, async (_, i) => a.broker.publish('a', text(`${i}`))))
      await until(() => a.sink.gaps.length > 0 && b.sink.gaps.length > 0)
      await passes('after', b, a, b)
      expect([a.sink.gaps, b.sink.gaps]).to.deep.equal([['lost'], ['lost']])
      expect(a.broker.stats().reconnects).to.equal(0)
    })
  }

  it('a process falls behind what is kept: it reports that, and goes on', async () => {
    const slow = await proxy()
    const a = await startedNode(server.options)
    const b = await startedNode(slow.options, {}, { block: 300 })
    await passes('before', a, a, b)
    slow.freeze()
    for (let i = 0; i < 10; i++) await a.broker.publish('a', text(`missed ${i}`))
    await server.command('XTRIM', KEY, 'MAXLEN', '=', 2)
    slow.thaw()
    await until(() => b.sink.gaps.length > 0)
    await passes('after', a, a, b)
    expect(b.sink.gaps).to.deep.equal(['trimmed'])
    expect(a.sink.gaps).to.deep.equal([])
    expect(b.sink.data).to.deep.equal(['before', 'after'])
  })

  it('Redis stops answering for a while: publishes wait, and nothing is lost', async () => {
    const [a, b] = [await startedNode(server.options), await startedNode(server.options)]
    await passes('before', a, a, b)
    server.pause()
    const published = Array.from({ length: 50 }, async (_, i) => a.broker.publish('a', text(`${i}`)))
    await after(500)
    expect(a.broker.stats().pending).to.equal(50)
    server.resume()
    await Promise.all(published)
    await b.sink.have(51)
    expect(b.sink.data.slice(1)).to.deep.equal(Array.from({ length: 50 }, (_, i) => `${i}`))
    expect(b.sink.gaps).to.deep.equal([])
  })

  it('this process is busy for longer than it would wait: it hears what Redis has answered meanwhile', async () => {
    const one = await startedNode(server.options, { publishTimeout: 1_000 }, { block: 100, heartbeat: 500 })
    await passes('before', one, one)
    const published = one.broker.publish('a', text('meanwhile'))
    await nextTurn()
    for (const end = performance.now() + 2_500; performance.now() < end;);
    await published
    await passes('after', one, one)
    expect(one.sink.data).to.deep.equal(['before', 'meanwhile', 'after'])
    expect([one.broker.stats().reconnects, one.broker.stats().duplicates, one.sink.errors]).to.deep.equal([0, 0, []])
  })

  it('only the link that it writes by is half open: it makes a new connection within seconds, before any heartbeat is late', async () => {
    const link = await proxy()
    const one = await startedNode(link.options, { publishTimeout: 15_000 })
    await passes('before', one, one)
    link.freezeOne(1)
    const begin = performance.now()
    const id = await one.broker.publish('a', text('after'))
    expect(performance.now() - begin).to.be.within(4_900, 8_000)
    expect(one.sink.events.map(event => event.id)).to.include(id)
  })

  for (const [who, parts] of Object.entries({ watchdog: { block: 300, heartbeat: 60_000 }, heartbeat: { block: 60_000, heartbeat: 500 } })) {
    it(`a link is half open: its ${who} notices, it makes new connections, sends again, and loses nothing`, async () => {
      const link = await proxy()
      const a = await startedNode(server.options)
      const b = await startedNode(link.options, { publishTimeout: 15_000 }, parts)
      await passes('before', a, a, b)
      link.freeze()
      const missed = await a.broker.publish('a', text('missed'))
      const published = b.broker.publish('a', text('from b'))
      await until(() => b.broker.stats().reconnects > 0)
      expect(b.sink.data).to.deep.equal(['before'])
      if (who === 'heartbeat') expect(b.broker.stats().up).to.equal(false)
      link.thaw()
      const id = await published
      await until(() => a.sink.data.length === 3 && b.sink.data.length === 3, 10_000)
      expect(b.sink.events).to.deep.equal(a.sink.events)
      expect(b.sink.events.map(event => event.id)).to.include.members([missed, id])
      expect(b.sink.gaps).to.deep.equal([])
      await until(() => b.broker.stats().up)
    })
  }

  it('somebody else has put something at the key: says so, does not spin, and goes on when it is gone', async () => {
    const one = await startedNode(server.options, { publishTimeout: 3_000 }, { block: 100 })
    await server.command('DEL', KEY)
    await server.command('SET', KEY, 'not a stream')
    const error = await rejection(one.broker.publish('a', text('x')))
    expect(error).to.include(UNAVAILABLE)
    expect(String((error as Error).cause)).to.include('WRONGTYPE')
    await after(1_000)
    expect(one.sink.errors.filter(each => String(each).includes('WRONGTYPE')).length).to.equal(1)
    expect(one.broker.stats().reconnects).to.be.below(20)
    await server.command('DEL', KEY)
    await until(() => one.sink.gaps.length > 0, 10_000)
    await passes('after', one, one)
  })

  it('somebody else writes to the log: passes that over, and counts it', async () => {
    const one = await startedNode(server.options)
    const before = await passes('before', one, one)
    const good = encodeFields({ publisher: 'abcdefghijkl', count: 1 }, { channel: 'a', event: text('x') })
    const other = good.with(1, 'abcdefghijkl.2')
    const poison = [['a', 'b'], good.with(5, '{'), other.with(5, '{"id":"a\\nb"}'), good.with(1, 'x'), [...good, 'more', 'fields']]
    for (const fields of poison) await server.command('XADD', KEY, '*', ...fields)
    await passes('after', one, one)
    expect(one.sink.data).to.deep.equal(['before', 'after'])
    expect(one.broker.stats().poison).to.equal(5)
    expect(one.sink.gaps).to.deep.equal([])
    expect((await one.broker.read(before, 10))?.map(({ event }) => event.data)).to.deep.equal(['after'])
    // Whoever was cut there comes back with it.
    const position = one.sink.calls.findLast(([kind]) => kind === 'position')![1] as string
    expect((await one.broker.read(position, 10))?.length).to.be.within(0, 1)
  })

  for (const id of ['1700000000000000-1', '1700000000000000123-1', '18446744073709551614-0', '18446744073709551615-18446744073709551615']) {
    it(`somebody else puts an entry at ${id}: goes on from there, and as before when the log is deleted`, async () => {
      const made = async () => startedNode(server.options, { retention: 1_000, publishTimeout: 1_000 }, { block: 300 })
      const [a, b] = [await made(), await made()]
      const before = await passes('before', a, a, b)
      await server.command('XADD', KEY, id, 'a', 'b')
      const position = (): string => b.sink.ids.at(-1)!
      await until(() => position().startsWith(id))
      expect(await b.broker.read(position(), 10)).to.deep.equal([])
      if (id.endsWith('-18446744073709551615')) {
        expect(String(((await rejection(b.broker.publish('a', text('x')))) as Error).cause)).to.include('exhausted')
      } else {
        const after = await passes('after', b, a, b)
        expect((await a.broker.read(before, 10))?.map(entry => entry.id)).to.deep.equal([after])
        expect(await a.broker.read(after, 10)).to.deep.equal([])
      }
      expect([...a.sink.gaps, ...b.sink.gaps]).to.deep.equal([])
      await server.command('DEL', KEY)
      await until(() => a.sink.gaps.length > 0 && b.sink.gaps.length > 0)
      const later = await passes('later', b, a, b)
      expect(await a.broker.read(later, 10)).to.deep.equal([])
      // Clocks that have gone back make the first of them: what follows stays above it.
      if (id.length > 20) expect(Number.parseInt(later)).to.be.closeTo(Date.now(), 5_000)
      expect([a.sink.gaps, b.sink.gaps]).to.deep.equal([['lost'], ['lost']])
      expect([...a.sink.errors, ...b.sink.errors]).to.deep.equal([])
    })
  }

  it('Redis has no memory left: publish rejects at once, readers go on', async () => {
    const one = await startedNode(server.options)
    await passes('before', one, one)
    await server.command('CONFIG', 'SET', 'maxmemory', 1)
    const refused = async (): Promise<void> => {
      const error = await rejection(one.broker.publish('a', text('x')))
      expect(error).to.include(UNAVAILABLE)
      expect(String((error as Error).cause)).to.include('OOM')
    }
    await refused()
    // A new connection is given one at a time, until one is taken.
    await server.cutAll()
    const begin = performance.now()
    await Promise.all([refused(), refused(), refused()])
    expect(performance.now() - begin).to.be.below(3_000)
    await server.command('CONFIG', 'SET', 'maxmemory', 0)
    await passes('after', one, one)
    expect(one.sink.data).to.deep.equal(['before', 'after'])
  })

  it('Redis has no memory left, and nothing is published: tells the sink what is wrong', async () => {
    const one = await startedNode(server.options, {}, { heartbeat: 100 })
    await server.command('CONFIG', 'SET', 'maxmemory', 1)
    await until(() => one.sink.errors.length > 0)
    expect(String(one.sink.errors[0])).to.include('OOM')
    await server.command('CONFIG', 'SET', 'maxmemory', 0)
    await until(() => one.broker.stats().up)
    await passes('after', one, one)
  })

  it('Redis may evict the log: says so at start', async () => {
    await server.command('CONFIG', 'SET', 'maxmemory', '100mb')
    await server.command('CONFIG', 'SET', 'maxmemory-policy', 'allkeys-lru')
    const one = await startedNode(server.options)
    await until(() => one.sink.errors.length > 0)
    expect(String(one.sink.errors[0])).to.include('maxmemory-policy is allkeys-lru')
    await server.command('CONFIG', 'SET', 'maxmemory-policy', 'volatile-lru')
    const other = await startedNode(server.options)
    await passes('x', other, other)
    expect(other.sink.errors).to.deep.equal([])
  })

  for (const [version, load] of Object.entries<Parts['load']>({ 6: undefined, 5: async () => import('ioredis5') })) {
    it(`Redis asks for a password all at once: publishes wait until it does not, with ioredis ${version}`, async () => {
      const one = await startedNode(server.options, {}, { load })
      await passes('before', one, one)
      await server.command('CONFIG', 'SET', 'requirepass', 'secret')
      await server.cutAll()
      const published = one.broker.publish('a', text('waits'))
      await until(() => one.sink.errors.some(error => String(error).includes('NOAUTH')))
      await after(300)
      await server.command('CONFIG', 'SET', 'requirepass', '')
      await published
      await one.sink.have(2)
      expect(one.sink.data).to.deep.equal(['before', 'waits'])
    })
  }

  it('Redis is made a replica and a master again: publishes wait for it', async () => {
    const one = await startedNode(server.options)
    await passes('before', one, one)
    await server.command('REPLICAOF', '127.0.0.1', 1)
    const published = one.broker.publish('a', text('waits'))
    await until(() => one.sink.errors.some(error => String(error).includes('READONLY')))
    await after(300)
    expect(one.broker.stats().reconnects).to.be.below(15)
    await server.command('REPLICAOF', 'NO', 'ONE')
    await published
    await one.sink.have(2)
    expect(one.sink.data).to.deep.equal(['before', 'waits'])
    expect(one.sink.gaps).to.deep.equal([])
  })

  it('the reply to an XADD is lost: the event is sent again, delivered once, and publish() resolves with that one', async () => {
    const link = await proxy()
    // Only what is written goes through the link that breaks.
    const a = await startedNode(link.options)
    const b = await startedNode(server.options)
    await passes('before', a, a, b)
    let lose = false
    link.onRequest = chunk => {
      if (chunk.includes('precious')) lose = true
    }
    link.onReply = () => {
      if (!lose) return true
      lose = false
      setImmediate(() => link.cut())
      return false
    }
    const id = await a.broker.publish('a', text('precious'))
    await passes('after', a, a, b)
    for (const { sink } of [a, b]) expect(sink.data).to.deep.equal(['before', 'precious', 'after'])
    expect(a.sink.events[1]!.id).to.equal(id)
    expect(a.sink.gaps).to.deep.equal([])
  })

  it('a new connection gets one event, and the others when that one was accepted', async () => {
    await startedNode(server.options)
    const link = await proxy()
    let requests = ''
    let before: string | undefined
    link.onRequest = chunk => (requests += chunk.toString())
    link.onReply = chunk => {
      const reply = chunk.toString()
      // Entries that somebody reads come in an array or a map. What has been seen in the log is not waited for.
      if (requests.includes('XADD') && /\$\d+\r\n\d+-\d+\r\n/.test(reply) && !/^[*%]/.test(reply)) before ??= requests
      return true
    }
    const a = node(link.options)
    const texts = Array.from({ length: 50 }, (_, n) => `text ${n}`)
    // The first one, and the one after it.
    for (let sent = 50; sent <= 100; sent += 50) {
      await Promise.all(texts.map(async each => a.broker.publish('a', text(each))))
      await until(() => a.sink.data.length === sent)
      expect(a.sink.data.slice(-50)).to.deep.equal(texts)
      expect(before!.split('XADD').length - 1).to.equal(1)
      expect(requests.split('XADD').length - 1).to.be.at.least(50)
      link.cut()
      requests = ''
      before = undefined
    }
  })

  /** `a` publishes 'precious' by `link`, and hears of it neither from the log nor by a reply; `b` does. */
  const publishUnanswered = async (link: Proxy, a: Node, b: Node): Promise<{ published: Promise<string> }> => {
    // Its reader was connected first, its writer second.
    link.freezeOne(0)
    let lost = 0
    link.onRequest = chunk => {
      if (chunk.includes('precious')) link.onReply = () => ++lost > 1
    }
    const published = a.broker.publish('a', text('precious'))
    await until(() => lost > 0 && b.sink.data.includes('precious'))
    return { published }
  }

  /** The writer makes a new connection, and sends it again. */
  const sendAgain = async (link: Proxy, b: Node): Promise<void> => {
    link.onRequest = link.onReply = undefined
    link.cutOne(1)
    await until(() => b.broker.stats().duplicates === 1)
  }

  it('the reply is lost and the reader is late: publish() waits for the id that is delivered', async () => {
    const link = await proxy()
    const a = await startedNode(link.options)
    const b = await startedNode(server.options)
    await passes('before', a, a, b)
    const { published } = await publishUnanswered(link, a, b)
    await sendAgain(link, b)
    expect(a.broker.stats().pending).to.equal(1)
    link.thaw()
    expect(await published).to.equal(b.sink.events[1]!.id)
    await passes('after', b, a, b)
    expect(a.sink.events).to.deep.equal(b.sink.events)
  })

  it('the reply is lost and the reader is late, and so is the time: publish() resolves with what is acknowledged, sent no third time', async () => {
    const link = await proxy()
    const a = await startedNode(link.options, { publishTimeout: 2_000 })
    const b = await startedNode(server.options)
    await passes('before', a, a, b)
    const { published } = await publishUnanswered(link, a, b)
    await sendAgain(link, b)
    // Of its connections one is the reader's, which stands still; the other was made last.
    link.cutOne(1)
    const other = a.broker.publish('a', text('other'))
    await until(() => b.sink.data.includes('other'))
    const log = (await server.command('XRANGE', KEY, '-', '+')) as [string, string[]][]
    const copies = log.filter(([, fields]) => fields[5]!.includes('precious')).map(([id]) => id)
    expect(copies).to.have.lengthOf(2)
    expect((await published).split('.')[0]).to.equal(copies[1])
    expect((await other).split('.')[0]).to.equal(log.at(-1)![0])
  })

  it('the reply is lost, and so is what stood before the event: publish() resolves when the log is read anew', async () => {
    const link = await proxy()
    const a = await startedNode(link.options)
    const b = await startedNode(server.options)
    const before = await passes('before', a, a, b)
    const { published } = await publishUnanswered(link, a, b)
    await server.command('XDEL', KEY, before.split('.')[0]!)
    link.thaw()
    expect(await published).to.equal(b.sink.events[1]!.id)
    expect(a.sink.gaps).to.deep.equal(['lost'])
    expect(b.broker.stats().duplicates).to.equal(0)
  })

  it('the reply is lost, and then the log: publish() does not wait for what will not come', async () => {
    const link = await proxy()
    const a = await startedNode(link.options, {}, { block: 1_000 })
    const b = await startedNode(server.options)
    await passes('before', a, a, b)
    const { published } = await publishUnanswered(link, a, b)
    await sendAgain(link, b)
    await server.command('DEL', KEY)
    link.thaw()
    await until(() => a.sink.gaps.length > 0)
    await until(() => a.broker.stats().pending === 0)
    expect(await published).to.match(/^\d+-\d+\.[0-9a-z]{4}$/)
  })

  it('an event is in the log twice: one copy is delivered, by whoever reads, from wherever', async () => {
    const a = await startedNode(server.options)
    const start = await passes('start', a, a)
    const copy = encodeFields({ publisher: 'abcdefghijkl', count: 1 }, { channel: 'a', event: text('twice') })
    const add = async (): Promise<unknown> => server.command('XADD', KEY, '*', ...copy)
    await add()
    await passes('between', a, a)
    await add()
    await passes('end', a, a)
    expect(a.sink.data).to.deep.equal(['start', 'twice', 'between', 'end'])
    expect(a.broker.stats().duplicates).to.equal(1)
    // One that starts now, and fills its window.
    const b = await startedNode(server.options)
    expect(b.sink.data).to.deep.equal(a.sink.data)
    for (const { broker } of [a, b]) {
      for (const [from, { id }] of a.sink.events.entries()) {
        expect((await broker.read(id, 10))?.map(({ event }) => event.data)).to.deep.equal(a.sink.data.slice(from + 1))
      }
      expect((await broker.read(start, 2))?.map(({ event }) => event.data)).to.deep.equal(['twice', 'between'])
    }
    // The copy's id is as good as any.
    const ids = a.sink.calls.flatMap(call => (call[0] === 'event' ? [call[1].id] : call[0] === 'position' ? [call[1]] : []))
    const copyId = ids[ids.indexOf(a.sink.events[2]!.id) + 1]!
    expect((await b.broker.read(copyId, 10))?.map(({ event }) => event.data)).to.deep.equal(['end'])
  })

  it('a client is ahead of the process that it comes back to: it is not rewound, and gets what follows', async () => {
    const link = await proxy()
    const a = await startedNode(server.options)
    const b = await startedNode(link.options)
    await passes('before', a, a, b)
    // What it reads with goes on; what it follows the log with, its first connection, stands still.
    link.freezeOne(0)
    const ahead = await a.broker.publish('a', text('ahead'))
    let answer: unknown = 'none yet'
    const reading = b.broker.read(ahead, 10).then(entries => (answer = entries))
    await after(100)
    expect(answer).to.equal('none yet')
    expect(await b.broker.read(ahead.replace(/\.....$/, '.zzzz'), 10)).to.equal(undefined)
    expect(await b.broker.read(ahead.replace(/^\d/, '9'), 10)).to.equal(undefined)
    link.thaw()
    await reading
    expect(answer).to.deep.equal([])
    expect(b.sink.data).to.deep.equal(['before', 'ahead'])
    // Or the log is lost before that.
    link.freezeOne(0)
    const lost = b.broker.read(await a.broker.publish('a', text('lost')), 10)
    await after(100)
    await server.command('DEL', KEY)
    link.thaw()
    expect(await lost).to.equal(undefined)
  })

  it('clients are ahead of it, and its reader comes to their places one by one: each gets its answer', async () => {
    const link = await proxy()
    const a = await startedNode(server.options)
    const b = await startedNode(
      link.options,
      {},
      { readPage: async (connection, key, at, size, most = 1) => readPage(connection, key, at, size, most) },
    )
    await passes('before', a, a, b)
    link.freezeOne(0)
    const ids: string[] = []
    for (const data of ['1', '2', '3', '4']) ids.push(await a.broker.publish('a', text(data)))
    const answers = Promise.all(ids.map(async id => b.broker.read(id, 10)))
    await after(100)
    link.thaw()
    for (const [i, entries] of (await answers).entries()) {
      const missed = entries!.map(({ event }) => event.data)
      expect(missed).to.deep.equal(['1', '2', '3', '4'].slice(i + 1, i + 1 + missed.length))
    }
    await b.sink.have(5)
  })

  it('a client asks what another was about to be told before the log went on: it is told what has come since', async () => {
    const link = await proxy()
    const [a, b] = [await startedNode(server.options), await startedNode(link.options)]
    const id = await passes('before', a, a, b)
    expect(await b.broker.read(id, 10)).to.deep.equal([])
    link.freezeOne(2)
    const early = b.broker.read(id, 10)
    await new Promise(resolve => setImmediate(resolve))
    await passes('since', a, b)
    const late = b.broker.read(id, 10)
    link.thaw()
    expect(await early).to.deep.equal([])
    expect((await late)?.map(({ event }) => event.data)).to.deep.equal(['since'])
  })

  it('acknowledged writes are lost by those who keep the rest: all nodes are told, those that never saw them, too', async () => {
    const link = await proxy()
    const a = await startedNode(server.options)
    const b = await startedNode(link.options, {}, { block: 300 })
    const fresh = await startedNode(server.options)
    await passes('kept', a, a, b, fresh)
    link.freeze()
    const lost = await passes('lost', a, a)
    // As a master that had not replicated it would have it.
    await server.command('XDEL', KEY, lost.split('.')[0]!)
    // The entry is a's newest: its next read finds it gone.
    await server.cutAll()
    await until(() => a.sink.gaps.length > 0)
    link.thaw()
    await until(() => b.sink.gaps.length > 0)
    await passes('after', a, a, b)
    expect([a.sink.gaps, b.sink.gaps, fresh.sink.gaps]).to.deep.equal([['lost'], ['lost'], ['lost']])
    expect(b.sink.data).to.deep.equal(['kept', 'after'])
  })

  it('acknowledged writes are lost, and Redis takes nothing when that is noticed: all nodes are told as soon as it does', async () => {
    const link = await proxy()
    const a = await startedNode(server.options, {}, { block: 100, heartbeat: 100 })
    const b = await startedNode(link.options, {}, { block: 300 })
    await passes('kept', a, a, b)
    link.freeze()
    const lost = await passes('lost', a, a)
    await server.command('CONFIG', 'SET', 'maxmemory', 1)
    const newer = (await server.command('XRANGE', KEY, lost.split('.')[0]!, '+')) as [string, string[]][]
    await server.command('XDEL', KEY, ...newer.map(([id]) => id))
    await until(() => a.sink.gaps.length > 0)
    // What was announced had its answer before this.
    expect(String(((await rejection(a.broker.publish('a', text('x')))) as Error).cause)).to.include('OOM')
    await server.command('CONFIG', 'SET', 'maxmemory', 0)
    link.thaw()
    await until(() => b.sink.gaps.length > 0)
    await passes('after', a, a, b)
    expect([a.sink.gaps, b.sink.gaps]).to.deep.equal([['lost'], ['lost']])
    expect(b.sink.data).to.deep.equal(['kept', 'after'])
    // Once is enough, however many heartbeats follow.
    const told = b.sink.calls.length
    await until(() => b.sink.calls.length > told + 2)
    const log = (await server.command('XRANGE', KEY, '-', '+')) as [string, string[]][]
    expect(log.filter(([, fields]) => fields[5]!.includes('fork')).length).to.equal(1)
  })

  it('another entry stands where the newest one stood: that is no continuity', async () => {
    const a = await startedNode(server.options, {}, { block: 300 })
    const kept = await passes('kept', a, a)
    const lost = await passes('lost', a, a)
    const [id] = lost.split('.') as [string]
    await server.command('MULTI')
    await server.command('XDEL', KEY, id)
    await server.command('XSETID', KEY, kept.split('.')[0]!)
    await server.command('XADD', KEY, id, ...encodeFields({ publisher: 'abcdefghijkl', count: 1 }, { channel: 'a', event: text('other') }))
    await server.command('EXEC')
    await until(() => a.sink.gaps.length > 0)
    expect(a.sink.gaps).to.deep.equal(['lost'])
    expect(await a.broker.read(lost, 10)).to.equal(undefined)
    expect((await a.broker.read(kept, 10))?.map(({ event }) => event.data)).to.deep.equal(['other'])
  })

  it('too many publishes wait: the next rejects, and the others arrive', async () => {
    const one = await startedNode(server.options, { maxPending: 10 })
    server.pause()
    const waiting = Array.from({ length: 10 }, async (_, i) => one.broker.publish('a', text(`${i}`)))
    expect(await rejection(one.broker.publish('a', text('one more')))).to.include({ name: 'SseError', code: 'ERR_SSE_BROKER_BUSY' })
    server.resume()
    await Promise.all(waiting)
    await passes('after', one, one)
    expect(one.sink.data).to.deep.equal([...Array.from({ length: 10 }, (_, i) => `${i}`), 'after'])
  })

  it('no replica has a strict publish: it rejects; when one has it, it resolves', async () => {
    const one = await startedNode(server.options, { strict: true })
    const alone = rejection(one.broker.publish('a', text('alone')))
    await until(() => one.sink.data.includes('alone'))
    // It is lost, and that is no better.
    await server.command('DEL', KEY)
    await server.command('XADD', KEY, '*', 'not', 'ours')
    await until(() => one.sink.gaps.length > 0)
    expect(await alone).to.include(UNAVAILABLE)
    const replica = await RedisServer.start({ args: ['--replicaof', '127.0.0.1', `${server.port}`] })
    try {
      await server.command('CONFIG', 'SET', 'repl-diskless-sync-delay', 0)
      while (!(await server.info('replication', 'slave0')).includes('state=online')) await after(20)
      const id = await one.broker.publish('a', text('both'))
      const [redisId] = id.split('.') as [string]
      expect(await replica.command('XRANGE', KEY, redisId, redisId)).to.have.lengthOf(1)
      // Redis asks for more of them than there are: that one has all there is is no answer then.
      await server.command('CONFIG', 'SET', 'min-replicas-to-write', 2)
      const waiting = passes('later', one, one)
      await until(() => one.sink.errors.some(error => String(error).includes('NOREPLICAS')))
      await server.command('CONFIG', 'SET', 'min-replicas-to-write', 0)
      await waiting
      expect(one.sink.data).to.deep.equal(['alone', 'both', 'later'])
    } finally {
      await replica.stop()
    }
  })

  it('the reply to a strict publish is lost: a replica has to have it again, and it resolves with the one that is delivered', async () => {
    const link = await proxy()
    const one = await startedNode(link.options, { strict: true })
    const replica = await RedisServer.start({ args: ['--replicaof', '127.0.0.1', `${server.port}`] })
    try {
      await server.command('CONFIG', 'SET', 'repl-diskless-sync-delay', 0)
      while (!(await server.info('replication', 'slave0')).includes('state=online')) await after(20)
      // The reader's replies are arrays.
      link.onReply = chunk => !/^[$:]/.test(chunk.toString())
      const published = one.broker.publish('a', text('precious'))
      await one.sink.have(1)
      expect(one.broker.stats().pending).to.equal(1)
      link.onReply = undefined
      link.cut()
      expect(await published).to.equal(one.sink.events[0]!.id)
      await until(() => one.broker.stats().duplicates === 1)
      expect(one.sink.data).to.deep.equal(['precious'])
    } finally {
      await replica.stop()
    }
  })

  it('may not ask what replicas have: a strict publish rejects in time, with the cause, and the sink is told once', async () => {
    await server.command('ACL', 'SETUSER', 'default', '-wait')
    const one = await startedNode(server.options, { strict: true, publishTimeout: 300 })
    const error = await rejection(one.broker.publish('a', text('x')))
    expect(error).to.include(UNAVAILABLE)
    expect(String((error as Error).cause)).to.include('NOPERM')
    expect(one.sink.errors.map(String))
      .to.have.lengthOf(1)
      .and.satisfy(([told]: string[]) => told!.includes('NOPERM'))
  })

  it('the log grows, and nothing is old: it keeps no more entries than it should', async () => {
    const one = await startedNode(server.options, { maxEntries: 500 }, { heartbeat: 100 })
    await Promise.all(Array.from({ length: 3_000 }, async (_, i) => one.broker.publish('a', text(`${i}`))))
    while (Number(await server.command('XLEN', KEY)) > 700) await after(20)
    expect(Number(await server.command('XLEN', KEY))).to.be.at.least(500)
  })

  it('the log grows: it keeps what it should, and not much more', async () => {
    const one = await startedNode(server.options, { maxEntries: 500, publishTimeout: 3_000, retention: 3_000 }, { heartbeat: 100 })
    await Promise.all(Array.from({ length: 3_000 }, async (_, i) => one.broker.publish('a', text(`${i}`))))
    const length = async (): Promise<number> => Number(await server.command('XLEN', KEY))
    for (const begin = performance.now(); (await length()) > 700 && performance.now() - begin < 5_000;) await after(20)
    expect(await length()).to.be.within(100, 700)
    // By age, later: the heartbeats go on.
    for (const begin = performance.now(); (await length()) > 150 && performance.now() - begin < 5_000;) await after(20)
    expect(await length()).to.be.at.most(150)
    // Whoever had not read it all by then has been told.
    expect(one.sink.data.length === 3_000 || one.sink.gaps.length > 0).to.equal(true)
  })

  for (const state of ['there', 'away', 'paused', 'flushed'] as const) {
    it(`it is closed while Redis is ${state}: that takes no time, and what waits is told`, async () => {
      const one = await startedNode(server.options)
      const id = await passes('x', one, one)
      if (state === 'away') await server.kill()
      if (state === 'paused') server.pause()
      if (state === 'flushed') await server.command('FLUSHALL')
      const waiting = one.broker.publish('a', text('y'))
      const outcome = waiting.then(
        () => 'arrived',
        (error: { code: string }) => error.code,
      )
      if (state === 'away') await after(50)
      const reading = state === 'paused' ? rejection(one.broker.read(id.replace(/^\d/, '9'), 10)) : undefined
      const told = one.sink.errors.length
      const begin = performance.now()
      await one.broker.close()
      expect(performance.now() - begin).to.be.below(1_000)
      expect(await outcome).to.equal(state === 'there' || state === 'flushed' ? 'arrived' : 'ERR_SSE_BROKER_CLOSED')
      if (reading !== undefined) expect(await reading).to.have.property('code', 'ERR_SSE_BROKER_CLOSED')
      expect(one.sink.errors).to.have.lengthOf(told)
      server.resume()
    })
  }

  it('it is closed before it has a connection to write with: what was published arrives, in order, and nothing is taken any more', async () => {
    const reader = await startedNode(server.options)
    const one = node(server.options)
    await one.started
    const texts = Array.from({ length: 50 }, (_, i) => `${i}`)
    const published = Promise.all(texts.map(async data => one.broker.publish('a', text(data))))
    const closing = one.broker.close()
    expect(await rejection(one.broker.publish('a', text('late')))).to.have.property('code', 'ERR_SSE_BROKER_CLOSED')
    const ids = await published
    await closing
    await reader.sink.have(50)
    expect(reader.sink.data).to.deep.equal(texts)
    expect(reader.sink.events.map(({ id }) => id)).to.deep.equal(ids)
  })

  it('it is closed while more reads are asked for than it makes at once: each is told', async () => {
    const { broker } = await startedNode(server.options)
    await broker.read(await broker.publish('a', text('x')), 10)
    server.pause()
    const reads = Array.from({ length: 50 }, async (_, i) => rejection(broker.read(`1-${i}.aaaa`, 10)))
    await broker.close()
    for (const error of await Promise.all(reads)) expect(error).to.have.property('code', 'ERR_SSE_BROKER_CLOSED')
    server.resume()
  })

  it('it is closed: no timer of its own keeps the process', async () => {
    const timers = (): number => process.getActiveResourcesInfo().filter(name => name === 'Timeout').length
    // Mocha sets its own behind the first turn.
    await nextTurn()
    const before = timers()
    const { broker } = await startedNode(server.options)
    await broker.close()
    while (timers() > before) await nextTurn()
  })

  it('heartbeats come back: they are no reason to make a connection anew', async () => {
    const { broker, sink } = await startedNode(server.options, {}, { heartbeat: 300 })
    const told = sink.ids.length
    await until(() => sink.ids.length > told + 6, 10_000)
    expect([broker.stats().reconnects, sink.errors]).to.deep.equal([0, []])
  })

  it('Redis says nothing for a while: heartbeats do not pile up', async () => {
    const one = await startedNode(server.options, {}, { heartbeat: 10 })
    const before = Number(await server.command('XLEN', KEY))
    server.pause()
    await after(1_000)
    server.resume()
    const [place] = (await passes('after', one, one)).split('.') as [string]
    const entries = (await server.command('XRANGE', KEY, '-', place)) as unknown[]
    expect(entries.length - before).to.be.below(20)
  })

  it('a thousand clients ask for a thousand places: all get their answer, eight at a time', async () => {
    const one = await startedNode(server.options)
    const ids = await Promise.all(Array.from({ length: 1_000 }, async (_, i) => one.broker.publish('a', text(`${i}`))))
    await one.sink.have(1_000)
    const answers = await Promise.all(ids.map(async id => one.broker.read(id, 5)))
    for (const [i, entries] of answers.entries()) expect(entries).to.deep.equal(one.sink.events.slice(i + 1, i + 6))
    expect(Number(await server.info('clients', 'connected_clients'))).to.be.at.most(4)
  })

  it('more than ten thousand ask while it does not answer: the others are refused, the sink is told once, and each gets its answer', async () => {
    const one = await startedNode(server.options)
    server.pause()
    const refused: unknown[] = []
    const reads = Array.from({ length: 10_100 }, async (_, i) => one.broker.read(`9999999999999-${i}.aaaa`, 1))
    for (const read of reads) read.catch((error: unknown) => refused.push(error))
    await until(() => refused.length === 100)
    for (const error of refused) expect(error).to.include({ name: 'SseError', code: 'ERR_SSE_BROKER_BUSY' })
    expect(one.sink.errors).to.deep.equal([refused[0]])
    server.resume()
    expect((await Promise.allSettled(reads)).filter(({ status }) => status === 'fulfilled')).to.have.lengthOf(10_000)
  })
})
