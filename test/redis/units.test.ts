import { EventEmitter } from 'node:events'
import { expect } from 'chai'
import { Redis, type RedisOptions } from 'ioredis'
import type { Address, Connection } from '../../src/redis/connection.ts'
import { compare, cursorOf, formatCursor, parseCursor, redisIdOf, same, tagOf } from '../../src/redis/cursor.ts'
import { decode, encodeFields, type RawEntry } from '../../src/redis/entry.ts'
import { ErrorGate } from '../../src/redis/error-gate.ts'
import { RedisBroker, type RedisBrokerOptions } from '../../src/redis/index.ts'
import { Route } from '../../src/redis/route.ts'
import { MOST_UNDER_WAY, Seen } from '../../src/redis/seen.ts'
import { Recorder } from '../support/broker-suite.ts'
import { until } from '../support/serve.ts'
import { rejection } from './support.ts'

describe('a cursor of koa-sse/redis', () => {
  it('comes back from its text', () => {
    const cursor = { ms: 1_700_000_000_000, seq: 12, tag: 'a0z9' }
    expect(formatCursor(cursor)).to.equal('1700000000000-12.a0z9')
    expect(parseCursor(formatCursor(cursor))).to.deep.equal(cursor)
  })

  it('is nothing else than such a text', () => {
    const good = '1700000000000-0.aaaa'
    for (const bad of [
      '',
      '1-0',
      `${good}a`,
      ` ${good}`,
      `${good}\n`,
      good.replace('-0', '-00'),
      `0${good}`,
      good.toUpperCase(),
      '1-1.aaa',
      '+',
      '$',
    ]) {
      expect(parseCursor(bad), bad).to.equal(undefined)
    }
    // Redis would refuse these.
    for (const bad of ['18446744073709551616-0.aaaa', '0-18446744073709551616.aaaa', `${'9'.repeat(20)}-0.aaaa`, `1${'0'.repeat(20)}-0.aaaa`]) {
      expect(parseCursor(bad), bad).to.equal(undefined)
    }
  })

  it('is exact where numbers are not', () => {
    const ids = [
      '9007199254740991-0',
      '9007199254740992-0',
      '9007199254740993-0',
      '1700000000000000123-9',
      '1700000000000000123-10',
      '1700000000000000124-0',
    ]
    ids.push('18446744073709551614-0', '18446744073709551615-18446744073709551614', '18446744073709551615-18446744073709551615')
    const cursors = ids.map(id => parseCursor(`${id}.aaaa`)!)
    expect(cursors.map(redisIdOf)).to.deep.equal(ids)
    expect(cursors.map(formatCursor)).to.deep.equal(ids.map(id => `${id}.aaaa`))
    expect(cursors).to.deep.equal(ids.map(id => cursorOf(id, 'aaaa')))
    for (const [i, a] of cursors.entries()) {
      for (const [j, b] of cursors.entries()) {
        expect([Math.sign(compare(a, b)), same(a, b)], `${ids[i]} ${ids[j]}`).to.deep.equal([Math.sign(i - j), i === j])
      }
    }
  })

  it('is ordered by time and sequence as numbers, and the same only with its tag', () => {
    const [a, b, c] = ['9-2.aaaa', '9-10.aaaa', '10-0.aaaa'].map(id => parseCursor(id)!)
    expect([c, b, a].toSorted((x, y) => compare(x!, y!))).to.deep.equal([a, b, c])
    expect(same(a!, { ...a!, tag: 'bbbb' })).to.equal(false)
  })

  it('has tags of four characters that tell messages apart', () => {
    const tags = new Set(Array.from({ length: 10_000 }, (_, i) => tagOf(`publisher.${i}`)))
    for (const tag of tags) expect(tag).to.match(/^[0-9a-z]{4}$/)
    expect(tags.size).to.be.above(9_900)
  })
})

