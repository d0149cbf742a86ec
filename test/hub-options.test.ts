import { once } from 'node:events'
import { get } from 'node:http'
import { inspect } from 'node:util'
import { expect } from 'chai'
import type { Context, Middleware } from 'koa'
import { Hub, MemoryBroker, sse, SseError, type Broker, type EventStream, type HubOptions, type SseEvent, type SseOptions } from 'koa-sse'
import { connect } from './support/client.ts'
import { makeHub, serveStreams } from './support/hub.ts'
import { signalled } from './support/promises.ts'
import { koa, serve, until } from './support/serve.ts'

const thrown = (action: () => unknown): unknown => {
  try {
    action()
  } catch (error) {
    return error
  }
  throw new Error('it did not throw')
}

const rejection = (promise: Promise<unknown>): Promise<unknown> =>
  promise.then(
    () => {
      throw new Error('it did not reject')
    },
    (error: unknown) => error,
  )

/** Wrong arguments are plain errors without a code, and say what was expected. */
const expectPlain = (error: unknown, type: 'TypeError' | 'RangeError', name?: string): void => {
  expect(error).to.be.instanceOf(Error)
  const { constructor, message } = error as Error
  expect(constructor.name, message).to.equal(type)
  expect(error).not.to.have.property('code')
  if (name !== undefined) expect(message).to.include(`\`${name}\``)
}

/** A server whose streams are open, and what its clients read. */
const openStream = async (options: SseOptions = {}): Promise<EventStream> => {
  let stream: EventStream | undefined
  const { url } = await serve(
    koa(sse(options), ctx => {
      stream = ctx.sse.open()
    }),
  )
  await connect(url)
  return stream!
}

const BAD_CHANNELS: [string, unknown][] = [
  ['', ''],
  ['a line feed', 'a\nb'],
  ['a carriage return', 'a\r'],
  ['a tab', 'a\tb'],
  ['a NUL', '\0'],
  ['DEL', 'a\u007f'],
  ['a C1 control character', '\u0085'],
  ['a lone high surrogate', 'a\uD800'],
  ['a lone low surrogate', '\uDC00a'],
  ['surrogates the wrong way round', '\uDE00\uD83D'],
  ['256 bytes', 'x'.repeat(256)],
  ['256 bytes in 128 characters', 'ü'.repeat(128)],
  ['undefined', undefined],
  ['null', null],
  ['a number', 5],
  ['an object', {}],
  ['an object that would make a string', { toString: () => 'a' }],
  ['a symbol', Symbol('a')],
]

const GOOD_CHANNELS = ['a', ' ', 'user:1', 'ü'.repeat(127), 'x'.repeat(255), '日本', '*', 'a/b?c#d', '__proto__', '\u{1F600}', '\uFFFD', '\u00A0']

const CIRCULAR: unknown[] = []
CIRCULAR.push(CIRCULAR)

const BAD_EVENTS: [string, unknown][] = [
  ['undefined', undefined],
  ['null', null],
  ['a number', 5],
  ['no field', {}],
  ['an unknown key', { data: 'x', type: 'y' }],
  ['an id with a line feed', { id: 'a\nb' }],
  ['an id with a NUL', { id: '\0' }],
  ['an event with a carriage return', { event: 'a\rb' }],
  ['a negative retry', { retry: -1 }],
  ['a retry that is a string', { retry: '1' }],
  [
    'data that is circular',
    {
      data:
        Object.assign([], { 0: 0 }) &&
        ((): unknown => {
          const it: unknown[] = []
          it.push(it)
          return it
        })(),
    },
  ],
  ['data that is a BigInt', { data: 1n }],
  ['an id that clients come back with as none', { id: ' ', data: '' }],
  ['an id that they come back with as another, by its beginning', { id: '\t5', data: '' }],
  ['an id that they come back with as another, by its end', { id: '5 ', data: '' }],
  ['an id that Node refuses to read', { id: 'a\u0001b', data: '' }],
  ['data that is a function', { data: () => {} }],
]

