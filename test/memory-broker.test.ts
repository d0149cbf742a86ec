import { expect } from 'chai'
import { MemoryBroker } from '../src/memory-broker.ts'
import { brokerSuite, Recorder } from './support/broker-suite.ts'
import { until } from './support/serve.ts'

brokerSuite('MemoryBroker', {
  create: () => new MemoryBroker({ events: 1_000 }),
  forget: async broker => {
    for (let i = 0; i < 1_001; i++) await broker.publish(null, { data: '' })
  },
})

describe('MemoryBroker', () => {
  it('takes no id of another life for its own', async () => {
    const [former, now] = [new MemoryBroker(), new MemoryBroker()]
    await former.publish('a', { data: 'x' })
    const id = await former.publish('a', { data: 'y' })
    for (let i = 0; i < 5; i++) await now.publish('a', { data: 'z' })
    expect(await former.read(id, 10)).to.deep.equal([])
    expect(await now.read(id, 10)).to.equal(undefined)
    expect(now.trimmed(id)).to.equal(false)
  })

  it('hands on what was published before start()', async () => {
    const broker = new MemoryBroker()
    const id = await broker.publish('a', { data: 'early' })
    const sink = new Recorder()
    await broker.start(sink)
    expect(sink.calls.map(([kind]) => kind)).to.deep.equal(['position', 'event'])
    expect(sink.events).to.deep.equal([{ id, channel: 'a', event: { data: 'early' } }])
  })

  it('knows which ids it has let go of', async () => {
    const broker = new MemoryBroker({ events: 3 })
    const ids: string[] = []
    for (let i = 0; i < 10; i++) ids.push(await broker.publish('a', { data: `${i}` }))
    // The fourth newest is the floor: it is known still.
    expect(ids.map(id => broker.trimmed(id))).to.deep.equal([...Array<boolean>(6).fill(true), ...Array<boolean>(4).fill(false)])
    const [epoch] = ids[0]!.split('-')
    for (const id of [`${epoch}-11`, `${epoch}-01`, `${epoch}-`, `${epoch}`, 'x-1', '']) expect(broker.trimmed(id), id).to.equal(false)
  })

  it('is of use without any history: ids, order, and what is no longer there', async () => {
    const broker = new MemoryBroker({ events: 0 })
    const sink = new Recorder()
    await broker.start(sink)
    const first = await broker.publish('a', { data: '1' })
    const last = await broker.publish('b', { data: '2' })
    expect(sink.events.map(({ id }) => id)).to.deep.equal([first, last])
    expect(await broker.read(last, 10)).to.deep.equal([])
    expect(await broker.read(first, 10)).to.equal(undefined)
    expect([broker.trimmed(first), broker.trimmed(last)]).to.deep.equal([true, false])
  })

  it('keeps nothing for longer than it is told, whether or not more comes', async () => {
    const broker = new MemoryBroker({ ms: 20 })
    const sink = new Recorder()
    await broker.start(sink)
    const [start] = sink.ids
    const id = await broker.publish('a', { data: 'x' })
    const since = performance.now()
    await until(() => performance.now() - since > 20)
    expect(await broker.read(start!, 10)).to.equal(undefined)
    expect(await broker.read(id, 10)).to.deep.equal([])
  })

  for (const [limit, options] of Object.entries({ events: { events: 5 }, bytes: { bytes: 5 * 300 } })) {
    it(`keeps no more ${limit} than it is told`, async () => {
      const broker = new MemoryBroker(options)
      const ids: string[] = []
      for (let i = 0; i < 100; i++) ids.push(await broker.publish('a', { data: 'x'.repeat(99) }))
      const readable = await Promise.all(ids.map(async id => (await broker.read(id, 1)) !== undefined))
      expect(readable.indexOf(true)).to.equal(94)
      expect(readable.lastIndexOf(false)).to.equal(93)
    })
  }
})
