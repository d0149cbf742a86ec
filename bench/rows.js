import { setTimeout as sleep } from 'node:timers/promises'

// Deferred work, and the connections' own, is over by then.
const SETTLED = 300

const KB = 1024

/**
 * Events to all clients of one channel, no more than 64 of them on their way.
 *
 * `clients` have to be open.
 */
const fanOut = async (session, { clients, events, burst = 1, latency = false }) => {
  const received = session.expect({ each: events, total: clients * events, ackEvery: 16, latency })
  await Promise.all([received, session.publish({ count: events, burst, window: 64 })])
}

const fanOutRow =
  burst =>
  async (session, { scaled }) => {
    const clients = scaled(1000)
    const events = scaled(1000)
    await session.open(clients, '/events/news')
    await sleep(SETTLED)
    await fanOut(session, { clients, events: 2 * events, burst })
    const { cpu, user } = await session.measure(() => fanOut(session, { clients, events, burst }))
    await session.verify(true)
    return { cpu: cpu / (clients * events), user: user / (clients * events) }
  }

const stream = async (session, { clients, events }) => {
  const received = session.expect({ each: events, total: clients * events })
  await Promise.all([received, session.open(clients, `/stream/${events}`)])
}

const streamRow =
  (manyClients, manyEvents) =>
  async (session, { scaled }) => {
    const clients = manyClients === 1 ? 1 : scaled(manyClients)
    const events = scaled(manyEvents)
    await stream(session, { clients, events: Math.ceil(events / 3) })
    await session.leave()
    const { cpu } = await session.measure(() => stream(session, { clients, events }))
    await session.verify(true)
    return { cpu: cpu / (clients * events) }
  }

const idle = async (session, { scaled }) => {
  const streams = scaled(8000)
  // What grows once, whatever the number of streams, is there already.
  await session.open(scaled(1000), '/events/news')
  await sleep(SETTLED)
  const before = await session.memory()
  await session.open(streams, '/events/news')
  await sleep(SETTLED)
  return { rss: ((await session.memory()) - before) / streams / KB }
}

const connect = async (session, { scaled, implementation }) => {
  const path = implementation === 'koa-alone' ? '/small' : '/events/news'
  const streams = scaled(1500)
  const cycles = 10
  const cpu = { connect: 0, leave: 0 }
  for (let cycle = -4; cycle < cycles; cycle++) {
    // A collection while no connection is open would throw away what V8 has compiled for them, and most of what is measured then is
    // that it compiles it again.
    const coming = await session.measure(
      async () => {
        await session.open(streams, path)
        await sleep(20)
      },
      { collected: false },
    )
    const leaving = await session.measure(() => session.leave(), { collected: false })
    if (cycle < 0) continue
    cpu.connect += coming.cpu / streams / cycles
    cpu.leave += leaving.cpu / streams / cycles
  }
  return cpu
}

const storm = async (session, { scaled }) => {
  const clients = scaled(1000)
  const events = 100
  const window = Number.MAX_SAFE_INTEGER
  const id = await session.publish({ count: events, window })
  await session.publish({ count: events, window })
  const replay = async () => {
    const received = session.expect({ each: events, total: clients * events })
    await Promise.all([received, session.open(clients, '/events/news', { 'Last-Event-ID': id })])
  }
  await replay()
  await session.leave()
  const { cpu } = await session.measure(replay)
  await session.verify(true)
  return { cpu: cpu / clients }
}

const LATENCY_CLIENTS = 100
const LOADS = [10, 50, 90]

/** Events a second that the plain server can do. */
const saturation = async (session, { scaled }) => {
  const clients = LATENCY_CLIENTS
  const events = scaled(5000)
  await session.open(clients, '/events/news')
  await fanOut(session, { clients, events: Math.ceil(events / 2) })
  const { ms } = await session.measure(() => fanOut(session, { clients, events, latency: true }))
  return (events * 1000) / ms
}

const latency = async (session, { scaled, prepared }) => {
  const clients = LATENCY_CLIENTS
  await session.open(clients, '/events/news')
  await sleep(SETTLED)
  await fanOut(session, { clients, events: scaled(1000) })
  const result = {}
  for (const load of LOADS) {
    const rate = (prepared * load) / 100
    const count = Math.ceil(rate * 3 * Math.min(1, scaled(1000) / 1000))
    const received = session.expect({ each: count, total: count * clients, ackEvery: 64, latency: true })
    const [{ p50, p99 }, achieved] = await Promise.all([received, session.publish({ count, rate, window: 1024 })])
    // Then it is the queue that was measured.
    const late = achieved < rate * 0.95
    result[`p50@${load}`] = late ? Infinity : p50
    result[`p99@${load}`] = late ? Infinity : p99
  }
  return result
}