describe('new Hub()', () => {
  const wrong: [string, unknown, 'TypeError' | 'RangeError'][] = [
    ['options', null, 'TypeError'],
    ['options', 5, 'TypeError'],
    ['options', [], 'TypeError'],
  ]
  for (const [name, value, type] of wrong) {
    it(`refuses ${JSON.stringify(value)} as its ${name}`, () => {
      expectPlain(
        thrown(() => new Hub(value as HubOptions)),
        type,
        name,
      )
    })
  }

  const options: [keyof HubOptions, unknown, 'TypeError' | 'RangeError'][] = [
    ['broker', null, 'TypeError'],
    ['broker', {}, 'TypeError'],
    ['broker', 'redis://', 'TypeError'],
    ['broker', { start() {}, publish() {}, read() {} }, 'TypeError'],
    ['history', true, 'TypeError'],
    ['history', null, 'TypeError'],
    ['history', 5, 'TypeError'],
    ['positionEvent', 5, 'TypeError'],
    ['positionEvent', '', 'TypeError'],
    ['positionEvent', 'a\nb', 'TypeError'],
    ['positionEvent', null, 'TypeError'],
    ['positionEvent', true, 'TypeError'],
    ['resetEvent', '', 'TypeError'],
    ['resetEvent', 'a\r', 'TypeError'],
    ['resetEvent', {}, 'TypeError'],
    ['resetEvent', false, 'TypeError'],
    ...(['maxSubscribers', 'maxChannels', 'maxEventBytes'] as const).flatMap(
      name =>
        [
          [name, '5', 'TypeError'],
          [name, null, 'TypeError'],
          [name, false, 'TypeError'],
          [name, 5n, 'TypeError'],
          [name, 0, 'RangeError'],
          [name, -1, 'RangeError'],
          [name, 1.5, 'RangeError'],
          [name, Number.NaN, 'RangeError'],
          [name, -Infinity, 'RangeError'],
        ] as [keyof HubOptions, unknown, 'TypeError' | 'RangeError'][],
    ),
  ]
  for (const [name, value, type] of options) {
    it(`refuses ${inspect(value)} as ${name} with a ${type}`, () => {
      expectPlain(
        thrown(() => new Hub({ [name]: value })),
        type,
      )
    })
  }

  for (const name of ['events', 'ms', 'bytes'] as const) {
    it(`refuses a wrong history.${name}`, () => {
      for (const value of ['5', null, true, {}]) {
        expectPlain(
          thrown(() => new Hub({ history: { [name]: value } as never })),
          'TypeError',
          name,
        )
      }
      for (const value of [-1, Number.NaN, -Infinity]) {
        expectPlain(
          thrown(() => new Hub({ history: { [name]: value } })),
          'RangeError',
          name,
        )
      }
    })
  }

  it('refuses unknown options, which would be limits that nobody keeps', () => {
    expectPlain(
      thrown(() => new Hub({ maxSubscriber: 5 } as HubOptions)),
      'TypeError',
      'maxSubscriber',
    )
    expectPlain(
      thrown(() => new Hub({ history: { event: 5 } as never })),
      'TypeError',
      'event',
    )
  })

  it('takes undefined for the default of every option', () => {
    makeHub({
      broker: undefined,
      history: { events: undefined, ms: undefined, bytes: undefined },
      maxSubscribers: undefined,
      maxChannels: undefined,
      maxEventBytes: undefined,
      positionEvent: undefined,
      resetEvent: undefined,
    })
    makeHub({ history: undefined, maxSubscribers: Infinity, maxChannels: Infinity, maxEventBytes: Infinity })
  })
})

