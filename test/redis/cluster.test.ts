import { expect } from 'chai'
import type { Parts } from '../../src/redis/redis-broker.ts'
import { RedisCluster } from '../support/cluster.ts'
import { hasRedis, needsRedis, Proxy } from '../support/redis.ts'
import { until } from '../support/serve.ts'
import { closeNodes, KEY, passes, startedNode, type Node } from './support.ts'

const text = (data: string): { data: string } => ({ data })

/** Publishes from each node without a pause, until it is called; then it resolves with what each has published, in order. */
const publishing = (...nodes: Node[]): (() => Promise<string[][]>) => {
  const end = new AbortController()
  const all = nodes.map(async ({ broker }, n) => {
    const published: string[] = []
    for (let i = 0; !end.signal.aborted; i++) {
      const burst = [0, 1, 2].map(j => `${n}: ${i}.${j}`)
      published.push(...burst)
      await Promise.all(burst.map(async data => broker.publish('a', text(data))))
    }
    return published
  })
  for (const each of all) each.catch(() => {})
  return async () => {
    end.abort()
    return Promise.all(all)
  }
}

const saw = ({ sink }: Node, n: number): string[] => (sink.data as string[]).filter(data => data.startsWith(`${n}: `))

describe('RedisBroker on a Redis Cluster', function () {
  this.timeout(40_000)
  needsRedis()
  let cluster: RedisCluster
  let printed = ''
  const write = process.stderr.write.bind(process.stderr)
  const proxies: Proxy[] = []
  before(async () => {
    if (hasRedis) cluster = await RedisCluster.start(KEY)
    process.stderr.write = chunk => {
      printed += String(chunk)
      return true
    }
  })
  afterEach(async () => {
    await closeNodes()
    for (const proxy of proxies.splice(0)) await proxy.stop()
    if (hasRedis) await cluster.owner.command('DEL', KEY)
  })
  after(async () => {
    process.stderr.write = write
    await cluster?.stop()
    expect(printed).to.equal('')
  })

  /** Everything in order and once, everywhere. */
  const complete = async (published: string[][], ...nodes: Node[]): Promise<void> => {
    for (const each of nodes) {
      for (const [n, all] of published.entries()) {
        await until(() => saw(each, n).length >= all.length)
        expect(saw(each, n)).to.deep.equal(all)
      }
      expect(each.sink.events).to.deep.equal(nodes[0]!.sink.events)
      expect(each.sink.gaps).to.deep.equal([])
    }
  }

  for (const [version, load] of Object.entries<Parts['load']>({ 6: undefined, 5: async () => import('ioredis5') })) {
    it(`finds the node that has the log, whichever it asks first: publishes, follows and reads, with ioredis ${version}`, async () => {
      const [a, b] = [
        await startedNode(`${cluster.others[0]!.url}?keyPrefix=x`, {}, { load }),
        await startedNode(cluster.replica.options, {}, { load }),
      ]
      const first = await passes('1', a, a, b)
      await passes('2', b, a, b)
      expect(a.sink.events).to.deep.equal(b.sink.events)
      for (const { broker } of [a, b]) expect((await broker.read(first, 10))?.map(({ event }) => event.data)).to.deep.equal(['2'])
      // The way there is no fault, and is found once.
      for (const { broker, sink } of [a, b]) {
        expect(sink.errors).to.deep.equal([])
        expect(broker.stats().reconnects).to.equal(1)
      }
    })
  }

  it('follows the log while it moves to another node: nothing is lost, doubled or disordered, and no publish waits for the end of it', async () => {
    const [a, b] = [await startedNode(cluster.owner.options, {}, { block: 300 }), await startedNode(cluster.others[0]!.options, {}, { block: 300 })]
    const first = await passes('first', a, a, b)
    const stop = publishing(a, b)
    const to = cluster.others[1]!
    await until(() => a.sink.data.length > 50)
    await cluster.move(to)
    await passes('on its way', a, a, b)
    expect((await b.broker.read(first, 1))?.length).to.equal(1)
    await cluster.settle(to)
    await passes('there', b, a, b)
    await complete(await stop(), a, b)
    for (const { broker, sink } of [a, b]) {
      expect(sink.errors).to.deep.equal([])
      expect(broker.stats().reconnects).to.be.below(20)
    }
  })

  it('waits, without haste, while nobody has the slot', async () => {
    const [a, b] = [await startedNode(cluster.owner.options, {}, { block: 300 }), await startedNode(cluster.others[0]!.options, {}, { block: 300 })]
    await passes('before', a, a, b)
    await cluster.serve(false)
    const published = a.broker.publish('a', text('waits'))
    await until(() => [a, b].every(({ sink }) => sink.errors.some(error => String(error).includes('CLUSTERDOWN'))))
    await new Promise(resolve => setTimeout(resolve, 500))
    await cluster.serve(true)
    await published
    await until(() => b.sink.data.length === 2, 10_000)
    for (const { broker, sink } of [a, b]) {
      expect(sink.data).to.deep.equal(['before', 'waits'])
      expect(sink.gaps).to.deep.equal([])
      expect(broker.stats().reconnects).to.be.below(20)
    }
  })

  it('goes on without the node that it asked first, and with that one alone', async () => {
    const seed = await Proxy.start(cluster.others[0]!.port)
    proxies.push(seed)
    const one = await startedNode(seed.options)
    await passes('1', one, one)
    await seed.stop()
    await cluster.owner.cutAll()
    await passes('2', one, one)
    expect(one.sink.gaps).to.deep.equal([])
  })

  it('goes on with the replica when the node dies that has the log, though that was the one asked first', async () => {
    await cluster.replicate()
    const strict = { strict: true, publishTimeout: 30_000 }
    const [a, b] = [await startedNode(cluster.owner.options, strict), await startedNode(cluster.others[0]!.options, strict)]
    const before = await passes('before', a, a, b)
    await cluster.failOver()
    // No replica is left, but they arrive.
    const waiting = Array.from({ length: 20 }, async (_, i) => a.broker.publish('a', text(`${i}`)).catch(() => {}))
    await until(() => a.sink.data.length > 20 && b.sink.data.length > 20, 20_000)
    await Promise.all(waiting)
    expect(a.sink.data).to.deep.equal(['before', ...Array.from({ length: 20 }, (_, i) => `${i}`)])
    expect(b.sink.events).to.deep.equal(a.sink.events)
    expect([...a.sink.gaps, ...b.sink.gaps]).to.deep.equal([])
    expect((await a.broker.read(before, 100))?.length).to.equal(20)
    for (const { broker } of [a, b]) expect(broker.stats().reconnects).to.be.below(30)
  })
})
