import { Proxy, RedisServer } from '../../support/redis.ts'
import { Client, compare, END, placeOf, type Place } from './client.ts'
import type { Acks } from './node.ts'
import { judge, type Acknowledged, type Verdict } from './oracle.ts'
import { Node } from './process.ts'

export interface ChaosOptions {
  seed: number
  /** How long faults go on. */
  seconds: number
  nodes?: number
  clients?: number
  /** Publishes per second, of all nodes. */
  rate?: number
  /** Read by plain XREAD: what must not pass. */
  naive?: boolean
  /** Clients stay where they are, but for those that a wipe moves. */
  still?: boolean
  /** Faults to choose from. All of them by default. */
  only?: readonly string[]
  log?: (line: string) => void
}

export interface ChaosResult extends Verdict {
  acknowledged: number
  rejected: number
  delivered: number
  moves: number
  faults: Record<string, number>
  wipes: number
  /** Wipes of which a node did not report a gap. */
  untold: number
  resets: number
  /** Clients that the last event of all did not come to. */
  stuck: number
  perSecond: number
}

const wait = async (ms: number): Promise<void> => new Promise(resolve => setTimeout(resolve, ms))

/** Numbers that a seed decides (mulberry32). */
const randomOf = (seed: number): (() => number) => {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d_2b_79_f5) >>> 0
    let t = Math.imul(state ^ (state >>> 15), state | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

/** Breaks whatever can break while events flow, and says what the clients were told. */
export const chaos = async (options: ChaosOptions): Promise<ChaosResult> => {
  const ends: (() => unknown)[] = []
  try {
    return await run(options, ends)
  } finally {
    for (const end of ends.toReversed()) await end()
  }
}

const run = async (
  { seed, seconds, nodes: size = 3, clients: crowd = 24, rate = 1_200, naive = false, still = false, only, log = () => {} }: ChaosOptions,
  ends: (() => unknown)[],
): Promise<ChaosResult> => {
  const random = randomOf(seed)
  const pick = <T>(from: readonly T[]): T => from[Math.floor(random() * from.length)]!
  const between = (low: number, high: number): number => low + random() * (high - low)
  const CHANNELS = 10

  const server = await RedisServer.start({ persistent: true })
  ends.push(async () => server.stop())
  const acknowledged = new Map<string, Acknowledged[]>()
  let acks = 0
  const onAcks = (list: Acks): void => {
    acks += list.length
    for (const [data, channel, id] of list) {
      const events = acknowledged.get(channel) ?? []
      acknowledged.set(channel, events)
      events.push({ data, place: placeOf(id) })
    }
  }
  const broadcast = async (node: Node, data: string): Promise<Place> => {
    const id = await node.broadcast(data)
    onAcks(Array.from({ length: CHANNELS }, (_, i) => [data, `c${i}`, id]))
    return placeOf(id)
  }
  const all: Node[] = []
  const nodes: Node[] = []
  const proxies: Proxy[] = []
  const spawn = async (place: number): Promise<void> => {
    const node = new Node(`n${all.length}`, proxies[place]!, naive, onAcks)
    all.push(node)
    ends.push(async () => node.kill())
    nodes[place] = node
    await node.ready()
    // One that has not been anywhere yet has nothing to lose, and would not report it.
    while (node.alive && !(await node.stats()).up) await wait(20)
    node.tell({ publish: rate / size, channels: CHANNELS })
  }
  for (let i = 0; i < size; i++) {
    const proxy = await Proxy.start(server.port)
    proxies.push(proxy)
    ends.push(async () => proxy.stop())
  }
  await Promise.all(proxies.map(async (_, i) => spawn(i)))
  let turn = 0
  const port = (): number | undefined => nodes[turn++ % size]!.port
  const clients = Array.from({ length: crowd }, (_, i) => new Client([`c${i % CHANNELS}`, `c${(i + 3) % CHANNELS}`], port, random))
  ends.push(() => clients.forEach(client => client.stop()))
  const settled = async (client: (client: Client) => boolean): Promise<void> => {
    for (const deadline = Date.now() + 15_000; !clients.every(client) && Date.now() < deadline;) await wait(20)
  }

  const faults: Record<string, number> = {}
  const wipes: number[] = []
  let untold = 0
  let moves = 0
  const wipe = async (how: () => Promise<unknown>): Promise<void> => {
    const before = await Promise.all(nodes.map(async node => ({ node, gaps: (await node.stats()).gaps })))
    // Some are away while events come that nobody will have any more: they must not be told a history without them.
    for (const client of clients.slice(0, 4)) client.move(600)
    await wait(150)
    wipes.push(Date.now())
    await how()
    // Clients meanwhile move on, into the midst of it.
    for (const deadline = Date.now() + (naive ? 1_500 : 15_000); ; await wait(50)) {
      const behind = await Promise.all(before.map(async ({ node, gaps }) => (await node.stats()).gaps <= gaps && node.alive))
      if (!behind.includes(true)) return
      if (Date.now() < deadline) continue
      untold++
      return
    }
  }
  const kinds: Record<string, () => Promise<unknown>> = {
    'readers cut': async () => {
      const list = (await server.command('CLIENT', 'LIST')) as string
      for (const [, id] of list.matchAll(/^id=(\d+) .* cmd=xread .*$/gm)) await server.command('CLIENT', 'KILL', 'ID', id!)
    },
    'all cut': async () => server.cutAll(),
    'killed, with its data': async () => {
      await server.kill()
      await wait(between(0, 500))
      await server.up()
    },
    'killed, empty': async () => wipe(async () => server.restart({ data: false })),
    flushed: async () => wipe(async () => server.command('FLUSHALL')),
    'flushed unseen': async () => {
      const place = Math.floor(random() * size)
      const [blind, other] = [nodes[place]!, nodes[(place + 1) % size]!]
      await wipe(async () => {
        blind.proxy.freeze()
        // What it had asked before is answered by then; whatever comes now, it cannot have.
        await server.command('PING')
        await broadcast(other, `unseen ${wipes.length}`)
        await server.command('FLUSHALL')
        await broadcast(other, `since ${wipes.length}`)
        blind.proxy.thaw()
      })
    },
    paused: async () => {
      server.pause()
      await wait(between(200, 1_500))
      server.resume()
    },
    'half open': async () => {
      const proxy = pick(proxies)
      proxy.freeze()
      await wait(between(300, seconds > 30 && random() < 0.3 ? 9_000 : 2_000))
      proxy.thaw()
    },
    'links reset': async () => pick(proxies).cut(),
    'node killed': async () => {
      const place = Math.floor(random() * size)
      await nodes[place]!.kill()
      await spawn(place)
    },
  }

  const going = new AbortController()
  ends.push(() => going.abort())
  const move = async (): Promise<void> => {
    while (!going.signal.aborted) {
      await wait(between(20, 120))
      pick(clients).move(random() < 0.2 ? between(500, 3_000) : between(0, 200))
      moves++
    }
  }
  const moving = still ? undefined : move()
  const begin = Date.now()
  await settled(({ place }) => place !== undefined)
  await wait(1_000)
  // Each kind once, in any order, then whatever comes.
  const order = Object.keys(kinds)
    .filter(kind => only?.includes(kind) !== false)
    .map(kind => ({ kind, key: random() }))
    .toSorted((a, b) => a.key - b.key)
    .map(({ kind }) => kind)
  for (let i = 0; i < order.length || Date.now() - begin < seconds * 1_000; i++) {
    const kind = order[i] ?? pick(order)
    faults[kind] = (faults[kind] ?? 0) + 1
    log(`${((Date.now() - begin) / 1_000).toFixed(1)} s: ${kind}`)
    await kinds[kind]!()
    await wait(between(100, seconds > 30 ? 1_500 : 600))
  }
  going.abort()
  await moving
  const elapsed = Date.now() - begin
  for (const node of nodes) node.tell({ stop: true })
  await Promise.all(nodes.map(async node => node.stopped))
  // Who comes back only now, with an id of before a wipe, begins anew behind this one, and is told it no more. From then on there is no excuse.
  const calm = await broadcast(nodes[0]!, 'calm')
  await settled(({ place }) => place !== undefined && compare(place, calm) >= 0)
  await broadcast(nodes[0]!, END)
  await settled(({ ended }) => ended)
  for (const client of clients) client.stop()

  return {
    ...judge(clients, acknowledged, wipes),
    acknowledged: acks,
    rejected: all.reduce((sum, { rejected }) => sum + rejected, 0),
    delivered: clients.reduce((sum, { delivered }) => sum + delivered, 0),
    moves,
    faults,
    wipes: wipes.length,
    untold,
    resets: clients.reduce((sum, { resets }) => sum + resets.length, 0),
    stuck: clients.filter(client => !client.ended).length,
    perSecond: Math.round(acks / (elapsed / 1_000)),
  }
}