describe('options.history', () => {
  /** How many of the published a client gets that was there before them all; undefined: it is reset. */
  const replayed = async (hub: Hub, since: string): Promise<number | undefined> => {
    const { url } = await serve(koa(sse(), hub.subscriber('a')))
    const client = await connect(url, { headers: { 'Last-Event-ID': since } })
    await hub.publish('a', 'end')
    for (let count = 0; ; count++) {
      const event = await client.event()
      if (event.event === 'stream-reset') return undefined
      if (event.data === 'end') return count
    }
  }

  it('holds 10 000 events by default, and not one more', async () => {
    const hub = makeHub()
    const before = hub.position!
    const ids: string[] = []
    for (let i = 0; i < 10_000; i++) ids.push(await hub.publish('a', 'x'))
    expect(hub.stats().window.events).to.equal(10_000)
    ids.push(await hub.publish('a', 'x'))
    expect(hub.stats().window.events).to.equal(10_000)
    expect(await replayed(hub, before)).to.equal(undefined)
    expect(await replayed(hub, ids[8]!)).to.equal(9_992)
  })

  it('holds 64 MB by default', async () => {
    const hub = makeHub()
    for (let i = 0; i < 70; i++) await hub.publish('a', 'x'.repeat(1_000_000))
    const { bytes, events } = hub.stats().window
    expect(bytes).to.be.at.most(67_108_864)
    expect(events).to.equal(67)
  })

  it('holds at most `events`', async () => {
    const hub = makeHub({ history: { events: 3 } })
    const ids: string[] = []
    for (let i = 0; i < 5; i++) ids.push(await hub.publish('a', 'x'))
    expect(hub.stats().window.events).to.equal(3)
    expect(await replayed(hub, ids[0]!)).to.equal(undefined)
    const [last] = [await hub.publish('a', 'x')]
    expect(await replayed(hub, last)).to.equal(0)
  })

  it('holds at most `bytes`', async () => {
    const hub = makeHub({ history: { bytes: 10_000 } })
    const before = hub.position!
    for (let i = 0; i < 20; i++) await hub.publish('a', 'x'.repeat(1_000))
    expect(hub.stats().window.bytes).to.be.within(5_000, 10_000)
    expect(hub.stats().window.events).to.be.within(5, 9)
    expect(await replayed(hub, before)).to.equal(undefined)
  })

  it('holds nothing for longer than `ms`', async () => {
    const hub = makeHub({ history: { ms: 30 } })
    const before = hub.position!
    await hub.publish('a', 'x')
    expect(hub.stats().window.events).to.equal(1)
    await until(() => hub.stats().window.events === 0)
    expect(hub.stats().window).to.include({ events: 0, ms: 0 })
    expect(await replayed(hub, before)).to.equal(undefined)
  })

  for (const history of [false, { events: 0 }, { bytes: 0 }] as const) {
    it(`${JSON.stringify(history)} keeps nothing: who missed something is told so, and who did not is not`, async () => {
      const hub = makeHub({ history })
      const before = hub.position!
      expect(await replayed(hub, before)).to.equal(0)
      expect(hub.stats().window).to.include({ events: 0, bytes: 0 })
      expect(await replayed(hub, before)).to.equal(undefined)
      const { url } = await serve(koa(sse(), hub.subscriber('a', { from: 'earliest' })))
      const client = await connect(url)
      expect(await client.event()).to.include({ event: 'stream-position', id: hub.position })
      await hub.publish('a', 'live')
      expect(await client.take(1)).to.deep.equal(['live'])
    })
  }

  it('is the hub’s own; a broker that keeps more fills in what the window has lost', async () => {
    const hub = makeHub({ broker: new MemoryBroker({ events: 5_000 }), history: { events: 10 } })
    await until(() => hub.position !== undefined)
    const before = hub.position!
    for (let i = 0; i < 3_500; i++) void hub.publish(i % 2 === 0 ? 'a' : 'b', `${i}`)
    await hub.publish('b', 'last')
    expect(hub.stats().window.events).to.equal(10)
    expect(await replayed(hub, before)).to.equal(1_750)
  })
})