describe('an entry of koa-sse/redis', () => {
  const message = { publisher: 'abcdefghijkl', count: 7 }

  it('comes back from its fields, which are always the same ones in the same order', () => {
    const event = { id: 'own', event: 'e\0', data: 'ä\n"', retry: 0, comment: '' }
    const contents = [{ channel: 'c', event }, { channel: null, event }, { heartbeat: true as const }, { begin: true as const }, { fork: '1-1.aaaa' }]
    for (const content of contents) {
      const fields = encodeFields(message, content)
      expect(fields.filter((_, i) => i % 2 === 0)).to.deep.equal(['m', 'c', 'd', 'k'])
      const entry = decode(['5-1', fields])
      expect(entry.message).to.deep.equal(message)
      expect(entry.cursor).to.deep.equal(cursorOf('5-1', tagOf('abcdefghijkl.7')))
      if ('event' in content) expect([entry.kind, entry.channel, entry.event]).to.deep.equal(['event', content.channel, event])
      else expect(entry.event).to.equal(undefined)
    }
    expect(decode(['5-1', encodeFields(message, { fork: '1-1.aaaa' })]).fork).to.equal('1-1.aaaa')
  })

  it('is poison when no hub wrote it, and has a cursor all the same', () => {
    const good = encodeFields(message, { channel: 'c', event: { data: 'x' } })
    const event = (json: string): string[] => good.with(5, json)
    const bad: string[][] = [
      ['a', 'b'],
      [],
      good.slice(2),
      [...good, 'x', 'y'],
      good.with(0, 'x'),
      good.with(1, ''),
      good.with(1, 'nonsense'),
      good.with(3, ''),
      good.with(7, 'other'),
      ...[
        '',
        '{',
        'null',
        '[]',
        '5',
        '{}',
        '{"data":5}',
        '{"other":"x"}',
        '{"id":"a\\nb"}',
        '{"id":"","data":"x"}',
        '{"id":" ","data":"x"}',
        '{"id":"a\\u007F","data":"x"}',
        '{"id":"a\\t","data":"x"}',
        '{"id":"a\\u0000"}',
        '{"event":"a\\rb"}',
        '{"retry":-1}',
      ].map(event),
      ...['{"retry":"5"}', '{"retry":1.5}', '{"comment":null}', '{"__proto__":"x"}'].map(event),
    ]
    for (const fields of bad) {
      const entry = decode(['5-1', fields] as RawEntry)
      expect([entry.kind, entry.event], JSON.stringify(fields)).to.deep.equal(['poison', undefined])
      expect(formatCursor(entry.cursor)).to.match(/^5-1\.[0-9a-z]{4}$/)
    }
  })
})

describe('what koa-sse/redis has seen', () => {
  const id = (count: number, publisher = 'p'): { publisher: string; count: number } => ({ publisher, count })

  it('tells a copy, in whatever order copies come', () => {
    const seen = new Seen()
    expect([1, 2, 3, 1, 2, 5, 4, 5, 4, 3].map(count => seen.add(id(count), 0))).to.deep.equal([
      true,
      true,
      true,
      false,
      false,
      true,
      true,
      false,
      false,
      false,
    ])
    expect(seen.add(id(1, 'q'), 0)).to.equal(true)
  })

  it('does the same as a set, for messages that are under way together', () => {
    const seen = new Seen()
    const all = new Set<number>()
    let at = 1
    for (let i = 0; i < 200_000; i++) {
      at += Math.floor(Math.random() * 20) - 8
      const count = Math.max(1, at)
      expect(seen.add(id(count), i)).to.equal(!all.has(count))
      all.add(count)
    }
    // A jump beyond everything, and back by as much as can wait at once.
    const far = at + 10_000_000
    expect([seen.add(id(far), 0), seen.add(id(far - MOST_UNDER_WAY), 0), seen.add(id(far - MOST_UNDER_WAY), 0)]).to.deep.equal([true, true, false])
    expect(seen.add(id(far - 1_000_000), 0)).to.equal(false)
  })

  it('does the same as a set, for publishers of which it hears first in the middle, and that leave numbers out', () => {
    const seen = new Seen()
    const all = new Set<string>()
    for (let i = 0; i < 100_000; i++) {
      const publisher = `p${i % 50}`
      const count = 2 ** (28 + ((i % 50) % 20)) + Math.floor(i / 50) - Math.floor(Math.random() * (i % 3 === 0 ? 60_000 : 300))
      const name = `${publisher} ${count}`
      expect(seen.add(id(count, publisher), 0)).to.equal(!all.has(name))
      all.add(name)
    }
  })

  it('keeps little of publishers that publish little, and nothing of those that have gone', () => {
    const seen = new Seen(60_000)
    const before = process.memoryUsage().arrayBuffers
    for (let i = 0; i < 20_000; i++) seen.add(id(i + 1, `at once ${i}`), 0)
    // By 16 KB each it would be 328 MB.
    expect(process.memoryUsage().arrayBuffers - before).to.be.below(10_000_000)
    expect(seen.alive(0, 0)).to.equal(20_000)
    for (let i = 0; i < 20_000; i++) seen.add(id(1, `by and by ${i}`), i * 50)
    expect(seen.alive(1_000_000, Infinity)).to.be.within(1_200, 1_800)
    expect([seen.alive(1_000_000, 10_000), seen.add(id(1, 'by and by 19000'), 1_000_000)]).to.deep.equal([200, false])
  })

  it('counts publishers that were heard of lately', () => {
    const seen = new Seen(60_000)
    seen.add(id(1, 'a'), 1_000)
    seen.add(id(1, 'b'), 2_000)
    expect([seen.alive(2_000, 500), seen.alive(2_000, 1_000)]).to.deep.equal([1, 2])
    seen.add(id(1, 'c'), 10_000_000)
    expect(seen.alive(10_000_000, Infinity)).to.equal(1)
  })
})

