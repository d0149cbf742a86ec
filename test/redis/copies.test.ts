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
})
