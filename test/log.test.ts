import { expect } from 'chai'
import { Log, type LogLimits } from '../src/log.ts'
import { memory } from './support/heap.ts'

const NONE: LogLimits = { events: Infinity, ms: Infinity, bytes: Infinity }
const OVERHEAD = 200

const log = (limits: Partial<LogLimits> = {}): Log<string> => new Log<string>({ ...NONE, ...limits })

/** What a reader at `number` is still to get. */
const after = (log: Log<string>, number: number): string[] => {
  const values: string[] = []
  for (let next = number + 1; next <= log.newest; next++) {
    const value = log.at(next)
    if (value !== undefined) values.push(value)
  }
  return values
}

describe('Log', () => {
  it('has no position before the first', () => {
    const empty = log()
    expect(empty.position).to.equal(undefined)
    expect(empty.floorId).to.equal(undefined)
    expect(empty.newest).to.equal(empty.floor)
    expect(empty.age(5)).to.equal(0)
    expect(empty.locate('')).to.equal(undefined)
  })

  it('begins at the id that it is moved to first, which is its floor', () => {
    const fresh = log()
    fresh.move('p', 0)
    expect([fresh.position, fresh.floorId]).to.deep.equal(['p', 'p'])
    expect(fresh.locate('p')).to.equal(fresh.floor)
    fresh.append('a', 'A', 1, 0)
    expect(after(fresh, fresh.locate('p')!)).to.deep.equal(['A'])
  })

  it('numbers what is appended, one by one', () => {
    const it = log()
    expect([it.append('a', 'A', 1, 0), it.append('b', 'B', 1, 0), it.append('c', 'C', 1, 0)]).to.deep.equal([1, 2, 3])
    expect(it.position).to.equal('c')
    expect(['a', 'b', 'c'].map(id => it.locate(id))).to.deep.equal([1, 2, 3])
    expect([1, 2, 3].map(number => it.at(number))).to.deep.equal(['A', 'B', 'C'])
    expect([0, 4, -1, 1.5].map(number => it.at(number))).to.deep.equal([undefined, undefined, undefined, undefined])
    expect(after(it, 1)).to.deep.equal(['B', 'C'])
    expect(it.events).to.equal(3)
  })

  it('moves without a value, and finds such an id again', () => {
    const it = log()
    it.append('a', 'A', 1, 0)
    it.move('m', 0)
    it.append('b', 'B', 1, 0)
    expect(it.locate('m')).to.equal(2)
    expect(it.at(2)).to.equal(undefined)
    expect(after(it, it.locate('m')!)).to.deep.equal(['B'])
    expect(it.events).to.equal(2)
  })

  it('keeps so many values, and the id before them as its floor', () => {
    const it = log({ events: 2 })
    for (const id of ['a', 'b', 'c', 'd']) it.append(id, id.toUpperCase(), 1, 0)
    expect(it.events).to.equal(2)
    expect(it.floorId).to.equal('b')
    expect(it.locate('a')).to.equal(undefined)
    expect(after(it, it.locate('b')!)).to.deep.equal(['C', 'D'])
    expect(it.at(2)).to.equal(undefined)
  })

  it('keeps so many bytes, records without a value included', () => {
    const it = log({ bytes: 3 * (OVERHEAD + 10) })
    for (const id of ['a', 'b', 'c']) it.append(id, id, 10, 0)
    expect([it.floorId, it.bytes]).to.deep.equal([undefined, 3 * (OVERHEAD + 10)])
    it.append('d', 'd', 10, 0)
    expect(it.floorId).to.equal('a')
    for (let i = 0; i < 100; i++) it.move(`m${i}`, 0)
    expect(it.bytes).to.be.at.most(3 * (OVERHEAD + 10))
    expect([it.events, it.position]).to.deep.equal([0, 'm99'])
  })

  it('has lost nothing with a record without a value, and something with any other', () => {
    const it = log({ events: 1 })
    const first = it.append('a', 'A', 1, 0)
    for (const id of ['m', 'n']) it.move(id, 0)
    it.append('b', 'B', 1, 0)
    expect([it.lost, it.floor]).to.deep.equal([first, first])
    const none = log({ events: 0, ms: 0, bytes: 0 })
    const reader = none.append('a', 'A', 1, 0)
    none.move('m', 0)
    expect([none.lost, none.floor]).to.deep.equal([reader, reader + 1])
    none.reset('z')
    expect(none.lost).to.equal(none.floor)
  })

  it('lets go of what is too old, when it is told the time', () => {
    const it = log({ ms: 100 })
    it.append('a', 'A', 1, 0)
    it.append('b', 'B', 1, 60)
    it.trim(100)
    expect([it.floorId, it.age(100)]).to.deep.equal([undefined, 100])
    it.trim(101)
    expect([it.floorId, it.age(101)]).to.deep.equal(['a', 41])
    it.append('c', 'C', 1, 161)
    expect([it.floorId, it.events]).to.deep.equal(['b', 1])
    it.trim(1_000)
    expect([it.floorId, it.position, it.events, it.bytes]).to.deep.equal(['c', 'c', 0, 0])
    expect(it.locate('c')).to.equal(it.newest)
  })

  it('lets go of a value that is larger than everything', () => {
    const it = log({ bytes: 1_000 })
    it.append('a', 'A', 5_000, 0)
    expect([it.events, it.floorId, it.position, it.locate('a')]).to.deep.equal([0, 'a', 'a', 1])
  })

  it('finds an event by its own id too, and forgets both with it', () => {
    const it = log({ events: 1 })
    it.append('a', 'A', 1, 0, 'own')
    expect([it.locate('a'), it.locate('own')]).to.deep.equal([1, 1])
    it.append('b', 'B', 1, 0)
    // What is the floor now is found by the log's id: an event's own may come again.
    expect([it.locate('a'), it.locate('own')]).to.deep.equal([1, undefined])
    it.append('c', 'C', 1, 0)
    expect(it.locate('a')).to.equal(undefined)
  })

  it('takes an own id that equals the id for one use', () => {
    const it = log({ events: 1 })
    it.append('a', 'A', 1, 0, 'a')
    expect(it.locate('a')).to.equal(1)
    it.append('b', 'B', 1, 0)
    it.append('c', 'C', 1, 0)
    expect(it.locate('a')).to.equal(undefined)
  })

  it('lets an id that is used again prove nothing, until the last use has gone', () => {
    const it = log({ events: 3 })
    it.append('a', 'A', 1, 0, 'own')
    it.append('b', 'B', 1, 0, 'own')
    it.append('c', 'C', 1, 0, 'own')
    expect(it.locate('own')).to.equal(undefined)
    it.append('d', 'D', 1, 0)
    it.append('e', 'E', 1, 0)
    // One use of three is left. Who comes with it may mean one that is gone.
    expect(it.locate('own')).to.equal(undefined)
    it.append('f', 'F', 1, 0)
    it.append('g', 'G', 1, 0, 'own')
    expect(it.locate('own')).to.equal(7)
  })

  it('starts anew at reset, and mistakes nobody of before for one of after', () => {
    const it = log()
    it.append('a', 'A', 1, 0)
    const reader = it.append('b', 'B', 1, 0, 'own')
    it.reset('z')
    expect(reader).to.be.below(it.floor)
    expect([it.position, it.floorId, it.newest, it.events, it.bytes]).to.deep.equal(['z', 'z', it.floor, 0, 0])
    expect(['a', 'b', 'own'].map(id => it.locate(id))).to.deep.equal([undefined, undefined, undefined])
    expect(it.at(reader)).to.equal(undefined)
    const number = it.append('b', 'new', 1, 0)
    expect([it.locate('b'), it.at(number)]).to.deep.equal([number, 'new'])
    expect(after(it, it.locate('z')!)).to.deep.equal(['new'])
  })

  it('holds a million appends in the room of its limits, and finds ids without a search', () => {
    const before = memory()
    const it = log({ events: 1_000 })
    for (let i = 0; i < 1_000_000; i++) it.append(`${i}`, 'x', 1, i, i % 2 === 0 ? `own${i}` : undefined)
    expect([it.events, it.bytes, it.newest]).to.deep.equal([1_000, 1_000 * (OVERHEAD + 1), 1_000_000])
    // An array that only grew would take 8 MB.
    expect(memory() - before).to.be.below(2_000_000)
    expect(it.locate('999500')).to.equal(999_501)
    const begin = performance.now()
    for (let i = 0; i < 100_000; i++) it.locate(`${999_000 + (i % 1_000)}`)
    // A search of 1 000 records each would take a hundred times as long.
    expect(performance.now() - begin).to.be.below(500)
  })

  describe('beside a naive array', () => {
    interface Row {
      number: number
      id: string
      alias: string | undefined
      value: string | undefined
      bytes: number
      at: number
    }

    class Model {
      rows: Row[] = []
      newest = 0
      floor = 0
      floorId: string | undefined
      /** Every use of an id in the window, its floor included; an id stays spoilt from its second use until its last is gone. */
      readonly spoilt = new Set<string>()
      readonly limits: LogLimits

      constructor(limits: LogLimits) {
        this.limits = limits
      }

      uses(id: string): number[] {
        const numbers = this.rows.flatMap(row => [...new Set([row.id, row.alias])].filter(each => each === id).map(() => row.number))
        return this.floorId === id ? [this.floor, ...numbers] : numbers
      }

      mark(): void {
        const ids = new Set([this.floorId, ...this.rows.flatMap(row => [row.id, row.alias])])
        for (const id of ids) if (id !== undefined && this.uses(id).length > 1) this.spoilt.add(id)
        for (const id of this.spoilt) if (this.uses(id).length === 0) this.spoilt.delete(id)
      }

      add(id: string, value: string | undefined, bytes: number, at: number, alias?: string): void {
        if (value === undefined && this.newest === this.floor && this.floorId === undefined) {
          this.floorId = id
        } else if (value !== undefined || id !== (this.rows.at(-1)?.id ?? this.floorId)) {
          this.rows.push({ number: ++this.newest, id, alias, value, bytes: bytes + OVERHEAD, at })
        }
        this.mark()
        this.trim(at)
      }

      trim(now: number): void {
        const sum = (): number => this.rows.reduce((total, row) => total + row.bytes, 0)
        const count = (): number => this.rows.filter(row => row.value !== undefined).length
        while (this.rows.length > 0 && (count() > this.limits.events || sum() > this.limits.bytes || now - this.rows[0]!.at > this.limits.ms)) {
          const [gone] = this.rows.splice(0, 1)
          this.floor = gone!.number
          this.floorId = gone!.id
          this.mark()
        }
      }

      reset(id: string): void {
        this.rows = []
        this.floor = this.newest += 1
        this.floorId = id
        this.spoilt.clear()
      }

      locate(id: string): number | undefined {
        return this.spoilt.has(id) ? undefined : this.uses(id)[0]
      }
    }

    const seed = Number(process.env['SEED'] ?? Date.now() % 1_000_000)

    it(`does the same, 100 times (SEED=${seed})`, () => {
      let state = seed
      const random = (below: number): number => {
        state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
        return Math.floor((state / 2 ** 32) * below)
      }
      for (let run = 0; run < 100; run++) {
        const limits = { events: [3, 10, Infinity][random(3)]!, ms: [20, 200, Infinity][random(3)]!, bytes: [700, 5_000, Infinity][random(3)]! }
        const [real, model] = [new Log<string>(limits), new Model(limits)]
        const ids = new Set<string>()
        let now = 0
        let next = 0
        // A log that begins with an event has no floor to prove anything by; brokers always give a position first, mostly so do we.
        if (random(10) > 0) {
          real.move('start', now)
          model.add('start', undefined, 0, now)
          ids.add('start')
        }
        for (let step = 0; step < 40; step++) {
          now += random(12)
          // Own ids that come again, and that equal ids of the log, now and then.
          const again = random(25) === 0 ? real.position : undefined
          const id = again ?? (random(25) === 0 ? `${random(next + 1)}` : `${next++}`)
          const alias = random(3) === 0 ? `${random(4) === 0 ? '' : 'own'}${random(12)}` : undefined
          const what = random(20)
          if (what < 14) {
            const bytes = random(120)
            real.append(id, `v${step}`, bytes, now, alias)
            model.add(id, `v${step}`, bytes, now, alias)
          } else if (what < 17) {
            real.move(id, now)
            model.add(id, undefined, 0, now)
          } else if (what < 19) {
            real.trim(now)
            model.trim(now)
          } else {
            real.reset(id)
            model.reset(id)
          }
          ids.add(id)
          if (alias !== undefined) ids.add(alias)
          const at = `SEED=${seed}, run ${run}, step ${step}`
          expect(real.newest - real.floor, at).to.equal(model.newest - model.floor)
          expect(real.floorId, at).to.equal(model.floorId)
          expect(real.position, at).to.equal(model.rows.at(-1)?.id ?? model.floorId)
          expect(real.events, at).to.equal(model.rows.filter(row => row.value !== undefined).length)
          expect(real.bytes, at).to.equal(model.rows.reduce((total, row) => total + row.bytes, 0))
          expect(real.age(now), at).to.equal(model.rows[0] === undefined ? 0 : now - model.rows[0].at)
          for (const each of ids) {
            const number = model.locate(each)
            const located = real.locate(each)
            expect(located === undefined ? undefined : located - real.newest, `${at}, id ${each}`).to.equal(
              number === undefined ? undefined : number - model.newest,
            )
            if (located !== undefined && number !== undefined) {
              expect(after(real, located), at).to.deep.equal(
                model.rows.filter(row => row.number > number && row.value !== undefined).map(row => row.value),
              )
            }
          }
        }
      }
    })
  })
})
