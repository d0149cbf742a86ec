import { setImmediate as nextTurn } from 'node:timers/promises'
import { expect } from 'chai'
import type { Message } from '../../src/redis/message.ts'
import { Outbox } from '../../src/redis/outbox.ts'

describe('the outbox of koa-sse/redis', () => {
  const cursor = { ms: 1, seq: 0, tag: 'aaaa' }
  let settled: unknown[] = []
  const message = (count: number, counted = true): Message => ({
    id: { publisher: 'p', count },
    fields: ['x'],
    deadline: 0,
    counted,
    sent: 0,
    acknowledged: undefined,
    seen: undefined,
    settled: false,
    resolve: id => settled.push([count, id]),
    reject: error => settled.push([count, error]),
  })
  beforeEach(() => {
    settled = []
  })

  it('gives each message that is not settled once to each connection, in order, however many wait and whichever are settled', () => {
    const outbox = new Outbox()
    let waiting: Message[] = []
    const given = new Set<Message>()
    let count = 0
    for (let round = 0; round < 60; round++) {
      // It grows for a while, then it shrinks: settled ones are cleared away in the middle of it.
      for (let i = 0; i < (round < 30 ? 200 : 40); i++) {
        const made = message(++count, count % 5 !== 0)
        waiting.push(made)
        outbox.add(made)
      }
      if (round % 7 === 6) {
        outbox.rewind()
        given.clear()
      }
      for (let i = 0; i < (round % 3) * 120; i++) {
        const next = outbox.next()
        expect(next).to.equal(waiting.find(each => !given.has(each)))
        if (next !== undefined) given.add(next)
      }
      const leave = round % 5 === 4 ? 3 : 1.2
      for (const each of waiting.slice(0, Math.floor(waiting.length / leave))) {
        if (Math.random() < 0.3) continue
        if (each.id.count % 2 === 0) outbox.resolve(each, cursor)
        else outbox.reject(each, new Error('no'))
      }
      waiting = waiting.filter(each => !each.settled)
      expect([...outbox]).to.deep.equal(waiting)
      expect([outbox.pending, outbox.isEmpty]).to.deep.equal([waiting.filter(({ counted }) => counted).length, waiting.length === 0])
      const some = waiting[0]
      if (some !== undefined) expect(outbox.find(some.id.count)).to.equal(some)
    }
    outbox.rejectAll(new Error('closed'))
    expect([outbox.isEmpty, outbox.pending, outbox.next(), outbox.find(count)]).to.deep.equal([true, 0, undefined, undefined])
    expect(settled).to.have.lengthOf(count)
    expect(new Set(settled.map(each => (each as unknown[])[0])).size).to.equal(count)
  })

  it('rejects all, however many, whether they were given or not; and gives what comes after', () => {
    const outbox = new Outbox()
    for (let i = 1; i <= 5_000; i++) outbox.add(message(i))
    for (let i = 1; i <= 10; i++) outbox.next()
    outbox.rejectAll(new Error('closed'))
    expect([settled.length, outbox.isEmpty]).to.deep.equal([5_000, true])
    const [one, other] = [message(5_001), message(5_002)]
    outbox.add(one)
    outbox.reject(one, new Error('too late'))
    outbox.add(other)
    expect([outbox.next(), outbox.next()]).to.deep.equal([other, undefined])
  })

  it('settles a message once', () => {
    const outbox = new Outbox()
    const [one, other] = [message(1), message(2)]
    outbox.add(one)
    outbox.add(other)
    outbox.resolve(one, cursor)
    outbox.reject(one, new Error('late'))
    expect([settled, outbox.pending, one.fields]).to.deep.equal([[[1, '1-0.aaaa']], 1, []])
  })

  it('is idle when no publish is left, whatever else is; or when the time is over', async () => {
    const outbox = new Outbox()
    outbox.add(message(1, false))
    await outbox.idle(60_000)
    const publishes = [message(2), message(3)]
    for (const each of publishes) outbox.add(each)
    let idle = false
    const waiting = outbox.idle(60_000).then(() => (idle = true))
    outbox.resolve(publishes[0]!, cursor)
    await nextTurn()
    expect(idle).to.equal(false)
    outbox.resolve(publishes[1]!, cursor)
    await waiting
    outbox.add(message(4))
    await outbox.idle(5)
    expect([outbox.pending, outbox.isEmpty]).to.deep.equal([1, false])
  })
})