describe('options.maxSubscribers', () => {
  const full = async (whenFull: SseOptions['whenFull']): Promise<{ hub: Hub; url: string; errors: unknown[] }> => {
    const hub = makeHub({ maxSubscribers: 2 })
    const app = koa(sse({ retry: 300, whenFull }), hub.subscriber('a'))
    const { url } = await serve(app)
    return { hub, url, errors: app.errors }
  }

  it('refuses one more with 503 and Retry-After, unless told otherwise; nobody is evicted', async () => {
    const { hub, url } = await full(undefined)
    const [first, second] = [await connect(url), await connect(url)]
    const third = await connect(url)
    expect(third.status).to.equal(503)
    expect(third.headers['retry-after']).to.match(/^\d+$/)
    expect(third.headers['content-type']).not.to.include('event-stream')
    expect(await third.ended).to.equal('clean')
    expect(hub.count()).to.equal(2)
    await hub.publish('a', 'x')
    for (const client of [first, second]) {
      await client.event()
      expect(await client.take(1)).to.deep.equal(['x'])
    }
    first.rst()
    await until(() => hub.count() === 1)
    expect((await connect(url)).status).to.equal(200)
    await until(() => hub.count() === 2)
  })

  it('with whenFull retry tells one more to come back later, each after another time', async () => {
    const { hub, url, errors } = await full('retry')
    await connect(url)
    await connect(url)
    const retries = new Set<number>()
    for (let i = 0; i < 10; i++) {
      const client = await connect(url)
      expect(client.status).to.equal(200)
      expect(await client.ended).to.equal('clean')
      expect(client.events).to.deep.equal([])
      expect(client.retry).to.be.a('number')
      retries.add(client.retry!)
    }
    expect(retries.size).to.be.above(3)
    expect(hub.count('a')).to.equal(2)
    expect(errors).to.deep.equal([])
  })

  it('makes subscribe() reject with what Koa answers as a 503', async () => {
    const hub = makeHub({ maxSubscribers: 1 })
    const errors: unknown[] = []
    const app = koa(sse(), async ctx => {
      await hub.subscribe(ctx.sse, 'a').catch((error: unknown) => {
        errors.push(error)
        throw error
      })
    })
    const { url } = await serve(app)
    await connect(url)
    expect((await connect(url)).status).to.equal(503)
    expect(errors[0]).to.include({ status: 503 })
  })

  for (const whenFull of ['refuse', 'retry'] as const) {
    /** A request to a hub that is full: what its handler does comes first. */
    const late = async (
      before: (ctx: Context) => unknown,
    ): Promise<{ url: string; ctx: () => Context; app: { errors: unknown[] }; over: Promise<unknown> }> => {
      const hub = makeHub({ maxSubscribers: 1 })
      await hub.subscribe(await openStream(), 'a')
      let ctx: Context | undefined
      const { promise: over, go } = signalled()
      const app = koa(sse({ retry: 300, whenFull }), async given => {
        ctx = given
        await before(given)
        await hub.subscribe(given.sse, 'a').finally(go)
      })
      return { url: (await serve(app)).url, ctx: () => ctx!, app, over }
    }

    it(`with whenFull ${whenFull} ends a stream that is open already, and tells it when to come back`, async () => {
      const { url, app, ctx } = await late(({ sse: stream }) => stream.send('first'))
      const client = await connect(url)
      expect(await client.ended).to.equal('clean')
      expect(client.text).to.match(/^retry: 300\n\ndata: first\n\nretry: \d+\n\n$/)
      expect(await ctx().sse.closed).to.equal('closed')
      expect(app.errors).to.deep.equal([])
    })

    it(`with whenFull ${whenFull} leaves the response of a stream that was closed before it opened to the handler`, async () => {
      const { url, app } = await late(given => {
        given.sse.close()
        given.body = 'of the handler'
      })
      expect((await connect(url)).headers['content-length']).to.equal('14')
      expect(app.errors).to.deep.equal([])
    })

    it(`with whenFull ${whenFull} makes no error of a client that has left`, async () => {
      const { url, app, ctx, over } = await late(({ req }) => once(req.socket, 'close'))
      const request = get(url, { agent: false }).on('error', () => {})
      await until(() => ctx() !== undefined)
      request.destroy()
      await over
      // Koa's turn.
      await new Promise(resolve => setImmediate(resolve))
      expect(await ctx().sse.closed).to.equal('client')
      expect(app.errors).to.deep.equal([])
    })
  }

  it('tells no "unsubscribe" of one that was turned away, when it is closed', async () => {
    const hub = makeHub({ maxSubscribers: 1 })
    let told = 0
    hub.on('unsubscribe', () => told++)
    const { url, streams } = await serveStreams({ whenFull: 'retry' })
    for (let i = 0; i < 2; i++) await connect(url)
    await until(() => streams.length === 2)
    const [first, second] = [await hub.subscribe(streams[0]!, 'a'), await hub.subscribe(streams[1]!, 'a')]
    second.close()
    expect([told, hub.count('a')]).to.deep.equal([0, 1])
    first.close()
    expect([told, hub.count('a')]).to.deep.equal([1, 0])
  })

  it('tells no "subscribe" of one that was turned away', async () => {
    const { hub, url } = await full('retry')
    let subscribed = 0
    let unsubscribed = 0
    hub.on('subscribe', () => subscribed++)
    hub.on('unsubscribe', () => unsubscribed++)
    await connect(url)
    await connect(url)
    await (
      await connect(url)
    ).ended
    expect([subscribed, unsubscribed]).to.deep.equal([2, 0])
  })
})