describe('the route of koa-sse/redis', () => {
  const reply = (message: string): Error => Object.assign(new Error(message), { name: 'ReplyError' })
  const node = (host: string, port: number, asking = false): Address => ({ host, port, asking })
  /** A connection there, which answers CLUSTER SLOTS. */
  const at = (address: Address | undefined, slots?: unknown): Connection => {
    const call = async (): Promise<unknown> => (slots === undefined ? Promise.reject(reply('ERR')) : slots)
    return { address, redis: { options: { host: address?.host ?? 'seed' } }, call } as unknown as Connection
  }

  it('goes where an error points, and nowhere for any other', () => {
    const route = new Route()
    const from = at(undefined)
    for (const error of [new Error('MOVED 1 h:1'), reply('MOVED'), reply('ERR MOVED 1 h:1'), 'MOVED 1 h:1', undefined]) {
      expect(route.follow(error, from)).to.equal(false)
      expect(route.next).to.equal(undefined)
    }
    const places: [string, Address | undefined][] = [
      ['MOVED 866 10.0.0.1:6379', node('10.0.0.1', 6379)],
      ['ASK 866 node.example:7000', node('node.example', 7000, true)],
      ['MOVED 866 2001:db8::1:6379', node('2001:db8::1', 6379)],
      // The same host, another port; and one that the node does not know.
      ['MOVED 866 :6380', node('seed', 6380)],
      ['MOVED 866 ?:6380', undefined],
    ]
    for (const [message, address] of places) {
      expect(route.follow(reply(message), from)).to.equal(true)
      expect(route.next).to.deep.equal(address)
    }
  })

  it('asks each node that it has heard of in turn, and what was configured', async () => {
    const route = new Route()
    const turn = (): Address | undefined => {
      route.turn(at(route.next))
      return route.next
    }
    expect(turn()).to.equal(undefined)
    const slots = [
      [0, 5, ['a', 1, 'id', ['hostname', 'x']], ['', 2, 'id']],
      [6, 9, ['?', 3, 'id'], [null, 4], ['a', 1]],
    ]
    await route.learn(at(undefined, slots))
    const [a, two, four] = [node('a', 1), node('seed', 2), node('seed', 4)]
    expect([turn(), turn(), turn(), turn(), turn()]).to.deep.equal([a, two, four, undefined, a])
    // Two connections that fail there turn once.
    const from = at(route.next)
    route.turn(from)
    route.turn(from)
    expect(route.next).to.deep.equal(two)
    // One that has not been named is followed all the same, and it stays known where nodes do not say which there are.
    route.follow(reply('MOVED 1 b:1'), from)
    await route.learn(at(route.next))
    expect([turn(), turn(), turn(), turn(), turn()]).to.deep.equal([a, two, four, undefined, node('b', 1)])
  })

  it('stays where a redirect points, whoever fails elsewhere meanwhile, and keeps what it knows where nobody has the log', async () => {
    const route = new Route()
    const [a, b, c] = [node('a', 1), node('b', 1), node('c', 1)]
    await route.learn(at(undefined, [[0, 5, ['a', 1], ['b', 1]]]))
    for (const elsewhere of [a, undefined]) {
      route.follow(reply('MOVED 1 c:1'), at(a))
      route.turn(at(elsewhere))
      expect(route.next).to.deep.equal(c)
    }
    // It is none of them any more.
    await route.learn(at(c, [[0, 5, ['a', 1], ['b', 1]]]))
    for (const slots of [[], [[0, 5, ['?', 1]]]]) await route.learn(at(c, slots))
    const turns: (Address | undefined)[] = []
    for (let i = 0; i < 4; i++) {
      route.turn(at(route.next))
      turns.push(route.next)
    }
    expect(turns).to.deep.equal([undefined, a, b, undefined])
  })
})

describe('errors of koa-sse/redis', () => {
  it('are told once, not for every retry', () => {
    const told: unknown[] = []
    const gate = new ErrorGate()
    gate.open(error => told.push(error))
    for (let i = 0; i < 1_000; i++) gate.tell(new Error('ECONNREFUSED'))
    gate.tell(new Error('other'))
    expect(told.map(String)).to.deep.equal(['Error: ECONNREFUSED', 'Error: other'])
    for (let i = 0; i < 1_000; i++) gate.tell(new Error(`number ${i}`))
    gate.close()
    gate.tell(new Error('late'))
    expect(told.map(String)).not.to.include('Error: late')
  })
})

