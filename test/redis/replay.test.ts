import { expect } from 'chai'
import { sse } from '../../src/middleware.ts'
import { messageTag } from '../../src/redis/entry.ts'
import { RedisBroker } from '../../src/redis/redis-broker.ts'
import { connect } from '../support/client.ts'
import { makeHub } from '../support/hub.ts'
import { eachRedis } from '../support/redis.ts'
import { koa, serve, until } from '../support/serve.ts'
import { closeNodes, KEY, startedNode } from './support.ts'

/** Has the log hold so many events in `ms` milliseconds up to now, each eighth a copy of one before. Gives their ids, and which are no copies. */
const FILL = `
  local ids = {}
  for i = 1, ARGV[1] do
    local n = i
    if i % 8 == 0 then n = i - 3 end
    local id = math.floor(ARGV[2] + i * ARGV[3] / ARGV[1]) .. '-' .. i
    redis.call('XADD', KEYS[1], id, 'm', 'abcdefghijkl.' .. n, 'c', 'a', 'd', '{"data":"' .. n .. ARGV[4] .. '"}', 'k', '')
    ids[i] = id
  end
  return ids`

/** The next so many of them that are no copies. */
const eventsAfter = (at: number, count: number): number[] => {
  const events: number[] = []
  for (let i = at + 1; events.length < count; i++) if (i % 8 !== 0) events.push(i)
  return events
}