const channels = async (session, { scaled }) => {
  const events = scaled(20_000)
  const publish = async (number, count) => {
    const received = session.expect({ total: count, ackEvery: 256 })
    await Promise.all([received, session.publish({ count, channels: number, window: 1024 })])
  }
  const result = {}
  for (const [key, number] of [
    ['few', 10],
    ['many', scaled(10_000)],
  ]) {
    await session.open(number, '/events/c{}')
    await sleep(SETTLED)
    await publish(number, Math.ceil(events / 2))
    const { cpu } = await session.measure(() => publish(number, events))
    await session.verify(false)
    await session.leave()
    result[key] = cpu / events
  }
  return { ...result, flat: result.many / result.few }
}

const cpu = { cpu: { title: 'CPU µs per event' } }

// A write to a loopback socket costs everybody the same.
const user = { title: 'in user space' }

/**
 * The workloads. `base` is what an implementation is compared with: `ratio` (the default) or `difference`, and `most` is what
 * koa-sse's may be at most.
 */
export const rows = {
  'fan-out': {
    title: '1 000 clients of one channel, 1 000 events of 100 B, one per turn',
    implementations: ['raw', 'koa-sse', 'koa-sse-sends', 'better-sse', 'koa', 'raw-close', 'raw-socket'],
    hub: true,
    metrics: { cpu: { ...cpu.cpu, most: 0.65 }, user },
    run: fanOutRow(1),
  },
  bursts: {
    title: '1 000 clients of one channel, 1 000 events of 100 B, ten per turn',
    implementations: ['raw', 'koa-sse', 'koa-sse-sends', 'better-sse', 'koa', 'raw-socket'],
    hub: true,
    metrics: { cpu: { ...cpu.cpu, most: 0.4 }, user },
    run: fanOutRow(10),
  },
  'one-stream': {
    title: 'a generator of 100 000 events of 100 B to one client',
    implementations: ['raw', 'koa-sse', 'fastify-sse', 'better-sse', 'hono', 'koa'],
    metrics: { cpu: { ...cpu.cpu, most: 0.55 } },
    run: streamRow(1, 100_000),
  },
  'many-streams': {
    title: '200 generators of 3 000 events of 100 B to a client each',
    implementations: ['raw', 'koa-sse', 'fastify-sse', 'better-sse', 'hono', 'koa'],
    metrics: { cpu: { ...cpu.cpu, most: 0.55 } },
    run: streamRow(200, 3000),
  },
  idle: {
    title: '8 000 open streams',
    implementations: ['koa-alone', 'koa-sse', 'koa-sse-sends', 'better-sse', 'fastify-sse', 'hono', 'koa', 'raw'],
    hub: true,
    // Small from the beginning: how far V8's young generation grows under load (to 60 MB, or 90, on Node 24) is not the streams'.
    flags: ['--max-semi-space-size=1'],
    base: 'koa-alone',
    metrics: { rss: { title: 'RSS per stream, KB', compare: 'difference', most: process.versions.node.startsWith('20.') ? 4 : 6 } },
    run: idle,
  },
  connect: {
    title: '1 500 new streams of one channel, ten times; Koa alone answers with a small body',
    implementations: ['koa-alone', 'koa-sse', 'koa-sse-sends', 'koa-held', 'better-sse', 'fastify-sse', 'hono', 'koa', 'raw'],
    hub: true,
    base: 'koa-alone',
    metrics: { connect: { title: 'CPU µs per connection', most: 1.25 }, leave: { title: 'CPU µs when it leaves' } },
    run: connect,
  },
  storm: {
    title: '1 000 clients return and replay 100 events each',
    implementations: ['raw', 'koa-sse'],
    hub: true,
    keep: 1000,
    metrics: { cpu: { title: 'CPU µs per client' } },
    run: storm,
  },
  latency: {
    title: `publish to client, ${LATENCY_CLIENTS} clients, at 10, 50 and 90 % of what raw can do`,
    implementations: ['raw', 'koa-sse', 'better-sse', 'koa'],
    hub: true,
    metrics: Object.fromEntries(LOADS.flatMap(load => ['p50', 'p99'].map(part => [`${part}@${load}`, { title: `${part} at ${load} %, µs` }]))),
    prepare: saturation,
    run: latency,
  },
  channels: {
    title: '10 000 channels of one client each, and 10, published to at random',
    implementations: ['raw', 'koa-sse', 'better-sse'],
    hub: true,
    metrics: {
      few: { title: 'CPU µs per event, 10' },
      many: { title: 'CPU µs per event, 10 000' },
      flat: { title: '10 000 ÷ 10', compare: 'none' },
    },
    run: channels,
  },
}
