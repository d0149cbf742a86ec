import { expect } from 'chai'
import type { Broker, BrokerEntry, BrokerSink } from '../../src/broker.ts'
import type { SseEvent } from '../../src/event.ts'
import { until } from './serve.ts'

/** A sink that keeps what it is told, in order. */
export class Recorder implements BrokerSink {
  /** Every call, in order. */
  readonly calls: (['event', BrokerEntry] | ['position', string] | ['gap', string, string] | ['error', unknown])[] = []
  readonly #onEvent: ((entry: BrokerEntry) => void) | undefined

  constructor(onEvent?: (entry: BrokerEntry) => void) {
    this.#onEvent = onEvent
  }

  event(entry: BrokerEntry): void {
    this.calls.push(['event', entry])
    this.#onEvent?.(entry)
  }

  position(id: string): void {
    this.calls.push(['position', id])
  }

  gap(reason: string, position: string): void {
    this.calls.push(['gap', reason, position])
  }

  error(error: unknown): void {
    this.calls.push(['error', error])
  }

  get events(): BrokerEntry[] {
    return this.calls.flatMap(call => (call[0] === 'event' ? [call[1]] : []))
  }

  get gaps(): string[] {
    return this.calls.flatMap(call => (call[0] === 'gap' ? [call[1]] : []))
  }

  get errors(): unknown[] {
    return this.calls.flatMap(call => (call[0] === 'error' ? [call[1]] : []))
  }

  /** Every id that the log had, positions included. */
  get ids(): string[] {
    return this.calls.flatMap(call => (call[0] === 'event' ? [call[1].id] : call[0] === 'position' ? [call[1]] : call[0] === 'gap' ? [call[2]] : []))
  }

  /** The data of every event. */
  get data(): unknown[] {
    return this.events.map(entry => entry.event.data)
  }

  /** Resolves when so many events have come. */
  async have(count: number): Promise<BrokerEntry[]> {
    await until(() => this.events.length >= count)
    return this.events
  }
}

/** A kind of broker, as the suite needs it. */
export interface BrokerSubject {
  /** A broker on a log of the test's own; called again in the same test, another one on the same log if `shared`. */
  create(): Broker | Promise<Broker>
  /** Several brokers can stand on one log. */
  shared?: boolean
  /** Makes the log forget everything but its newest few entries. */
  forget(broker: Broker): Promise<void>
}

const numeric = new Intl.Collator('en', { numeric: true })
const text = (data: string): SseEvent => ({ data })
const rejection = async (promise: Promise<unknown>): Promise<unknown> =>
  promise.then(
    () => 'it resolved',
    (error: unknown) => error,
  )