describe('what a client that comes back costs RedisBroker', function () {
  this.timeout(20_000)
  // Before their server.
  afterEach(closeNodes)
  const redis = eachRedis()

  /** Its ids, as Redis knows them. */
  const fill = async (count: number, ms: number, bytes = 0): Promise<string[]> =>
    (await redis().command('EVAL', FILL, 1, KEY, count, Date.now() - ms, ms, 'x'.repeat(bytes))) as string[]
  const cursor = (redisId: string): string => {
    const i = Number(redisId.split('-')[1])
    return `${redisId}.${messageTag({ publisher: 'abcdefghijkl', count: i % 8 === 0 ? i - 3 : i })}`
  }
  /** Commands of a kind so far. */
  const calls = async (...names: string[]): Promise<number> => {
    let sum = 0
    for (const name of names) sum += Number(/calls=(\d+)/.exec(await redis().info('commandstats', `cmdstat_${name}`))?.[1] ?? 0)
    return sum
  }
  /** Bytes that Redis has sent so far. */
  const sent = async (): Promise<number> => Number(await redis().info('stats', 'total_net_output_bytes'))

  it('what lies further back than was read at start is read once for all of them', async () => {
    const ids = await fill(40_000, 40_000)
    const { broker } = await startedNode(redis().options)
    const before = await calls('xrange', 'xrevrange')
    const places = Array.from({ length: 8 }, (_, i) => 20_500 + i * 500)
    await Promise.all(
      places.map(async place => {
        let at = place
        for (let pages = 0; pages < 5; pages++) {
          const page = (await broker.read(cursor(ids[at - 1]!), 70))!
          const expected = eventsAfter(at, 70)
          expect(page.map(({ event }) => Number(event.data))).to.deep.equal(expected)
          at = expected.at(-1)!
        }
      }),
    )
    expect((await calls('xrange', 'xrevrange')) - before).to.be.below(100)
  })

  it('an id that was never given costs one entry, and a real one its events, each page once', async () => {
    const ids = await fill(300, 300, 10_000)
    const { broker } = await startedNode(redis().options)
    await broker.read(cursor(ids[0]!), 1)
    let before = await sent()
    for (let i = 0; i < 20; i++) expect(await broker.read(cursor(ids[i]!).replace(/.{4}$/, 'zzzz'), 100)).to.equal(undefined)
    expect((await sent()) - before).to.be.within(20 * 10_000, 21 * 11_000)
    before = await calls('xrange', 'xrevrange')
    let at = cursor(ids[0]!)
    for (let i = 0; i < 10; i++) at = (await broker.read(at, 10))!.at(-1)!.id
    expect((await calls('xrange', 'xrevrange')) - before).to.equal(10)
  })

  it('a thousand that were cut at the same place cost as much as one', async () => {
    const ids = await fill(300, 300)
    const { broker } = await startedNode(redis().options)
    await broker.read(cursor(ids[0]!), 1)
    const before = await calls('xrange', 'xrevrange')
    const pages = await Promise.all(Array.from({ length: 1_000 }, async () => broker.read(cursor(ids[100]!), 10)))
    for (const page of pages) expect(page?.map(({ event }) => Number(event.data))).to.deep.equal(eventsAfter(101, 10))
    // Whether the place is there, and what follows it.
    expect((await calls('xrange', 'xrevrange')) - before).to.equal(2)
  })

  for (const [count, bytes, commands] of [
    [201, 100_000, 500],
    [2_001, 200, 60],
  ] as const) {
    it(`${count - 1} events of ${bytes} bytes cross the wire from Redis about twice, however few the stream has room for`, async () => {
      const ids = await fill(count, 1_000, bytes)
      const hub = makeHub({ broker: new RedisBroker({ redis: redis().options }), history: { events: 1 } })
      await until(() => hub.stats().broker.up)
      const { url } = await serve(koa(sse(), hub.subscriber('a')))
      const [before, callsBefore] = [await sent(), await calls('xrange', 'xrevrange')]
      const client = await connect(url, { headers: { 'Last-Event-ID': cursor(ids[0]!) } })
      await client.take(Math.floor(((count - 1) * 7) / 8))
      expect((await sent()) - before).to.be.below(count * bytes * 3)
      expect((await calls('xrange', 'xrevrange')) - callsBefore).to.be.below(commands)
    })
  }

  it('reads large events by pages that Redis does not refuse: at start, as many as a hub keeps; as they come; and again', async () => {
    await redis().command('CONFIG', 'SET', 'client-output-buffer-limit', 'normal 8388608 0 0')
    const [first] = await fill(800, 800, 100_000)
    const { broker, sink } = await startedNode(redis().options)
    // Of 80 MB.
    expect(sink.data.length).to.be.within(580, 590)
    expect(sink.data.at(-1)).to.match(/^799x/)
    const { length } = sink.data
    await redis().command('EVAL', FILL.replace('abcdefghijkl', 'mnopqrstuvwx'), 1, KEY, 200, Date.now(), 200, 'x'.repeat(100_000))
    await sink.have(length + 175)
    const page = (await broker.read(cursor(first!), 100))!
    const numbers = page.map(({ event }) => Number.parseInt(String(event.data)))
    expect(numbers).to.have.lengthOf.above(10)
    expect(numbers).to.deep.equal(eventsAfter(1, numbers.length))
    expect(broker.stats()).to.include({ reconnects: 0 })
    expect(broker.stats().gaps).to.deep.equal({ lost: 0, trimmed: 0 })
  })

  it('finds pages that a server takes which lets little wait for a client: at start, and of what comes', async () => {
    await redis().command('CONFIG', 'SET', 'client-output-buffer-limit', 'normal 1048576 0 0')
    await fill(64, 64, 100_000)
    const { sink } = await startedNode(redis().options)
    expect(sink.data.at(-1)).to.match(/^63x/)
    const { length } = sink.data
    await redis().command('EVAL', FILL.replace('abcdefghijkl', 'mnopqrstuvwx'), 1, KEY, 64, Date.now(), 64, 'x'.repeat(100_000))
    await sink.have(length + 56)
  })

  it('what is published is little, and heartbeats are many: it finds what comes behind them, and takes few commands for that', async () => {
    const { broker, sink } = await startedNode(redis().options)
    const from = await broker.publish('a', { data: 'before' })
    const beats = `for i = 1, 12000 do redis.call('XADD', KEYS[1], '*', 'm', ARGV[1] .. i, 'c', '', 'd', '', 'k', 'hb') end`
    await redis().command('EVAL', beats, 1, KEY, 'abcdefghijkl.')
    await broker.publish('a', { data: 'next' })
    await redis().command('EVAL', beats, 1, KEY, 'mnopqrstuvwx.')
    const id = await broker.publish('a', { data: 'far' })
    await until(() => sink.ids.at(-1) === id)
    const before = await calls('xrange', 'xrevrange')
    expect((await broker.read(from, 10))?.map(({ event }) => event.data)).to.deep.equal(['next'])
    expect((await calls('xrange', 'xrevrange')) - before).to.be.below(30)
  })
})
