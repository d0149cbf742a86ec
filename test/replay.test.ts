import { request, type ClientRequest } from 'node:http'
import { expect } from 'chai'
import { createParser, type EventSourceMessage } from 'eventsource-parser'
import type { Context, Middleware } from 'koa'
import { Hub, sse } from 'koa-sse'
import { koa, serve } from './support/serve.ts'

const RUNS = 110
const AT_ONCE = 10
const CHANNELS = ['a', 'b', 'c', 'd']

/** The same numbers for the same seed (mulberry32). */
const randomly = (seed: number): (() => number) => {
  let state = seed
  return () => {
    state = (state + 0x6d_2b_79_f5) | 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 4_294_967_296
  }
}

class Dice {
  readonly random: () => number

  constructor(seed: number) {
    this.random = randomly(seed)
  }

  below(n: number): number {
    return Math.floor(this.random() * n)
  }

  between(from: number, to: number): number {
    return from + this.below(to - from + 1)
  }

  chance(p: number): boolean {
    return this.random() < p
  }

  oneOf<T>(list: readonly T[]): T {
    return list[this.below(list.length)]!
  }
}

/** What was published, in order: the oracle. Number 0 is the position before it all. */
class History {
  readonly #numbers = new Map<string, number>()
  readonly #epoch: string
  readonly channels: (string | null)[] = [null]

  constructor(position: string) {
    this.#epoch = position.slice(0, position.lastIndexOf('-') + 1)
  }

  get newest(): number {
    return this.channels.length - 1
  }

  add(channel: string | null): number {
    this.channels.push(channel)
    return this.newest
  }

  name(number: number, id: string): void {
    this.#numbers.set(id, number)
  }

  /** Which event an id stands for. */
  number(id: string): number {
    // An event with an id of its own has the broker's beside it: positions are told by that.
    const number = this.#numbers.get(id) ?? (id.startsWith(this.#epoch) ? Number(id.slice(this.#epoch.length)) : undefined)
    if (number === undefined) throw new Error(`the client was told an id that nobody has published: ${id}`)
    return number
  }

  /** The numbers of the events that such a client is to see, after one and up to another. */
  between(after: number, upTo: number, sees: (channel: string | null, number: number) => boolean): number[] {
    const numbers: number[] = []
    for (let number = after + 1; number <= upTo; number++) if (sees(this.channels[number]!, number)) numbers.push(number)
    return numbers
  }
}

interface Counts {
  drops: number
  resets: Record<string, number>
  events: number
  heartbeats: number
}

/** A client that knows nothing but what its parser last saw, and checks what it sees. */
class Client {
  readonly #dice: Dice
  readonly #history: History
  readonly #url: string
  readonly #window: number
  readonly #counts: Counts
  /** Bytes that it reads at most before it drops. */
  readonly #patience: number
  readonly #channels: ReadonlySet<string>
  readonly #even: boolean
  readonly #reads: 'at once' | 'in pieces' | 'slowly'
  #lastId: string | undefined
  /** Everything up to here has been seen. */
  #cursor: number | undefined
  #req: ClientRequest | undefined
  #stopped = false
  failure: unknown
  readonly finished: Promise<void>
  #finish!: () => void
  #last: number | undefined