describe('options.maxChannels', () => {
  it('is 100 by default: one more is a RangeError at the call', async () => {
    const hub = makeHub()
    const stream = await openStream()
    const names = (count: number): string[] => Array.from({ length: count }, (_, i) => `c${i}`)
    expectPlain(
      thrown(() => hub.subscribe(stream, names(101))),
      'RangeError',
      'channels',
    )
    expectPlain(
      thrown(() => hub.subscriber(names(101))),
      'RangeError',
      'channels',
    )
    expect(hub.count()).to.equal(0)
    await hub.subscribe(stream, names(100))
    expect([...hub.channels()]).to.have.lengthOf(100)
  })

  it('counts names, not how often they are said; an endless iterable is no danger', async () => {
    const hub = makeHub({ maxChannels: 2 })
    const stream = await openStream()
    await hub.subscribe(stream, ['a', 'a', 'b', 'a'])
    const endless = function* (): Generator<string> {
      for (let i = 0; ; i++) yield `c${i}`
    }
    expectPlain(
      thrown(() => hub.subscribe(stream, endless())),
      'RangeError',
    )
  })
})

describe('options.maxEventBytes', () => {
  const codeOf = (action: () => unknown): unknown => {
    const error = thrown(action)
    expect(error).to.be.instanceOf(SseError)
    return (error as SseError).code
  }

  it('is 1 048 576 by default: more is ERR_SSE_EVENT_TOO_LARGE at the call, and publishes nothing', async () => {
    const hub = makeHub()
    const data = 'x'.repeat(1_048_576)
    expect(codeOf(() => hub.publish('a', data))).to.equal('ERR_SSE_EVENT_TOO_LARGE')
    expect(codeOf(() => hub.broadcast({ data }))).to.equal('ERR_SSE_EVENT_TOO_LARGE')
    expect(hub.stats().published).to.equal(0)
    await hub.publish('a', data.slice(100))
    expect(hub.stats().published).to.equal(1)
  })

  it('counts bytes on the wire, to the byte', async () => {
    const event: SseEvent = { id: 'i', event: 'e', data: 'ü\nü', retry: 1, comment: 'c' }
    const bytes = Buffer.byteLength(': c\nid: i\nevent: e\ndata: ü\ndata: ü\nretry: 1\n\n')
    await makeHub({ maxEventBytes: bytes }).publish('a', event)
    expect(codeOf(() => makeHub({ maxEventBytes: bytes - 1 }).publish('a', event))).to.equal('ERR_SSE_EVENT_TOO_LARGE')
  })

  it('makes pipe() reject and release its source', async () => {
    const hub = makeHub({ maxEventBytes: 100 })
    let released = false
    const source = function* (): Generator<string> {
      try {
        yield 'small'
        yield 'x'.repeat(100)
        yield 'small'
      } finally {
        released = true
      }
    }
    expect(await rejection(hub.pipe('a', source()))).to.have.property('code', 'ERR_SSE_EVENT_TOO_LARGE')
    expect(released).to.equal(true)
    expect(hub.stats().published).to.equal(1)
  })
})

