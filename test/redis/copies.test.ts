import { expect } from 'chai'
import { Copies, type ReadMarks } from '../../src/redis/copies.ts'
import type { Mark } from '../../src/redis/entry.ts'
import { redisIdOf } from '../../src/redis/cursor.ts'

const LOOK_BACK = 50

/** An entry for each of these messages, a millisecond apart. */
const logOf = (counts: readonly number[], publisher = 'p'): Mark[] =>
  counts.map((count, ms) => ({ cursor: { ms, seq: 0, tag: 'aaaa' }, message: { publisher, count } }))

/** Pages of ten. */
const reading = (log: readonly Mark[], onRead = (): void => {}): ReadMarks => {
  const index = (id: string): number => log.findIndex(({ cursor }) => redisIdOf(cursor) === id.replace('(', ''))
  return async (from, to) => {
    expect(from).to.match(/^\(?\d+-\d+$/)
    await new Promise(resolve => setImmediate(resolve))
    onRead()
    const start = from.startsWith('(') ? index(from) + 1 : Math.max(0, Number.parseInt(from))
    return log.slice(start, Math.min(start + 10, index(to) + 1))
  }
}

describe('what koa-sse/redis knows of copies', () => {
  // Each third entry repeats one of the twenty before it.
  const counts: number[] = []
  for (let i = 0; i < 400; i++) counts.push(i % 3 === 2 ? counts[i - 1 - ((i * 7) % Math.min(i, 20))]! : i + 1)
  const log = logOf(counts)
  const copies = counts.map((count, i) => counts.indexOf(count) < i)
  const known = (of: Copies, from: number, to: number): void => {
    for (let i = from + 1; i < to; i++) expect(of.has(log[i]!.cursor), `${i}`).to.equal(copies[i])
  }
  const begun = (): Copies => {
    const of = new Copies(LOOK_BACK)
    of.begin(log.slice(250, 350), log[300]!.cursor)
    return of
  }

  it('reaches back to wherever somebody asks, and no entry is read twice for that but those before', async () => {
    const of = begun()
    known(of, 300, 350)
    for (const [place, pages] of [
      [200, 16],
      [250, 0],
      [120, 14],
      [0, 13],
    ] as const) {
      let read = 0
      expect(
        await of.reach(
          log[place]!.cursor,
          reading(log, () => read++),
        ),
      ).to.equal(true)
      expect(read, `${place}`).to.equal(pages)
      known(of, place, 350)
    }
  })

  it('is read for once, whoever asks, and while the log goes on', async () => {
    const of = begun()
    let [read, at] = [0, 350]
    const readOn = reading(log, () => {
      read++
      of.note(log[at++]!)
    })
    const places = [200, 230, 260, 299]
    expect(await Promise.all(places.map(async place => of.reach(log[place]!.cursor, readOn)))).to.deep.equal(places.map(() => true))
    expect(read).to.equal(16)
    known(of, 200, at)
  })

  it('begins anew when the log does', async () => {
    const other = logOf(counts.with(290, 7_000), 'q')
    const of = begun()
    let read = 0
    const reached = of.reach(log[200]!.cursor, async (from, to) => {
      if (++read === 3) of.begin(other.slice(250), other[300]!.cursor)
      return reading(read > 3 ? other : log)(from, to)
    })
    expect(await reached).to.equal(true)
    expect(read).to.equal(3 + 16)
    for (let i = 201; i < 400; i++) expect(of.has(other[i]!.cursor), `${i}`).to.equal(i !== 290 && copies[i])
  })

  it('has reached a place when nothing follows it any more', async () => {
    const of = begun()
    expect(await of.reach(log[200]!.cursor, async () => [])).to.equal(true)
    known(of, 300, 350)
  })

  it('does not reach further than it can read soon, and finds that out once', async () => {
    const of = begun()
    let read = 0
    const endless: ReadMarks = async from => {
      read++
      const ms = Number.parseFloat(from.replace('(', '')) + 1e-6
      return [{ cursor: { ms, seq: 0, tag: 'aaaa' }, message: undefined }]
    }
    for (const place of [100, 100, 50]) expect(await of.reach(log[place]!.cursor, endless)).to.equal(false)
    expect(read).to.be.within(100, 300)
    expect(await of.reach(log[280]!.cursor, reading(log))).to.equal(true)
    known(of, 280, 350)
  })

  it('remembers publishers for as long as their messages may come again, and a minute at least; and none of before the log began anew', () => {
    for (const [lookBack, ms] of [
      [50, 59_000],
      [200_000, 190_000],
    ] as const) {
      const of = new Copies(lookBack)
      const first = { cursor: { ms: 0, seq: 0, tag: 'aaaa' }, message: { publisher: 'p', count: 1 } }
      const at = (later: number, publisher: string): Mark => ({ cursor: { ms: later, seq: 0, tag: 'aaaa' }, message: { publisher, count: 1 } })
      of.begin([first], first.cursor)
      of.note(at(ms, 'q'))
      of.note(at(ms + 1, 'p'))
      expect([of.publishers(ms + 1, Infinity), of.has(at(ms + 1, 'p').cursor)]).to.deep.equal([2, true])
      of.begin([at(ms + 2, 'p')], at(ms + 2, 'p').cursor)
      expect([of.publishers(ms + 2, Infinity), of.has(at(ms + 2, 'p').cursor)]).to.deep.equal([1, false])
    }
  })

  it('are kept in memory up to a number: from there on only what comes later is known, and no place is reached that has more behind it', async () => {
    const copiesOf = (count: number): Mark[] => logOf(Array.from({ length: count }, () => 1))
    const many = copiesOf(100_003)
    const of = new Copies(LOOK_BACK)
    of.begin(many.slice(0, 100_001), many[0]!.cursor)
    expect([of.has(many[1]!.cursor), of.knows(many[0]!.cursor)]).to.deep.equal([true, true])
    for (const entry of many.slice(100_001)) of.note(entry)
    expect([of.has(many[1]!.cursor), of.knows(many[0]!.cursor)]).to.deep.equal([false, false])
    expect(many.slice(-2).every(({ cursor }) => of.has(cursor))).to.equal(true)
    let read = 0
    const pages: ReadMarks = async from => {
      read++
      const start = from.startsWith('(') ? Number.parseInt(from.slice(1)) + 1 : Number.parseInt(from)
      return many.slice(start, start + 1_000)
    }
    expect(await of.reach(many[0]!.cursor, pages)).to.equal(false)
    expect(await of.reach(many[50_000]!.cursor, pages)).to.equal(true)
    expect(read).to.be.below(160)
    expect([of.has(many[50_000]!.cursor), of.has(many[50_001]!.cursor)]).to.deep.equal([false, true])
  })
})
