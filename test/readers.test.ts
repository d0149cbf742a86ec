import { expect } from 'chai'
import { once } from 'node:events'
import { request, type IncomingMessage } from 'node:http'
import { buffer } from 'node:stream/consumers'
import { TextDecoder } from 'node:util'
import { EventSource } from 'eventsource'
import { createParser } from 'eventsource-parser'
import type { Context } from 'koa'
import { type EventStream, type Newline, sse, type SseEvent, type SseOptions } from '../src/index.ts'
import { connect, type LiveClient } from './support/client.ts'
import { koa, serve, until } from './support/serve.ts'

const NEWLINES: Newline[] = ['\n', '\r\n', '\r']

/** What a reader is told, in order. */
type Told = ['comment', string] | ['retry', number] | ['event', data: string, type: string | undefined, id: string | undefined] | ['error', string]

/** An independent reader of text that comes piece by piece. */
const reader = (): { told: Told[]; feed: (text: string) => void } => {
  const told: Told[] = []
  const parser = createParser({
    onEvent: ({ data, event, id }) => told.push(['event', data, event, id]),
    onComment: comment => told.push(['comment', comment]),
    onRetry: retry => told.push(['retry', retry]),
    onError: error => told.push(['error', `${error.type}: ${error.message}`]),
  })
  return { told, feed: text => parser.feed(text) }
}