describe('wrong arguments', () => {
  for (const [what, channel] of BAD_CHANNELS) {
    it(`a channel that is or has ${what || 'nothing'} is a TypeError at the call of everything that takes one`, async () => {
      const hub = makeHub()
      const stream = await openStream()
      const bad = channel as string
      expectPlain(
        thrown(() => hub.publish(bad, 'x')),
        'TypeError',
      )
      expectPlain(
        thrown(() => hub.pipe(bad, ['x'])),
        'TypeError',
      )
      expectPlain(
        thrown(() => hub.subscribe(stream, bad)),
        'TypeError',
      )
      expectPlain(
        thrown(() => hub.subscribe(stream, ['fine', bad])),
        'TypeError',
      )
      expectPlain(
        thrown(() => hub.subscriber(bad)),
        'TypeError',
      )
      expectPlain(
        thrown(() => hub.subscriber([bad])),
        'TypeError',
      )
      expect(hub.count()).to.equal(0)
      expect(hub.has('fine')).to.equal(false)
      expect(hub.stats().published).to.equal(0)
    })
  }

  it('no name of these is refused', async () => {
    const hub = makeHub()
    const stream = await openStream()
    await hub.subscribe(stream, GOOD_CHANNELS)
    for (const channel of GOOD_CHANNELS) {
      expect(hub.has(channel), channel).to.equal(true)
      await hub.publish(channel, 'x')
    }
    expect(hub.stats().delivered).to.equal(GOOD_CHANNELS.length)
  })

  for (const [what, event] of BAD_EVENTS) {
    it(`an event that is or has ${what} is a TypeError at the call`, () => {
      const hub = makeHub()
      expectPlain(
        thrown(() => hub.publish('a', event as string)),
        'TypeError',
      )
      expectPlain(
        thrown(() => hub.broadcast(event as string)),
        'TypeError',
      )
      expect(hub.stats().published).to.equal(0)
    })
  }

  it('pipe() refuses what is no source, and wrong options, at the call', () => {
    const hub = makeHub()
    for (const source of [undefined, null, 5, 'text', Buffer.from('x'), {}, Promise.resolve(['x'])]) {
      expectPlain(
        thrown(() => hub.pipe('a', source as never)),
        'TypeError',
      )
    }
    for (const options of [null, 5, { signal: 5 }, { signal: {} }, { map: 5 }, { end: true }, { head: 'now' }]) {
      expectPlain(
        thrown(() => hub.pipe('a', ['x'], options as never)),
        'TypeError',
      )
    }
  })

  it('subscribe() refuses what is no stream', () => {
    const hub = makeHub()
    for (const stream of [undefined, null, {}, { sse: {} }, 5]) {
      expectPlain(
        thrown(() => hub.subscribe(stream as never, 'a')),
        'TypeError',
        'stream',
      )
    }
  })

  it('subscribe() and subscriber() refuse wrong options at the call', async () => {
    const hub = makeHub()
    const stream = await openStream()
    const wrong = [
      null,
      5,
      { filter: 5 },
      { filter: 'x' },
      { replay: 'no' },
      { replay: 0 },
      { from: 'latest' },
      { from: null },
      { filters: () => true },
    ]
    for (const options of wrong) {
      expectPlain(
        thrown(() => hub.subscribe(stream, 'a', options as never)),
        'TypeError',
      )
      expectPlain(
        thrown(() => hub.subscriber('a', options as never)),
        'TypeError',
      )
    }
    await hub.subscribe(stream, 'a', { filter: undefined, replay: undefined, from: undefined })
  })

  it('disconnect() refuses what is no function', () => {
    expectPlain(
      thrown(() => makeHub().disconnect('a' as never)),
      'TypeError',
      'match',
    )
  })

  it('close() refuses a wrong farewell, and closes nothing', async () => {
    const hub = makeHub()
    const wrong: [unknown, 'TypeError' | 'RangeError'][] = [
      [{ event: 5 }, 'TypeError'],
      [{ event: {} }, 'TypeError'],
      [{ event: { data: 'x', type: 'y' } }, 'TypeError'],
      [{ event: { id: 'a\nb' } }, 'TypeError'],
      [{ retry: '1' }, 'TypeError'],
      [{ retry: -1 }, 'RangeError'],
      [{ retry: 1.5 }, 'RangeError'],
      [{ graceMs: '1' }, 'TypeError'],
      [{ graceMs: -1 }, 'RangeError'],
      [{ graceMs: Number.NaN }, 'RangeError'],
      [{ grace: 5 }, 'TypeError'],
      [null, 'TypeError'],
    ]
    for (const [options, type] of wrong) {
      expectPlain(
        thrown(() => hub.close(options as never)),
        type,
      )
    }
    expect(await hub.publish('a', 'x')).to.be.a('string')
  })
})

