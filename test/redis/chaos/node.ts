import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import Koa from 'koa'
import { Hub } from '../../../src/hub.ts'
import { sse } from '../../../src/middleware.ts'
import { decode } from '../../../src/redis/entry.ts'
import type { PageReader } from '../../../src/redis/page.ts'
import { RedisBroker } from '../../../src/redis/redis-broker.ts'
import { redisIdOf } from '../../../src/redis/cursor.ts'

/** What a node is told. */
export type Order = { publish: number; channels: number } | { stop: true } | { broadcast: number; data: string } | { stats: number }

export type Acks = [data: string, channel: string, id: string][]

export interface Figures {
  gaps: number
  up: boolean
}

/** What a node says. */
export type Word = { port: number } | { acks: Acks } | { stopped: true; rejected: number } | { to: number; answer: Figures | string }

const [name = '', redisPort = '', naive = ''] = process.argv.slice(2)

// The usual way: whatever comes after the last id is taken for what follows it.
const naivePage: PageReader = async (connection, key, after, size, most = Infinity) => {
  const { raw, more } = await size.read(most, async count => {
    const reply = await connection.within(5_000, async () => connection.redis.xread('COUNT', count, 'STREAMS', key, redisIdOf(after)))
    return reply?.[0]?.[1] ?? []
  })
  return { entries: raw.map(decode), more }
}

const broker = new RedisBroker(
  { redis: { host: '127.0.0.1', port: Number(redisPort) }, retention: 120_000 },
  naive === 'naive' ? { readPage: naivePage } : {},
)
const hub = new Hub({ broker })
hub.on('error', () => {})

const app = new Koa()
app.use(sse({ heartbeat: 2_000 }))
app.use(hub.subscriber(ctx => String((ctx as { query?: Record<string, unknown> }).query?.['c'] ?? '').split(',')))
app.on('error', () => {})

const say = (word: Word): void => {
  if (process.connected) process.send!(word)
}

let acks: Acks = []
let rejected = 0
const pending = new Set<string>()
const report = (): void => {
  if (acks.length > 0) say({ acks })
  acks = []
}

const publish = (data: string, channel: string): void => {
  pending.add(data)
  hub
    .publish(channel, data)
    .then(
      id => acks.push([data, channel, id]),
      () => rejected++,
    )
    .finally(() => pending.delete(data))
}

let timer: NodeJS.Timeout | undefined
const begin = (rate: number, channels: number): void => {
  let count = 0
  const start = performance.now()
  timer = setInterval(() => {
    // However late the timer is, the rate is kept.
    for (const due = ((performance.now() - start) / 1_000) * rate; count < due; count++) publish(`${name}.${count}`, `c${(count * 7) % channels}`)
    report()
  }, 20)
}

const stop = async (): Promise<void> => {
  clearInterval(timer)
  while (pending.size > 0) await new Promise(resolve => setTimeout(resolve, 20))
  report()
  say({ stopped: true, rejected })
}

process.on('message', (order: Order) => {
  if ('publish' in order) begin(order.publish, order.channels)
  else if ('stop' in order) void stop()
  else if ('broadcast' in order) void hub.broadcast(order.data).then(answer => say({ to: order.broadcast, answer }))
  else {
    const { gaps, up } = broker.stats()
    say({ to: order.stats, answer: { gaps: gaps.lost + gaps.trimmed, up } })
  }
})
process.on('disconnect', () => process.exit())

const listener = app.callback()
const server = createServer((req, res) => void listener(req, res))
server.listen(0, '127.0.0.1', () => say({ port: (server.address() as AddressInfo).port }))