  constructor(dice: Dice, history: History, url: string, window: number, counts: Counts, patience: number) {
    this.#dice = dice
    this.#history = history
    this.#window = window
    this.#counts = counts
    this.#patience = patience
    this.#channels = new Set(CHANNELS.filter(() => dice.chance(0.5)))
    this.#even = dice.chance(0.25)
    this.#reads = dice.oneOf(['at once', 'in pieces', 'in pieces', 'slowly'])
    const query = new URLSearchParams([...this.#channels].map((channel): [string, string] => ['channel', channel]))
    if (this.#even) query.set('filter', 'even')
    if (dice.chance(0.3)) query.set('from', 'earliest')
    this.#url = `${url}${dice.oneOf(['lf', 'crlf', 'narrow'])}?${query.toString()}`
    this.finished = new Promise(resolve => (this.#finish = resolve))
    this.#connect()
  }

  /** From now on it drops no more, and finishes when it has seen the last event. */
  settle(last: number): void {
    this.#last = last
    if (this.#cursor === last) this.#finish()
  }

  toString(): string {
    return `${this.#url} is at ${this.#cursor}, ${this.#req?.destroyed === true ? 'away' : 'connected'}`
  }

  stop(): void {
    this.#stopped = true
    this.#req?.destroy()
  }

  #sees = (channel: string | null, number: number): boolean =>
    (channel === null || this.#channels.has(channel)) && (!this.#even || number % 2 === 0 || number === this.#last)

  #connect(): void {
    if (this.#stopped) return
    const dice = this.#dice
    const headers: Record<string, string> = {}
    let url = this.#url
    if (this.#lastId !== undefined) {
      if (dice.chance(0.7)) headers['Last-Event-ID'] = this.#lastId
      else url += `&${dice.oneOf(['lastEventId', 'last_event_id'])}=${encodeURIComponent(this.#lastId)}`
    }
    // So many bytes, and it is gone: in the middle of an event, of the head, or of nothing.
    let bytesLeft = this.#last === undefined ? Math.floor(dice.random() ** 3 * this.#patience) : Infinity
    const parser = createParser({ onEvent: event => this.#guard(() => this.#take(event)) })
    const req = request(url, { agent: false, headers })
    this.#req = req
    const decoder = new TextDecoder()
    req.on('response', res => {
      res.on('data', (chunk: Buffer) => {
        if (req.destroyed) return
        const kept = this.#last === undefined ? chunk.subarray(0, bytesLeft) : chunk
        bytesLeft -= kept.length
        parser.feed(decoder.decode(kept, { stream: true }))
        if (bytesLeft <= 0 && this.#last === undefined) req.destroy()
        else if (this.#reads !== 'at once' && this.#last === undefined) {
          res.pause()
          setTimeout(() => res.resume(), this.#reads === 'slowly' ? dice.below(60) : dice.below(3))
        }
      })
      res.on('error', () => {})
    })
    req.on('error', () => {})
    req.end()
    req.on('close', () => {
      if (this.#stopped) return
      this.#counts.drops++
      setTimeout(() => this.#connect(), dice.below(8))
    })
    if (this.#last === undefined && dice.chance(0.3)) setTimeout(() => this.#last ?? req.destroy(), dice.below(25))
  }

  #guard(action: () => void): void {
    try {
      action()
    } catch (error) {
      this.failure ??= error
      this.stop()
      this.#finish()
    }
  }

  #take({ event, data, id }: EventSourceMessage): void {
    if (this.failure !== undefined) return
    if (id === undefined) throw new Error(`an event without an id: ${data}`)
    const number = this.#history.number(id)
    const fresh = this.#lastId === undefined
    const ownId = this.#lastId?.startsWith('own') === true
    this.#lastId = id
    if (event === 'stream-position') {
      expect(data).to.equal('')
      // Later ones are heartbeats: nothing of its own may lie between.
      if (!fresh) {
        this.#counts.heartbeats++
        expect(this.#missed(number), 'events that a heartbeat passed over').to.deep.equal([])
        expect(number, 'a position of the past').to.be.at.least(this.#cursor!)
      }
    } else if (event === 'stream-reset') {
      expect(fresh, 'a reset of a client that had never come before').to.equal(false)
      const { reason } = JSON.parse(data) as { reason: string }
      this.#counts.resets[reason] = (this.#counts.resets[reason] ?? 0) + 1
      // The event before the window's first is known by the broker's id still, by its own no more.
      const held = ownId ? this.#window - 1 : this.#window
      expect(number - this.#cursor!, `a reset (${reason}) although the window held it all`).to.be.above(held)
    } else {
      expect(fresh, 'no position before the first event').to.equal(false)
      this.#counts.events++
      expect(Number(data.split(' ')[0]), 'the id of another event').to.equal(number)
      expect(number, `an event again, after ${this.#cursor}`).to.be.above(this.#cursor!)
      expect(this.#sees(this.#history.channels[number]!, number), `an event of another channel: ${number}`).to.equal(true)
      expect(this.#missed(number - 1), `what it did not get before ${number}`).to.deep.equal([])
    }
    this.#cursor = number
    if (number === this.#last) this.#finish()
  }

  #missed(upTo: number): number[] {
    return this.#history.between(this.#cursor!, upTo, this.#sees)
  }
}

interface World {
  hub: Hub
}

/** A server that is used again by run after run, each with a hub of its own. */
const server = async (): Promise<{ url: string; world: World; errors: unknown[] }> => {
  const world = {} as World
  const subscribe: Middleware = async ctx => {
    const { hub } = world
    const { channel = [], filter, from } = (ctx as Context).query
    const even = ({ data }: { data?: string }): boolean => Number(data!.split(' ')[0]) % 2 === 0 || data!.endsWith('last')
    await hub.subscribe(ctx.sse, [channel].flat(), {
      ...(filter === 'even' && { filter: even }),
      ...(from === 'earliest' && { from: 'earliest' as const }),
    })
  }
  // Three kinds of streams, so that events go out in several encodings, and readers fall behind sooner or later.
  const kinds: Record<string, Middleware> = {
    '/lf': sse({ heartbeat: 12 }) as Middleware,
    '/crlf': sse({ heartbeat: 25, newline: '\r\n' }) as Middleware,
    '/narrow': sse({ heartbeat: false, highWaterMark: 256 }) as Middleware,
  }
  const app = koa((ctx, next) => kinds[ctx.path]!(ctx, next), subscribe)
  const { url } = await serve(app)
  return { url: `${url}/`, world, errors: app.errors }
}

const run = async (seed: number, { url, world, errors }: Awaited<ReturnType<typeof server>>, counts: Counts): Promise<void> => {
  const dice = new Dice(seed)
  // Some runs are heavy: their slow readers fill the kernel's buffers.
  const heavy = seed % 16 === 0
  const window = dice.oneOf(heavy ? [3, 10, 30] : [3, 10, 30, 100, 1_000])
  const hub = (world.hub = new Hub({ history: { events: window } }))
  const faults: unknown[] = []
  hub.on('error', error => faults.push(error))
  const history = new History(hub.position!)
  const publish = (text = ''): number => {
    const channel = dice.chance(0.1) ? null : dice.oneOf(CHANNELS)
    const number = history.add(text === '' ? channel : null)
    const size = heavy && dice.chance(0.5) ? 100_000 : dice.below(dice.oneOf([10, 100, 3_000]))
    const own = dice.chance(0.1) ? { id: `own:${seed}:${number}` } : {}
    // A client may see it before publish() resolves.
    if (own.id !== undefined) history.name(number, own.id)
    const event = { ...own, data: `${number} ${'x'.repeat(size)}${text}` }
    const published = text === '' && channel !== null ? hub.publish(channel, event) : hub.broadcast(event)
    naming.push(published.then(id => expect(history.number(id)).to.equal(number)))
    return number
  }
  const naming: Promise<unknown>[] = []
  const clients: Client[] = []
  const enter = (): unknown => clients.push(new Client(new Dice(dice.below(2 ** 31)), history, url, window, counts, heavy ? 30_000_000 : 20_000))
  for (let i = dice.between(1, 4); i > 0; i--) enter()
  try {
    for (let burst = dice.between(15, 40); burst > 0; burst--) {
      for (let i = dice.below(heavy ? 12 : 8); i > 0; i--) publish()
      if (clients.length < 6 && dice.chance(0.1)) enter()
      await new Promise(resolve => setTimeout(resolve, dice.below(4)))
    }
    const last = history.newest + 1
    for (const client of clients) client.settle(last)
    publish('last')
    await Promise.all(naming)
    let timer: NodeJS.Timeout | undefined
    const late = new Promise<never>((_resolve, reject) => {
      timer = setTimeout(() => reject(new Error(`not every client has seen the last event, ${last}: ${clients.join('; ')}`)), 8_000)
    })
    await Promise.race([Promise.all(clients.map(({ finished }) => finished)), late]).finally(() => clearTimeout(timer))
    for (const { failure } of clients) if (failure !== undefined) throw failure
    expect(faults).to.deep.equal([])
    expect(errors).to.deep.equal([])
  } finally {
    for (const client of clients) client.stop()
    await hub.close({ graceMs: 1_000 })
  }
  expect(hub.count()).to.equal(0)
}

describe('replay, against a model', () => {
  it(`inside a stretch without a reset every client sees exactly its channels’ events, in order, once: ${RUNS} random runs`, async function () {
    this.timeout(60_000)
    const first = Number(process.env['SEED'] ?? Date.now() % 1_000_000_000)
    const runs = process.env['SEED'] === undefined ? RUNS : 1
    const counts: Counts = { drops: 0, resets: {}, events: 0, heartbeats: 0 }
    let next = 0
    const work = async (): Promise<void> => {
      const its = await server()
      while (next < runs) {
        const seed = first + next++
        try {
          await run(seed, its, counts)
        } catch (cause) {
          next = runs
          throw new Error(`SEED=${seed}: ${(cause as Error).message}`, { cause })
        }
      }
    }
    await Promise.all(Array.from({ length: Math.min(AT_ONCE, runs) }, work))
    if (process.env['SEED'] !== undefined) return
    // That it was worth it: everything that can happen has happened.
    expect(counts.drops).to.be.above(RUNS)
    expect(counts.events).to.be.above(RUNS * 20)
    expect(counts.heartbeats).to.be.above(10)
    expect(counts.resets['trimmed'] ?? 0).to.be.above(20)
    expect(counts.resets['slow'] ?? 0, JSON.stringify(counts)).to.be.above(0)
  })
})