describe('a closed hub', () => {
  const closed = async (): Promise<Hub> => {
    const hub = new Hub()
    const { url } = await serve(koa(sse(), hub.subscriber(['a', 'b']) as Middleware))
    await connect(url)
    await until(() => hub.count() === 1)
    await hub.publish('a', 'x')
    await hub.close()
    return hub
  }

  it('rejects publish, broadcast, pipe and subscribe with ERR_SSE_HUB_CLOSED', async () => {
    const hub = await closed()
    let released = false
    const source = {
      [Symbol.iterator]: () => ({
        next: () => ({ done: false as const, value: 'x' }),
        return: () => {
          released = true
          return { done: true as const, value: undefined }
        },
      }),
    }
    const stream = await openStream()
    const rejected = [hub.publish('a', 'x'), hub.broadcast('x'), hub.pipe('a', source), hub.subscribe(stream, 'a')].map(rejection)
    for (const error of await Promise.all(rejected)) {
      expect(error).to.be.instanceOf(SseError)
      expect(error).to.have.property('code', 'ERR_SSE_HUB_CLOSED')
    }
    expect(released).to.equal(true)
  })

  it('refuses wrong arguments at the call still', async () => {
    const hub = await closed()
    expectPlain(
      thrown(() => hub.publish('', 'x')),
      'TypeError',
    )
    expectPlain(
      thrown(() => hub.publish('a', {})),
      'TypeError',
    )
  })

  it('answers as an empty hub', async () => {
    const hub = await closed()
    expect([hub.has('a'), hub.count(), hub.count('a'), [...hub.channels()], hub.disconnect(() => true), hub.position]).to.deep.equal([
      false,
      0,
      0,
      [],
      0,
      undefined,
    ])
    expect(hub.stats()).to.include({ subscribers: 0, channels: 0 })
    expect(hub.stats().broker.up).to.equal(false)
    expect(hub.stats().window, 'the window').to.deep.equal({ events: 0, bytes: 0, ms: 0 })
  })

  it('closes its broker once', async () => {
    let closes = 0
    const broker: Broker = new MemoryBroker()
    const close = broker.close.bind(broker)
    broker.close = () => {
      closes++
      return close()
    }
    const hub = new Hub({ broker })
    await Promise.all([hub.close(), hub.close()])
    await hub.close()
    expect(closes).to.equal(1)
  })

  it('does not reject when its broker fails to close; it emits that', async () => {
    const broker: Broker = new MemoryBroker()
    broker.close = () => Promise.reject(new Error('busy'))
    const hub = new Hub({ broker })
    const errors: unknown[] = []
    hub.on('error', error => errors.push(error))
    await hub.close()
    expect(errors).to.have.nested.property('[0].message', 'busy')
  })
})