describe('eventsource-parser', () => {
  // 1 700 events, twice for each line end.
  const EVENTS = 1_700
  const MEGABYTE = 1_048_576

  const seed = Number(process.env['SEED'] ?? Math.floor(Math.random() * 2 ** 32))
  let state = seed

  /** Mulberry32: from 0 up to 1. */
  const random = (): number => {
    state = (state + 0x6d2b79f5) | 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
  const below = (n: number): number => Math.floor(random() * n)
  const pick = <T>(choices: readonly T[]): T => choices[below(choices.length)]!
  const maybe = (probability: number): boolean => random() < probability

  // Lone surrogates may meet here, and make a pair; CR and LF likewise.
  const ONE_LINE = ['a', 'xyz', ' ', '  ', ':', ': ', 'data: forged', 'event: forged', 'id:forged', 'retry: 1', '\uFEFF', '\uD800', '\uDC00', '😀']
  const EXOTIC = ['\u2028', '\u2029', '\u0085', '\v', '\f', '\t', '\u001B', 'é', '日本', '\uFFFD', '\uFFFE', '\u0000', '\u200D', '{"a":1}', '']
  const LINES = [...ONE_LINE, ...EXOTIC, '\n', '\r', '\r\n', '\n\n', '\r\r', '\n\r', '\r\n\r\n', '\n\ndata: forged\n\n']
  const ID = [...ONE_LINE, ...EXOTIC].filter(piece => piece !== '\0')
  const TYPE = [...ONE_LINE, ...EXOTIC]

  const text = (pieces: readonly string[]): string => {
    let result = ''
    for (let n = below(8); n > 0; n--) result += pick(pieces)
    return result
  }

  const bigText = (): string => {
    const parts: string[] = []
    for (let size = 0; size < MEGABYTE; size += parts.at(-1)!.length) parts.push(pick(LINES).repeat(1 + below(64)), 'word '.repeat(below(200)))
    return parts.join('')
  }

  const bytes = (): Uint8Array => {
    const whole = Buffer.from(`..${text(LINES)}${maybe(0.2) ? '\u{10FFFF}' : ''}`)
    // From the middle of a buffer, and perhaps from and to the middle of a character.
    return new Uint8Array(whole.buffer, whole.byteOffset + 2, Math.max(0, whole.length - 2 - below(3)))
  }

  const json = (): unknown => pick([null, 0, -1.5, true, [], { a: text(LINES) }, [text(LINES), { b: null }], new Date(below(1e9))])

  const data = (): unknown => {
    const kind = random()
    return kind < 0.7 ? text(LINES) : kind < 0.85 ? bytes() : json()
  }

  const randomEvent = (): string | SseEvent => {
    if (maybe(0.15)) return text(LINES)
    const event: SseEvent = {}
    if (maybe(0.8)) event.data = data()
    if (maybe(0.5)) event.id = text(ID)
    if (maybe(0.5)) event.event = text(TYPE)
    if (maybe(0.3)) event.comment = text(LINES)
    if (maybe(0.2)) event.retry = pick([0, 1, 3_000, below(2 ** 31), Number.MAX_SAFE_INTEGER])
    return Object.keys(event).length > 0 ? event : ''
  }

  const randomEvents = (): (string | SseEvent)[] => {
    const events = Array.from({ length: EVENTS }, randomEvent)
    events[below(EVENTS)] = bigText()
    events[below(EVENTS)] = { id: 'big', data: Buffer.from(bigText()) }
    return events
  }

  const utf8 = new TextDecoder('utf-8', { ignoreBOM: true })
  /** The text as it comes out of UTF-8: lone surrogates are not in it. */
  const wellFormed = (value: string): string => utf8.decode(new TextEncoder().encode(value))
  const toLines = (value: string): string[] => wellFormed(value).replaceAll('\r\n', '\n').replaceAll('\r', '\n').split('\n')

  /** What the HTML standard says that a reader is told of an event. */
  const toldOf = (event: string | SseEvent): Told[] => {
    if (typeof event === 'string') return [['event', toLines(event).join('\n'), undefined, undefined]]
    const told: Told[] = []
    if (event.comment !== undefined) told.push(...toLines(event.comment).map((line): Told => ['comment', line]))
    if (event.retry !== undefined) told.push(['retry', event.retry])
    if (event.data !== undefined) {
      const { data } = event
      const whole = typeof data === 'string' ? data : data instanceof Uint8Array ? utf8.decode(data) : JSON.stringify(data)
      const id = event.id === undefined ? undefined : wellFormed(event.id)
      // An empty type is none.
      const type = event.event === undefined || event.event === '' ? undefined : wellFormed(event.event)
      told.push(['event', toLines(whole).join('\n'), type, id])
    }
    return told
  }

  /** Reads a body in pieces of random sizes, most of them small, which split characters and line ends. */
  const readInPieces = (body: Buffer): Told[] => {
    const { told, feed } = reader()
    const decoder = new TextDecoder()
    for (let at = 0; at < body.length;) {
      const size = maybe(0.98) ? 1 + below(40) : 1 + below(65_536)
      feed(decoder.decode(body.subarray(at, at + size), { stream: true }))
      at += size
    }
    feed(decoder.decode())
    return told
  }

  const fetchBody = async (url: string): Promise<Buffer> => {
    const [response] = (await once(request(url, { agent: false }).end(), 'response')) as [IncomingMessage]
    expect(response.headers['content-type']).to.equal('text/event-stream')
    return buffer(response)
  }

  const show = (told: Told | undefined): string => (JSON.stringify(told) ?? 'nothing').slice(0, 500)

  const expectTold = (actual: Told[], expected: Told[]): void => {
    for (let n = 0; n < Math.max(actual.length, expected.length); n++) {
      if (JSON.stringify(actual[n]) !== JSON.stringify(expected[n])) {
        throw new Error(`SEED=${seed}: read ${show(actual[n])}, expected ${show(expected[n])} (number ${n} of ${expected.length})`)
      }
    }
  }

  // With CR line ends a reader waits for one more byte.
  const LAST: SseEvent = { comment: 'the last' }

  const ways: [name: string, write: (ctx: Context, events: (string | SseEvent)[]) => Promise<void>][] = [
    [
      'send',
      async (ctx, events) => {
        for (const event of events) expect(await ctx.sse.send(event)).to.equal(true)
        await ctx.sse.send(LAST)
        ctx.sse.close()
      },
    ],
    [
      'pipe',
      (ctx, events) =>
        ctx.sse.pipe(async function* () {
          for (const [n, event] of events.entries()) {
            yield event
            // Some wait for a turn of the event loop, the rest come along.
            if (n % 50 === 0) await new Promise(resolve => setImmediate(resolve))
          }
          yield LAST
        }),
    ],
  ]

  for (const [l, newline] of NEWLINES.entries()) {
    for (const [w, [name, write]] of ways.entries()) {
      it(`reads back ${EVENTS} random events written by ${name}, lines ending with ${JSON.stringify(newline)}`, async () => {
        // Each test has events of its own, whichever run before it.
        state = seed + 2 * l + w
        const events = randomEvents()
        const app = koa(sse({ newline, heartbeat: false }), ctx => write(ctx, events))
        const { url } = await serve(app)
        const body = await fetchBody(url)
        expect(app.errors, `SEED=${seed}`).to.deep.equal([])
        expect(body.length).to.be.above(2 * MEGABYTE)
        expectTold(readInPieces(body), [['comment', ''], ...events.flatMap(toldOf), ...toldOf(LAST)])
      })
    }
  }

  const open = async (options: SseOptions): Promise<{ stream: EventStream; client: LiveClient; errors: unknown[] }> => {
    let stream!: EventStream
    const app = koa(sse({ heartbeat: false, ...options }), ctx => void (stream = ctx.sse.open()))
    const { url } = await serve(app)
    const client = await connect(url)
    return { stream, client, errors: app.errors }
  }

  const FORGERIES = ['\n', '\r', '\r\n', '\n\r'].flatMap(end => [
    `${end}${end}event: forged${end}data: forged${end}${end}`,
    `x${end}id: forged`,
    `x${end}retry: 1`,
    `${end}data: forged${end}`,
    `${end}${end}`,
    `x${end}`,
    `${end}: forged`,
    `\uFEFF${end}\uFEFFdata: forged${end}${end}`,
  ])

  for (const newline of NEWLINES) {
    it(`sees no forged event in hostile data and comments, lines ending with ${JSON.stringify(newline)}`, async () => {
      const { stream, client } = await open({ newline })
      for (const forgery of FORGERIES) {
        await stream.send(forgery)
        await stream.send({ id: 'real', event: 'real', data: forgery, comment: forgery })
        await stream.send({ data: Buffer.from(forgery) })
        await stream.send({ data: { forgery } })
        await stream.comment(forgery)
      }
      stream.close()
      expect(await client.ended).to.equal('clean')
      const { told, feed } = reader()
      // One more byte, for CR.
      feed(`${client.text}:`)
      const events = told.filter(each => each[0] === 'event')
      expect(events).to.deep.equal(
        FORGERIES.flatMap(forgery => [
          ['event', toLines(forgery).join('\n'), undefined, undefined],
          ['event', toLines(forgery).join('\n'), 'real', 'real'],
          ['event', toLines(forgery).join('\n'), undefined, undefined],
          ['event', JSON.stringify({ forgery }), undefined, undefined],
        ]),
      )
      expect(told.filter(each => each[0] === 'retry' || each[0] === 'error')).to.deep.equal([])
      expect(client.retry).to.equal(undefined)
    })

    it(`sees nothing of a hostile id or type, which is refused at the call, lines ending with ${JSON.stringify(newline)}`, async () => {
      const { stream, client, errors } = await open({ newline })
      const before = stream.bytesWritten
      for (const hostile of [...FORGERIES, '\n', '\r', 'a\nb', 'a\rb']) {
        expect(() => stream.send({ id: hostile, data: 'x' }), JSON.stringify(hostile)).to.throw(TypeError, '`id`')
        expect(() => stream.send({ event: hostile, data: 'x' }), JSON.stringify(hostile)).to.throw(TypeError, '`event`')
      }
      for (const id of ['\0', 'a\0', '\0b']) expect(() => stream.send({ id, data: 'x' }), JSON.stringify(id)).to.throw(TypeError, '`id`')
      expect(stream.bytesWritten).to.equal(before)
      expect(stream.connected).to.equal(true)
      // A NUL is a character like others in a type.
      for (const event of ['real', 'nul\0']) expect(await stream.send({ event, id: '1', data: 'x' })).to.equal(true)
      await stream.comment('')
      expect(await client.event()).to.deep.equal({ event: 'real', id: '1', data: 'x' })
      expect(await client.event()).to.deep.equal({ event: 'nul\0', id: '1', data: 'x' })
      expect(errors).to.deep.equal([])
    })
  }

  it('sees no event of a piped item that is refused, and a cut end after those before it', async () => {
    for (const item of [
      { id: 'a\nb', data: 'x' },
      { id: '\0', data: 'x' },
      { event: 'a\rb', data: 'x' },
      { datum: 'x' },
      {},
      5,
      null,
    ] as SseEvent[]) {
      let piped: Promise<void> | undefined
      const app = koa(sse(), ctx => void (piped = ctx.sse.pipe(['good', item, 'never'])))
      const { url } = await serve(app)
      const client = await connect(url)
      expect(await client.ended).to.equal('cut')
      expect(client.events).to.deep.equal([{ data: 'good', event: undefined, id: undefined }])
      const failure = await piped!.then(
        () => undefined,
        (error: unknown) => error,
      )
      expect(failure, JSON.stringify(item)).to.be.instanceOf(TypeError)
      expect(app.errors).to.deep.equal([failure])
    }
  })
})

describe('eventsource', () => {
  const sources = new Set<EventSource>()

  afterEach(() => {
    for (const source of sources) source.close()
    sources.clear()
  })

  interface Seen {
    type: string
    data: string
    lastEventId: string
  }

  const listen = (url: string, types: string[] = ['message']): { source: EventSource; seen: Seen[]; errors: { code?: number | undefined }[] } => {
    const source = new EventSource(url)
    sources.add(source)
    const seen: Seen[] = []
    const errors: { code?: number | undefined }[] = []
    for (const type of types) source.addEventListener(type, ({ data, lastEventId }) => seen.push({ type, data: data as string, lastEventId }))
    source.addEventListener('error', error => errors.push(error))
    return { source, seen, errors }
  }

  for (const newline of NEWLINES) {
    it(`reads data, types, ids and emptiness, lines ending with ${JSON.stringify(newline)}`, async () => {
      const app = koa(sse({ newline }), async ctx => {
        await ctx.sse.send('hello')
        await ctx.sse.send({ id: '1', event: 'lines', data: 'one\ntwo\r\nthree\rfour\n' })
        await ctx.sse.send({ id: '', data: '' })
        await ctx.sse.send({ event: 'json', id: 'é日', data: { text: 'a\nb\u2028c' } })
        await ctx.sse.comment('one byte more')
      })
      const { url } = await serve(app)
      const { seen } = listen(url, ['message', 'lines', 'json'])
      await until(() => seen.length === 4)
      expect(seen).to.deep.equal([
        { type: 'message', data: 'hello', lastEventId: '' },
        { type: 'lines', data: 'one\ntwo\nthree\nfour\n', lastEventId: '1' },
        { type: 'message', data: '', lastEventId: '' },
        { type: 'json', data: '{"text":"a\\nb\u2028c"}', lastEventId: 'é日' },
      ])
    })
  }

  /** Answers with `end` after one event, whose id is the number of the connection, and remembers who came. */
  const counting = async (id: (n: number) => string, end: (ctx: Context) => void): Promise<{ url: string; ids: unknown[]; errors: unknown[] }> => {
    const ids: unknown[] = []
    const app = koa(sse({ retry: 1, onError: () => undefined }), async ctx => {
      const n = ids.push(ctx.sse.lastEventId)
      await ctx.sse.send({ id: id(n), data: `connection ${n}` })
      if (n < 3) end(ctx)
    })
    const { url } = await serve(app)
    return { url, ids, errors: app.errors }
  }

  it('comes back by itself when the server ends the stream, with the last id', async () => {
    const { url, ids } = await counting(
      n => `id-${n}`,
      ctx => ctx.sse.close(),
    )
    const { source, seen, errors } = listen(url)
    await until(() => seen.length === 3)
    expect(ids).to.deep.equal([undefined, 'id-1', 'id-2'])
    expect(seen.map(({ data }) => data)).to.deep.equal(['connection 1', 'connection 2', 'connection 3'])
    expect(errors).to.have.lengthOf(2)
    expect(source.readyState).to.equal(EventSource.OPEN)
  })

  it('comes back by itself when a handler fails, with the last id', async () => {
    const { url, ids, errors } = await counting(
      n => `id-${n}`,
      () => {
        throw new Error('upstream')
      },
    )
    const { seen } = listen(url)
    await until(() => seen.length === 3)
    expect(ids).to.deep.equal([undefined, 'id-1', 'id-2'])
    expect(errors).to.have.lengthOf(2)
  })

  it('forgets the last id for an empty one', async () => {
    const { url, ids } = await counting(
      n => (n === 1 ? 'id-1' : ''),
      ctx => ctx.sse.close(),
    )
    const { seen } = listen(url)
    await until(() => seen.length === 3)
    expect(ids).to.deep.equal([undefined, 'id-1', undefined])
  })

  it('has its id decoded, which it sends as latin1', async () => {
    const { url, ids } = await counting(
      () => 'café',
      ctx => ctx.sse.close(),
    )
    const { seen } = listen(url)
    await until(() => seen.length === 3)
    expect(ids).to.deep.equal([undefined, 'café', 'café'])
  })

  it('gives up at a 503, and comes back when whenFull is retry', async () => {
    for (const whenFull of ['refuse', 'retry'] as const) {
      const streams: EventStream[] = []
      const app = koa(sse({ maxStreams: 1, whenFull, retry: 1 }), ctx => {
        ctx.sse.open()
        streams.push(ctx.sse)
        void ctx.sse.send('welcome')
      })
      const { url } = await serve(app)
      const first = await connect(url)
      expect((await first.event()).data).to.equal('welcome')
      const { source, seen, errors } = listen(url)
      await until(() => errors.length > 0)
      expect(source.readyState).to.equal(whenFull === 'refuse' ? EventSource.CLOSED : EventSource.CONNECTING)
      expect(errors[0]!.code).to.equal(whenFull === 'refuse' ? 503 : undefined)
      if (whenFull === 'refuse') continue
      first.destroy()
      await until(() => seen.length === 1)
      expect(seen[0]!.data).to.equal('welcome')
    }
  })

  it('is told when to come back by close(), and comes back then', async () => {
    const mw = sse()
    const next = sse()
    const app = koa(async (ctx, proceed) => {
      await (ctx.get('Last-Event-ID') === '' ? mw : next)(ctx, proceed)
    })
    app.use(async ctx => {
      await ctx.sse.send({ id: 'a', data: `after ${ctx.sse.lastEventId}` })
    })
    const { url } = await serve(app)
    const { seen } = listen(url, ['message', 'bye'])
    await until(() => seen.length === 1)
    await mw.close({ event: { event: 'bye', data: '' }, retry: 1 })
    await until(() => seen.length === 3)
    expect(seen.map(({ type, data }) => [type, data])).to.deep.equal([
      ['message', 'after undefined'],
      ['bye', ''],
      ['message', 'after a'],
    ])
  })
})
