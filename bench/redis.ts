import { Redis } from 'ioredis'
import type { BrokerEntry, BrokerSink } from '../src/broker.ts'
import { RedisBroker } from '../src/redis/index.ts'
import { RedisServer } from '../test/support/redis.ts'
import { latencies } from './redis-latency.ts'

// npm run bench:redis [-- <seconds per figure>]
const seconds = Number(process.argv[2] ?? 3)
const DATA = 'x'.repeat(200)
const KEY = '{sse:0}:log'
const print = (line: string): void => void process.stdout.write(`${line}\n`)

const sink = (onEvent: (entry: BrokerEntry) => void = () => {}): BrokerSink => ({
  event: onEvent,
  position: () => {},
  gap: reason => print(`a gap: ${reason}`),
  error: error => print(String(error)),
})

/** Runs `work`, which does `count` of something, for a while, and says how many per second. */
const rate = async (count: number, work: () => Promise<unknown>): Promise<number> => {
  for (let i = 0; i < 5; i++) await work()
  const begin = performance.now()
  let done = 0
  while (performance.now() - begin < seconds * 1_000) {
    await work()
    done += count
  }
  return Math.round((done / (performance.now() - begin)) * 1_000)
}

const quantile = (sorted: readonly number[], q: number): string => sorted[Math.floor((sorted.length - 1) * q)]!.toFixed(2)

const server = await RedisServer.start()
const plain = new Redis(server.options)
const rows: [what: string, ours: string, plain: string][] = []
const compare = (what: string, ours: number, theirs: number): void => {
  rows.push([what, ours.toLocaleString('en'), `${theirs.toLocaleString('en')} (× ${(theirs / ours).toFixed(2)})`])
}
const xadd = async (key: string): Promise<unknown> =>
  plain.xadd(key, 'MAXLEN', '~', 100_000, '*', 'm', 'abcdefghijkl.1', 'c', 'a', 'd', JSON.stringify({ data: DATA }), 'k', '')
const burst = async (work: () => Promise<unknown>): Promise<unknown> => Promise.all(Array.from({ length: 1_000 }, work))

// What follows the plain stream, as the broker follows its own: without a proof.
const follower = plain.duplicate()
const following = (async () => {
  let last = '$'
  for (;;) {
    const reply = await follower.xread('COUNT', 1_000, 'BLOCK', 500, 'STREAMS', 'plain', last)
    for (const [id, fields] of reply?.[0]?.[1] ?? []) {
      JSON.parse(fields[5]!)
      last = id
    }
  }
})().catch(() => {})

// Publishing.
const broker = new RedisBroker({ redis: server.options, maxEntries: 100_000 })
await broker.start(sink())
const publish = async (): Promise<unknown> => broker.publish('a', { data: DATA })
compare('publishes/s, awaited one by one', await rate(1, publish), await rate(1, async () => xadd('plain')))
compare(
  'publishes/s, 1 000 at a time',
  await rate(1_000, async () => burst(publish)),
  await rate(1_000, async () => burst(async () => xadd('plain'))),
)
await broker.close()
follower.disconnect()
await following

// What a node takes in that is behind by 100 000 entries.
await server.command('FLUSHALL')
const feeder = new RedisBroker({ redis: server.options, maxEntries: 1_000_000, maxPending: 100_000 })
const have = { count: 0 }
const behind = new RedisBroker({ redis: server.options })
await feeder.start(sink())
await behind.start(sink(() => have.count++))
await feeder.publish('a', { data: DATA })
const ENTRIES = 100_000
const before = performance.now()
for (let i = 0; i < ENTRIES / 10_000; i++) await Promise.all(Array.from({ length: 10_000 }, async () => feeder.publish('a', { data: DATA })))
const written = performance.now()
while (have.count <= ENTRIES) await new Promise(resolve => setTimeout(resolve, 1))
rows.push([
  'events/s through two nodes, published and followed at once',
  Math.round((ENTRIES / (performance.now() - before)) * 1_000).toLocaleString('en'),
  '',
])
rows.push(['  … of it behind the publisher, ms', (performance.now() - written).toFixed(0), ''])

// What a node takes in by itself.
let total = 0
const ingestOurs = await (async () => {
  const begin = performance.now()
  let id = await firstId(behind)
  for (;;) {
    const page = await behind.read(id, 1_000)
    if (page === undefined || page.length === 0) break
    total += page.length
    id = page.at(-1)!.id
  }
  return Math.round((total / (performance.now() - begin)) * 1_000)
})()
const ingestPlain = await (async () => {
  const begin = performance.now()
  let id = '0'
  let count = 0
  for (;;) {
    const page = await plain.xrange(KEY, `(${id}`, '+', 'COUNT', 1_000)
    if (page.length === 0) break
    for (const [, fields] of page) if (fields[5] !== '') JSON.parse(fields[5]!)
    count += page.length
    id = page.at(-1)![0]
  }
  return Math.round((count / (performance.now() - begin)) * 1_000)
})()
compare('ingest of one node, events/s, pages of 1 000', ingestOurs, ingestPlain)

// A thousand clients at a thousand places, each with a hundred events to come.
const ids = (await behind.read(await firstId(behind), 1_000))!.map(({ id }) => id)
const replayOurs = await rate(1_000, async () => Promise.all(ids.map(async id => behind.read(id, 100))))
const replayPlain = await rate(1_000, async () => Promise.all(ids.map(async id => plain.xrange(KEY, id.split('.')[0]!, '+', 'COUNT', 101))))
compare('replays/s of 100 events, 1 000 clients at once', replayOurs, replayPlain)
await feeder.close()

// From publish() in one process, through the hub of another, to its client in a third.
for (const burst of [1, 10]) {
  const ours = await latencies('koa-sse', server.url, burst)
  const theirs = await latencies('plain', server.url, burst)
  for (const q of [0.5, 0.99]) {
    rows.push([`publish to HTTP client, two processes, ${burst} every 2 ms: p${q * 100}, ms`, quantile(ours, q), quantile(theirs, q)])
  }
}

await behind.close()
plain.disconnect()
await server.stop()
print(`\nNode ${process.version}, 200 bytes of data, Redis on the same machine\n\n| | RedisBroker | plain ioredis |\n|---|--:|--:|`)
for (const row of rows) print(`| ${row.join(' | ')} |`)

async function firstId(of: RedisBroker): Promise<string> {
  const [, [redisId, fields]] = (await server.command('XRANGE', KEY, '-', '+', 'COUNT', 2)) as [unknown, [string, string[]]]
  const { tagOf } = await import('../src/redis/cursor.ts')
  const id = `${redisId}.${tagOf(fields[1]!)}`
  if ((await of.read(id, 1)) === undefined) throw new Error(`${id} is not there`)
  return id
}