describe('new RedisBroker()', () => {
  it('refuses wrong options at once', () => {
    const wrong: [unknown, ErrorConstructor][] = [
      [null, TypeError],
      ['redis://localhost', TypeError],
      [{ url: 'redis://localhost' }, TypeError],
      [{ redis: 5 }, TypeError],
      [{ redis: [] }, TypeError],
      [{ prefix: 5 }, TypeError],
      [{ prefix: '' }, RangeError],
      [{ prefix: 'a{b}' }, RangeError],
      [{ retention: '5' }, TypeError],
      [{ retention: NaN }, RangeError],
      [{ retention: 1_000, publishTimeout: 2_000 }, RangeError],
      [{ maxEntries: 0 }, RangeError],
      [{ publishTimeout: -1 }, RangeError],
      [{ publishTimeout: Infinity }, RangeError],
      [{ maxPending: 0 }, RangeError],
      [{ maxPending: 100_001 }, RangeError],
      [{ strict: 'yes' }, TypeError],
    ]
    for (const [options, kind] of wrong) {
      expect(() => new RedisBroker(options as RedisBrokerOptions), JSON.stringify(options)).to.throw(kind, /Expected|Unknown key/)
    }
  })

  it('refuses what is no Redis at once: says which option, what to give, and no password', () => {
    const client = new Redis({ lazyConnect: true })
    const wrong: unknown[] = [
      'redis://:secret%@localhost',
      'redis://user:secret?@localhost',
      'redis://:secret@localhost:99999',
      'redis://localhost/first',
      'redis://localhost?db=first',
      '/tmp/redis.sock?db=first',
      'http://localhost:6379',
      'REDISS://localhost',
      'not a url',
      '',
      { db: 'first' },
      { db: NaN },
      { db: -1 },
      client,
    ]
    for (const redis of wrong) {
      expect(() => new RedisBroker({ redis: redis as string }), String(redis))
        .to.throw(TypeError, /^Expected `redis(?:\.db)?` to be /)
        .and.have.property('message')
        .that.does.not.include('secret')
    }
    client.disconnect()
    for (const redis of [
      'redis://',
      'rediss://user:p%25@[::1]:1/2?db=2&family=6',
      'localhost:6379',
      '6379',
      '/tmp/redis.sock?db=1',
      'unix:///tmp/redis.sock',
      { db: 1 },
      { path: '/a' },
    ]) {
      expect(() => new RedisBroker({ redis }), String(redis)).not.to.throw()
    }
  })

  it('says what ioredis finds wrong with its options, to everybody who asks', async () => {
    for (const load of [undefined, async () => import('ioredis5')]) {
      const broker = new RedisBroker({ redis: { sentinels: [{ host: 'localhost' }] } }, { load })
      const early = rejection(broker.publish('a', {}))
      for (const error of [await rejection(broker.start(new Recorder())), await early, await rejection(broker.publish('a', {}))]) {
        expect(error).to.include({ name: 'SseError', code: 'ERR_SSE_BROKER_UNAVAILABLE' })
        expect(String((error as Error).cause)).to.include('Requires the name of master')
      }
      await broker.close()
    }
  })

  it('asks another Sentinel first at each attempt: the first ones may all be dead, and take up the time there is', async () => {
    const asked: unknown[] = []
    class Dead extends EventEmitter {
      readonly options: RedisOptions
      constructor(options: RedisOptions) {
        super()
        this.options = options
      }
      async connect(): Promise<void> {
        asked.push(this.options.sentinels!.map(({ host }) => host).join(''))
        throw new Error('dead')
      }
      disconnect(): void {}
    }
    const sentinels = ['a', 'b', 'c'].map(host => ({ host }))
    const broker = new RedisBroker({ redis: { sentinels, name: 'main' } }, { load: async () => ({ Redis: Dead }) })
    broker.start(new Recorder()).catch(() => {})
    await until(() => asked.length === 4)
    expect(asked).to.deep.equal(['abc', 'bca', 'cab', 'abc'])
    await broker.close()
  })

  it('says what to install when ioredis is not there, to everybody who asks', async () => {
    const load = async (): Promise<never> =>
      Promise.reject(Object.assign(new Error("Cannot find package 'ioredis'"), { code: 'ERR_MODULE_NOT_FOUND' }))
    const broker = new RedisBroker({}, { load })
    const errors = await Promise.all(
      [
        broker.publish('a', { data: 'x' }),
        broker.start(new Recorder()),
        new Promise(resolve => setImmediate(resolve)).then(() => broker.publish('a', {})),
      ].map(async promise => promise.then(String, (error: unknown) => error)),
    )
    for (const error of errors) {
      expect(error).to.include({ name: 'SseError', code: 'ERR_SSE_BROKER_UNAVAILABLE' })
      expect(String(error)).to.include('npm install ioredis')
    }
    await broker.close()
  })
})