/** The contract of {@link Broker}, as tests, for any implementation. */
export const brokerSuite = (name: string, subject: BrokerSubject): void => {
  describe(`${name}, as a Broker`, () => {
    const brokers: Broker[] = []
    const create = async (): Promise<Broker> => {
      const broker = await subject.create()
      brokers.push(broker)
      return broker
    }
    const started = async (): Promise<{ broker: Broker; sink: Recorder }> => {
      const broker = await create()
      const sink = new Recorder()
      await broker.start(sink)
      return { broker, sink }
    }

    afterEach(async () => {
      for (const broker of brokers.splice(0)) await broker.close()
    })

    it('tells its position before start() resolves', async () => {
      const { sink } = await started()
      expect(sink.calls[0]?.[0]).to.equal('position')
    })

    it('delivers in the order of publication, once each, under the ids that publish() resolves with', async () => {
      const { broker, sink } = await started()
      const ids: string[] = []
      for (let i = 0; i < 20; i++) ids.push(await broker.publish('a', text(`${i}`)))
      const events = await sink.have(20)
      expect(events.map(entry => entry.event.data)).to.deep.equal(Array.from({ length: 20 }, (_, i) => `${i}`))
      expect(events.map(entry => entry.id)).to.deep.equal(ids)
    })

    it('keeps the order of publishes that nobody awaits', async () => {
      const { broker, sink } = await started()
      const ids = await Promise.all(Array.from({ length: 500 }, async (_, i) => broker.publish(i % 3 === 0 ? null : `c${i % 7}`, text(`${i}`))))
      const events = await sink.have(500)
      expect(events.map(entry => entry.event.data)).to.deep.equal(Array.from({ length: 500 }, (_, i) => `${i}`))
      expect(events.map(entry => entry.id)).to.deep.equal(ids)
    })

    it('keeps it for publishes from before start() has resolved, too', async () => {
      const broker = await create()
      const sink = new Recorder()
      const start = broker.start(sink)
      const published = Array.from({ length: 10 }, async (_, i) => broker.publish('a', text(`${i}`)))
      await start
      published.push(broker.publish('a', text('10')))
      const ids = await Promise.all(published)
      const events = await sink.have(11)
      expect(sink.calls[0]?.[0]).to.equal('position')
      expect(events.map(entry => entry.event.data)).to.deep.equal(Array.from({ length: 11 }, (_, i) => `${i}`))
      expect(events.map(entry => entry.id)).to.deep.equal(ids)
    })

    it('gives ids that increase, unique, of at most 128 characters that need no preflight', async () => {
      const { broker, sink } = await started()
      for (let i = 0; i < 50; i++) await broker.publish('a', text(`${i}`))
      await sink.have(50)
      const { ids } = sink
      expect(new Set(ids).size).to.equal(ids.length)
      expect(ids).to.deep.equal([...ids].toSorted((a, b) => numeric.compare(a, b)))
      for (const id of ids) expect(id).to.match(/^[0-9A-Za-z._~-]{1,128}$/)
    })

    it('keeps every field of an event, and no other', async () => {
      const { broker, sink } = await started()
      const events: SseEvent[] = [
        { data: '' },
        { data: 'one\ntwo\r\nthree\rfour\u2028five \u{1F600} "quoted" \\ \0 nul' },
        { id: 'own', event: 'type', data: 'x', retry: 0, comment: 'a\nb' },
        { id: '0', event: '' },
        { event: 'with a \0 nul', comment: '\0' },
        { comment: '' },
        { retry: 5 },
      ]
      for (const event of events) await broker.publish('ä:ö', event)
      await broker.publish(null, text('to all'))
      const got = await sink.have(events.length + 1)
      expect(got.map(entry => entry.event)).to.deep.equal([...events, text('to all')])
      expect(got.map(entry => entry.channel)).to.deep.equal([...events.map(() => 'ä:ö'), null])
    })

    it('can be published to from the sink', async () => {
      const broker = await create()
      let second: Promise<string> | undefined
      const sink = new Recorder(entry => {
        if (entry.event.data === 'first') second = broker.publish('a', text('second'))
      })
      await broker.start(sink)
      await broker.publish('a', text('first'))
      await sink.have(2)
      expect(await second).to.equal(sink.events[1]?.id)
      expect(sink.data).to.deep.equal(['first', 'second'])
    })

    if (subject.shared === true) {
      it('delivers one order to every process', async () => {
        const [a, b] = [await started(), await started()]
        const ids = await Promise.all(Array.from({ length: 200 }, async (_, i) => (i % 2 === 0 ? a : b).broker.publish('a', text(`${i}`))))
        await a.sink.have(200)
        await b.sink.have(200)
        expect(a.sink.events).to.deep.equal(b.sink.events)
        expect(new Set(ids)).to.deep.equal(new Set(a.sink.events.map(entry => entry.id)))
        for (const parity of [0, 1]) {
          const own = a.sink.data.map(Number).filter(i => i % 2 === parity)
          expect(own).to.deep.equal(own.toSorted((x, y) => x - y))
        }
      })
    }

    describe('read()', () => {
      it('gives what follows an id, oldest first, up to the limit', async () => {
        const { broker, sink } = await started()
        const ids: string[] = []
        for (let i = 0; i < 10; i++) ids.push(await broker.publish('a', text(`${i}`)))
        await sink.have(10)
        expect(await broker.read(ids[2]!, 3)).to.deep.equal(sink.events.slice(3, 6))
        expect(await broker.read(ids[2]!, 100)).to.deep.equal(sink.events.slice(3))
        expect(await broker.read(ids[8]!, 1)).to.deep.equal(sink.events.slice(9))
      })

      it('gives everything after the position that start() told', async () => {
        const { broker, sink } = await started()
        const [position] = sink.ids
        await broker.publish('a', text('x'))
        await sink.have(1)
        expect(await broker.read(position!, 10)).to.deep.equal(sink.events)
      })

      it('gives nothing after the newest', async () => {
        const { broker, sink } = await started()
        expect(await broker.read(sink.ids.at(-1)!, 10)).to.deep.equal([])
        const id = await broker.publish('a', text('x'))
        await sink.have(1)
        expect(await broker.read(id, 10)).to.deep.equal([])
      })

      it('proves nothing for an id that is unknown, forged, malformed or huge', async () => {
        const { broker, sink } = await started()
        const id = await broker.publish('a', text('x'))
        await sink.have(1)
        const forged = [id.replace(/\d/, d => `${(Number(d) + 1) % 10}`), `${id}0`, `0${id}`, ` ${id}`, id.slice(0, -1), `${id}\n`]
        const strange = [
          '',
          '0',
          '0-0',
          '-',
          '+',
          '$',
          '*',
          '(',
          '>',
          '1-1',
          '18446744073709551615-18446744073709551615',
          '%00',
          '\0',
          'ä',
          '../..',
          '-1',
        ]
        for (const each of [...forged, ...strange, 'x'.repeat(100_000), '9'.repeat(100_000)]) {
          expect(await broker.read(each, 10), JSON.stringify(each.slice(0, 50))).to.equal(undefined)
          expect(broker.trimmed?.(each) ?? false, JSON.stringify(each.slice(0, 50))).to.equal(false)
        }
      })

      it('proves nothing for an id that is no longer kept', async () => {
        const { broker, sink } = await started()
        const first = await broker.publish('a', text('x'))
        await sink.have(1)
        await subject.forget(broker)
        expect(await broker.read(first, 10)).to.equal(undefined)
        expect(broker.trimmed?.(first) ?? true).to.equal(true)
        const last = await broker.publish('a', text('last'))
        expect(await broker.read(last, 10)).to.deep.equal([])
        expect(broker.trimmed?.(last) ?? false).to.equal(false)
      })
    })

    describe('close()', () => {
      it('rejects publish() and read() with ERR_SSE_BROKER_CLOSED from then on', async () => {
        const { broker, sink } = await started()
        const id = await broker.publish('a', text('x'))
        await sink.have(1)
        await broker.close()
        expect(await rejection(broker.publish('a', text('y')))).to.have.property('code', 'ERR_SSE_BROKER_CLOSED')
        expect(await rejection(broker.read(id, 1))).to.have.property('code', 'ERR_SSE_BROKER_CLOSED')
        expect(await rejection(broker.read('rubbish', 1))).to.have.property('code', 'ERR_SSE_BROKER_CLOSED')
      })

      it('tells the sink nothing more', async () => {
        const { broker, sink } = await started()
        await broker.publish('a', text('x'))
        await sink.have(1)
        const closing = broker.close()
        const { length } = sink.calls
        await closing
        await new Promise(resolve => setTimeout(resolve, 20))
        expect(sink.calls.length).to.equal(length)
      })

      it('may be called twice, and before start()', async () => {
        const { broker } = await started()
        await Promise.all([broker.close(), broker.close()])
        await broker.close()
        const fresh = await create()
        await fresh.close()
        expect(await rejection(fresh.start(new Recorder()))).to.have.property('code', 'ERR_SSE_BROKER_CLOSED')
      })
    })
  })
}
