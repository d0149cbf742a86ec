import { spawn } from 'node:child_process'
import { once } from 'node:events'
import type { ServerResponse } from 'node:http'
import { connect as dial } from 'node:net'
import { PassThrough, Readable } from 'node:stream'
import { expect } from 'chai'
import type { Context, Middleware } from 'koa'
import { sse, type EventStream, type Source, type SseEvent, type SseOptions } from 'koa-sse'
import { connect, type LiveClient } from './support/client.ts'
import { collect } from './support/heap.ts'
import { makeHub } from './support/hub.ts'
import { koa, serve, until } from './support/serve.ts'
import { startWith, type Started } from './support/start.ts'

// At once, on a machine that may be very busy; what fails to come is never so fast.
const PROMPT = 3_000

const start = (handler: (ctx: Context) => unknown, ...outer: Middleware[]): Promise<Started> => startWith({}, handler, ...outer)

/** What a handler did with `pipe`, told to the test. */
interface Piping extends Started {
  stream: EventStream
  client: LiveClient
  /** How the promise of `pipe()` settled; `true` when it resolved. */
  settled: Promise<unknown>
}

/** A client of a stream that is piped from `source`, and nobody awaits it. */
const piping = async (source: Source, options: Record<string, unknown> = {}, sseOptions: SseOptions = {}): Promise<Piping> => {
  let settled: Promise<unknown> | undefined
  const started = await startWith(sseOptions, ctx => {
    settled = ctx.sse.pipe(source, options as { map: () => string }).then(
      () => true,
      error => error,
    )
  })
  const client = await connect(started.url)
  const { sse: stream } = await started.arrived
  return { ...started, client, stream, settled: settled! }
}

const within = async <T>(promise: Promise<T>, ms = PROMPT): Promise<T> => {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => (timer = setTimeout(reject, ms, new Error(`not settled after ${ms} ms`))))
  try {
    return await Promise.race([promise, late])
  } finally {
    clearTimeout(timer)
  }
}

const data = ({ events }: LiveClient): string[] => events.map(event => event.data)

const never = new Promise<never>(() => {})

const ABC = ['a', 'b', 'c']

/** Every kind of thing that holds items. */
const kinds: Record<string, () => Exclude<Source, (signal: AbortSignal) => unknown>> = {
  'an array': () => ABC,
  'a Set': () => new Set(ABC),
  'a generator': () =>
    (function* () {
      yield* ABC
    })(),
  'an async generator': () =>
    (async function* () {
      for (const item of ABC) {
        await new Promise(setImmediate)
        yield item
      }
    })(),
  'an object with Symbol.asyncIterator': () => ({
    [Symbol.asyncIterator]: () => {
      const items = [...ABC]
      return {
        next: async () => {
          const value = items.shift()
          return value === undefined ? { done: true as const, value } : { done: false as const, value }
        },
      }
    },
  }),
  'a Readable in object mode': () => Readable.from(ABC),
  'a ReadableStream': () =>
    new ReadableStream<string>({
      start: controller => {
        for (const item of ABC) controller.enqueue(item)
        controller.close()
      },
    }),
}

describe('pipe() takes', () => {
  const streamsAll = async (source: Source): Promise<void> => {
    const { client, stream, settled, app } = await piping(source)
    expect(await within(client.ended)).to.equal('clean')
    expect(data(client)).to.deep.equal(ABC)
    expect(await within(settled)).to.equal(true)
    expect(await stream.closed).to.equal('closed')
    expect(stream.eventsSent).to.equal(3)
    expect(app.errors).to.deep.equal([])
  }

  for (const [kind, make] of Object.entries(kinds)) {
    it(kind, () => streamsAll(make()))
    it(`a function that returns ${kind}`, () => streamsAll(make))
    it(`a function that returns a promise of ${kind}`, () => streamsAll(async () => make()))
  }

  it('a generator function, uncalled', () =>
    streamsAll(function* () {
      yield* ABC
    }))

  it('an async generator function, uncalled', () =>
    streamsAll(async function* (signal: AbortSignal) {
      expect(signal).to.be.an.instanceOf(AbortSignal)
      yield* ABC
    }))

  it('events and bytes beside strings', async () => {
    const { client } = await piping(['one', { id: '2', event: 'two', data: { n: 2 } }, Buffer.from('drei'), new Uint8Array([0x34])])
    expect(await client.ended).to.equal('clean')
    expect(client.events).to.deep.equal([
      { id: undefined, event: undefined, data: 'one' },
      { id: '2', event: 'two', data: '{"n":2}' },
      { id: undefined, event: undefined, data: 'drei' },
      { id: undefined, event: undefined, data: '4' },
    ])
  })

  it('an empty source, and ends', async () => {
    const { client } = await piping([])
    expect(client.status).to.equal(200)
    expect(await client.ended).to.equal('clean')
    expect(client.events).to.deep.equal([])
  })

  const TEXT = 'é日🎉'
  // A byte stream takes the buffers away.
  const bytes = (): Uint8Array[] => [...Buffer.from(TEXT)].map(byte => Uint8Array.of(byte))

  const textual: Record<string, () => Source> = {
    'an array of its bytes': bytes,
    'a Readable of its bytes': () => Readable.from(bytes(), { objectMode: false }),
    'a Readable in object mode of its bytes': () => Readable.from(bytes()),
    'a Readable with setEncoding()': () => Readable.from(bytes(), { objectMode: false }).setEncoding('utf8'),
    'a ReadableStream of its bytes': () => ReadableStream.from(bytes()) as Source,
    'a ReadableStream of bytes': () => {
      const rest = bytes()
      return new ReadableStream({
        type: 'bytes',
        pull: controller => {
          const byte = rest.shift()
          if (byte === undefined) controller.close()
          else controller.enqueue(byte)
        },
      }) as Source
    },
    'a ReadableStream through a TextDecoderStream': () => ReadableStream.from(bytes()).pipeThrough(new TextDecoderStream()) as Source,
  }
  for (const [kind, make] of Object.entries(textual)) {
    it(`text as ${kind}, one at a time, and breaks no character`, async () => {
      const { client } = await piping(make())
      expect(await within(client.ended)).to.equal('clean')
      expect(data(client).join('')).to.equal(TEXT)
    })
  }

  it('text of two sources without mixing up their characters', async () => {
    const { url } = await start(async ctx => {
      await ctx.sse.pipe([Uint8Array.of(0xc3)], { end: false })
      await ctx.sse.pipe([Uint8Array.of(0xa9), Buffer.from('x')])
    })
    const client = await connect(url)
    expect(await client.ended).to.equal('clean')
    expect(data(client)).to.deep.equal(['\uFFFD', '\uFFFD', 'x'])
  })

  it('the body of a fetch, and of a fetch through a decoder', async () => {
    const upstream = await serve((_, res) => {
      const rest = bytes()
      const next = (): void => {
        const byte = rest.shift()
        if (byte === undefined) res.end()
        else res.write(byte, () => setImmediate(next))
      }
      next()
    })
    const body = async (signal: AbortSignal): Promise<ReadableStream<Uint8Array>> => (await fetch(upstream.url, { signal })).body!
    const decoded = async (signal: AbortSignal): Promise<ReadableStream<string>> => (await body(signal)).pipeThrough(new TextDecoderStream())
    // Held until its turn has come: fetch cancels the body, unread, of a response that is garbage.
    const ahead = await fetch(upstream.url)
    for (const source of [body, decoded, ahead.body]) {
      const { client } = await piping(source as Source)
      expect(await within(client.ended)).to.equal('clean')
      expect(data(client).join('')).to.equal(TEXT)
    }
    expect(ahead.bodyUsed).to.equal(true)
  })

  it('the body of its own request', async () => {
    const { url, app } = await start(ctx => ctx.sse.pipe(ctx.req))
    const client = await connect(url, { method: 'POST', body: 'this is the question' })
    expect(await within(client.ended)).to.equal('clean')
    expect(data(client).join('')).to.equal('this is the question')
    expect(app.errors).to.deep.equal([])
  })

  const endless: Record<string, (stream: EventStream) => Promise<unknown>> = {
    'an endless generator': stream =>
      stream.pipe(
        (function* () {
          for (;;) yield 'x'.repeat(100)
        })(),
      ),
    'an endless async generator': stream =>
      stream.pipe(
        (async function* () {
          for (;;) yield 'x'.repeat(100)
        })(),
      ),
    '(or send(), endlessly awaited)': async stream => {
      while (await stream.send('x'.repeat(100)));
    },
  }
  for (const [what, write] of Object.entries(endless)) {
    it(`${what} without blocking the event loop, however fast the client reads`, async () => {
      const { url, arrived, sockets } = await start(ctx => write(ctx.sse))
      // In this process it could not read while the loop is blocked, which would end that.
      const reader = spawn(process.execPath, ['-e', 'require("node:http").get(process.argv[1], res => res.resume())', url], { stdio: 'ignore' })
      try {
        const { sse: stream } = await arrived
        let timers = 0
        const timer = setInterval(() => timers++, 1)
        // Bytes, not milliseconds: the machine may be busy.
        let most = 0
        const deadline = performance.now() + 1_000
        for (let before = stream.bytesWritten; performance.now() < deadline; before = stream.bytesWritten) {
          await new Promise(setImmediate)
          most = Math.max(most, stream.bytesWritten - before)
        }
        clearInterval(timer)
        expect(stream.bytesWritten).to.be.above(1_000_000)
        expect(most).to.be.below(4_000_000)
        expect(timers).to.be.above(10)
      } finally {
        reader.kill()
        await once(reader, 'exit')
      }
      await until(() => sockets.size === 0)
    })
  }
})

/** Sources that yield `items` and then owe one more for ever, and that tell whether they have been released. */
interface Tracked {
  source: Source
  released: () => boolean
}

// Long, so that a client which reads is not flooded with small events.
const MORE = 'x'.repeat(4_096)

const tracked: Record<string, (items: unknown[]) => Tracked> = {
  'a generator': items => {
    let released = false
    const source = (function* () {
      try {
        yield* items
        for (;;) yield MORE
      } finally {
        released = true
      }
    })() as Iterable<string>
    return { source, released: () => released }
  },
  'an async generator': items => {
    let released = false
    const source = (async function* () {
      try {
        yield* items
        for (;;) {
          await new Promise(setImmediate)
          yield MORE
        }
      } finally {
        released = true
      }
    })() as AsyncIterable<string>
    return { source, released: () => released }
  },
  'an async generator that is stuck': items => {
    let released = false
    const source = (async function* () {
      yield* items
      await never
    })() as AsyncGenerator<string>
    const finish = source.return.bind(source)
    source.return = value => {
      released = true
      return finish(value)
    }
    return { source, released: () => released }
  },
  'an async generator function that heeds the signal': items => {
    let released = false
    const source = async function* (signal: AbortSignal): AsyncGenerator<string> {
      try {
        yield* items as string[]
        await once(new PassThrough(), 'never', { signal })
      } finally {
        released = true
      }
    }
    return { source, released: () => released }
  },
  'an async iterator that is stuck': items => {
    let released = false
    const rest = [...items] as string[]
    const source: AsyncIterable<string> = {
      [Symbol.asyncIterator]: () => ({
        next: () => (rest.length === 0 ? never : Promise.resolve({ done: false as const, value: rest.shift()! })),
        return: async () => {
          released = true
          return { done: true as const, value: undefined }
        },
      }),
    }
    return { source, released: () => released }
  },
  'an async iterator whose return() fails': items => {
    let released = false
    const rest = [...items] as string[]
    const source: AsyncIterable<string> = {
      [Symbol.asyncIterator]: () => ({
        next: () => (rest.length === 0 ? never : Promise.resolve({ done: false as const, value: rest.shift()! })),
        return: () => {
          released = true
          return Promise.reject(new Error('cannot return'))
        },
      }),
    }
    return { source, released: () => released }
  },
  'a Readable in object mode': items => {
    const rest = [...items]
    const source = new Readable({
      objectMode: true,
      read() {
        if (rest.length > 0) this.push(rest.shift())
      },
    })
    return { source, released: () => source.destroyed }
  },
  'a ReadableStream': items => {
    let released = false
    const source = new ReadableStream<string>({
      start: controller => {
        for (const item of items) controller.enqueue(item as string)
      },
      cancel: () => {
        released = true
      },
    })
    return { source, released: () => released }
  },
  'a ReadableStream whose cancel() fails': items => {
    let released = false
    const source = new ReadableStream<string>({
      start: controller => {
        for (const item of items) controller.enqueue(item as string)
      },
      cancel: () => {
        released = true
        throw new Error('cannot cancel')
      },
    })
    return { source, released: () => released }
  },
}
for (const [kind, make] of Object.entries(tracked)) {
  tracked[`a function that returns ${kind}`] = items => {
    const { source, released } = make(items)
    return { source: (signal: AbortSignal) => (typeof source === 'function' ? source(signal) : source) as AsyncIterable<string>, released }
  }
  tracked[`a function that returns a promise of ${kind}`] = items => {
    const { source, released } = make(items)
    return { source: async (signal: AbortSignal) => (typeof source === 'function' ? source(signal) : source) as AsyncIterable<string>, released }
  }
}

describe('pipe() releases', () => {
  const endings: Record<string, { end: (piping: Piping) => unknown; reason: string; options?: SseOptions }> = {
    'when the client leaves': { end: ({ client }) => client.fin(), reason: 'client' },
    'when the stream is closed': { end: ({ stream }) => stream.close(), reason: 'closed' },
    'when the stream reaches its age': { end: () => {}, reason: 'expired', options: { maxAge: 60 } },
    'when the middleware is closed': { end: ({ streams }) => void streams.close(), reason: 'shutdown' },
  }

  for (const [kind, make] of Object.entries(tracked)) {
    for (const [when, { end, reason, options }] of Object.entries(endings)) {
      it(`${kind}, ${when}`, async () => {
        const { source, released } = make(['first'])
        const piped = await piping(source, {}, options)
        expect((await piped.client.event()).data).to.equal('first')
        if (options === undefined) expect(released()).to.equal(false)
        end(piped)
        expect(await within(piped.settled)).to.equal(true)
        expect(await piped.stream.closed).to.equal(reason)
        await until(released, PROMPT)
        expect(piped.app.errors).to.deep.equal([])
      })
    }

    const failures: Record<string, { items: unknown[]; options?: object }> = {
      'when map throws': {
        items: ['first', 'second'],
        options: {
          map: (item: string) => {
            if (item === 'first') return item
            throw new Error('map failed')
          },
        },
      },
      'when it yields what is no event': { items: ['first', 42] },
    }
    for (const [when, { items, options }] of Object.entries(failures)) {
      it(`${kind}, ${when}`, async () => {
        const { source, released } = make(items)
        const { settled, app, client, stream } = await piping(source, options as Record<string, unknown>)
        const error = await within(settled)
        expect(error).to.be.an.instanceOf(TypeError)
        await until(released, PROMPT)
        expect(app.errors).to.deep.equal([error])
        expect(await client.ended).to.equal('cut')
        expect(data(client)).to.deep.equal(['first'])
        expect(await stream.closed).to.equal('error')
      })
    }

    it(`${kind}, when a handler fails meanwhile`, async () => {
      const { source, released } = make(['first'])
      let settled: Promise<unknown> | undefined
      const failure = new Error('on purpose')
      const { url, app } = await start(async ctx => {
        settled = ctx.sse.pipe(source)
        await until(() => ctx.sse.eventsSent > 0)
        throw failure
      })
      const client = await connect(url)
      expect(await client.ended).to.equal('cut')
      await within(settled!)
      await until(released, PROMPT)
      expect(app.errors).to.deep.equal([failure])
    })

    if (kind.startsWith('a function') || kind.includes('function')) continue

    it(`${kind}, unread, when the stream has ended before`, async () => {
      const { source } = make(['first'])
      const spy = releases(source)
      let settled: Promise<void> | undefined
      const { url } = await start(ctx => {
        ctx.sse.open().close()
        settled = ctx.sse.pipe(source)
      })
      expect(await (await connect(url)).ended).to.equal('clean')
      await within(settled!)
      await until(spy, PROMPT)
    })

    it(`${kind}, unread, when too many streams are open`, async () => {
      const { source } = make(['first'])
      const spy = releases(source)
      const { url, streams } = await startWith({ maxStreams: 1 }, ctx => (ctx.path === '/' ? void ctx.sse.open() : ctx.sse.pipe(source)))
      await connect(url)
      const refused = await connect(`${url}/more`)
      expect(refused.status).to.equal(503)
      await refused.ended
      await until(spy, PROMPT)
      expect(streams.size).to.equal(1)
    })

    it(`${kind}, unread, when the middleware was closed`, async () => {
      const { source } = make(['first'])
      const spy = releases(source)
      const { url, streams } = await start(ctx => ctx.sse.pipe(source))
      await streams.close()
      expect((await connect(url)).status).to.equal(503)
      await until(spy, PROMPT)
    })

    it(`${kind}, unread, when the request is a HEAD`, async () => {
      const { source } = make(['first'])
      const spy = releases(source)
      let settled: Promise<void> | undefined
      const { url, app } = await start(ctx => (settled = ctx.sse.pipe(source)))
      const client = await connect(url, { method: 'HEAD' })
      expect(client.status).to.equal(200)
      await within(settled!)
      await until(spy, PROMPT)
      expect(app.errors).to.deep.equal([])
    })

    it(`${kind}, when a function's promise of it resolves too late`, async () => {
      const { source } = make(['first'])
      const spy = releases(source)
      let resolve!: (items: unknown) => void
      const promise = new Promise(done => (resolve = done))
      let called = false
      const piped = await piping((() => {
        called = true
        return promise
      }) as Source)
      await until(() => called)
      piped.client.fin()
      expect(await piped.stream.closed).to.equal('client')
      expect(await within(piped.settled)).to.equal(true)
      resolve(source)
      await until(spy, PROMPT)
      expect(piped.stream.eventsSent).to.equal(0)
      expect(piped.app.errors).to.deep.equal([])
    })
  }

  /** Whether a source that nobody has read was given back: a generator that never ran has nothing to clean up, but is over. */
  const releases = (source: Source): (() => boolean) => {
    if (source instanceof Readable) return () => source.destroyed
    if (source instanceof ReadableStream) {
      let cancelled = false
      const getReader = source.getReader.bind(source)
      const cancel = source.cancel.bind(source)
      source.cancel = reason => {
        cancelled = true
        return cancel(reason)
      }
      source.getReader = (() => {
        const reader = getReader()
        const cancel = reader.cancel.bind(reader)
        reader.cancel = reason => {
          cancelled = true
          return cancel(reason)
        }
        return reader
      }) as typeof source.getReader
      return () => cancelled
    }
    let returned = false
    const method = Symbol.asyncIterator in source ? Symbol.asyncIterator : Symbol.iterator
    const items = source as unknown as Record<symbol, () => Iterator<string>>
    const iterate = items[method]!.bind(source)
    items[method] = () => {
      const iterator = iterate()
      const finish = iterator.return?.bind(iterator)
      iterator.return = value => {
        returned = true
        return finish!(value)
      }
      return iterator
    }
    return () => returned
  }

  for (const [when, answer] of Object.entries({ 'that has an answer': 'first', 'that has none yet': undefined })) {
    it(`a fetch ${when}, and the upstream sees its client leave`, async () => {
      let asked: ServerResponse | undefined
      const upstream = await serve((_, res) => {
        asked = res
        if (answer !== undefined) res.write(answer)
      })
      const { client, app, settled } = await piping((async (signal: AbortSignal) => (await fetch(upstream.url, { signal })).body) as Source)
      await until(() => asked !== undefined)
      if (answer !== undefined) expect((await client.event()).data).to.equal(answer)
      expect(asked!.destroyed).to.equal(false)
      client.fin()
      expect(await within(settled)).to.equal(true)
      await until(() => asked!.destroyed, PROMPT)
      expect(app.errors).to.deep.equal([])
    })
  }

  it('nothing that a function fails to get after the client has left, and calls it no error', async () => {
    let reject!: (error: Error) => void
    const promise = new Promise<never>((_, fail) => (reject = fail))
    let called = false
    const { client, app, settled, stream } = await piping(() => {
      called = true
      return promise
    })
    await until(() => called)
    client.fin()
    expect(await stream.closed).to.equal('client')
    expect(await within(settled)).to.equal(true)
    reject(new Error('too late'))
    await new Promise(setImmediate)
    expect(app.errors).to.deep.equal([])
  })

  it('nothing that a function would have made for a HEAD: it is not called', async () => {
    let called = false
    const { url } = await start(ctx =>
      ctx.sse.pipe(() => {
        called = true
        return ABC
      }),
    )
    const client = await connect(url, { method: 'HEAD' })
    expect(client.status).to.equal(200)
    await client.ended
    await new Promise(setImmediate)
    expect(called).to.equal(false)
  })

  it('nothing that a function would have made for a stream that has ended: it is not called', async () => {
    let called = false
    const { url } = await start(async ctx => {
      ctx.sse.open().close()
      await ctx.sse.pipe(() => {
        called = true
        return ABC
      })
    })
    expect(await (await connect(url)).ended).to.equal('clean')
    expect(called).to.equal(false)
  })

  it('a generator that closes the stream itself', async () => {
    let released = false
    const { url, app } = await start(ctx =>
      ctx.sse.pipe(
        (function* () {
          try {
            yield 'first'
            ctx.sse.close()
            yield 'too late'
          } finally {
            released = true
          }
        })(),
      ),
    )
    const client = await connect(url)
    expect(await client.ended).to.equal('clean')
    expect(data(client)).to.deep.equal(['first'])
    await until(() => released, PROMPT)
    expect(app.errors).to.deep.equal([])
  })

  it('a source whose map closes the stream', async () => {
    const { source, released } = tracked['an async generator']!(['first', 'second'])
    const { url, app } = await start(ctx =>
      ctx.sse.pipe(source as Source<string>, {
        map: item => {
          if (item === 'second') ctx.sse.close()
          return item
        },
      }),
    )
    const client = await connect(url)
    expect(await client.ended).to.equal('clean')
    expect(data(client)).to.deep.equal(['first'])
    await until(released, PROMPT)
    expect(app.errors).to.deep.equal([])
  })

  it('the other sources of a stream when one ends it', async () => {
    const { source, released } = tracked['an async iterator that is stuck']!(['first'])
    let both: Promise<unknown> | undefined
    const { url } = await start(ctx => (both = Promise.all([ctx.sse.pipe(source), ctx.sse.pipe(['second'])])))
    const client = await connect(url)
    expect(await within(client.ended)).to.equal('clean')
    expect(data(client)).to.have.members(['first', 'second'])
    await within(both!)
    expect(released()).to.equal(true)
  })

  it('a source that ended by itself: no return() is called', async () => {
    let returned = false
    const source: Iterable<string> = {
      [Symbol.iterator]: () => {
        const items = [...ABC]
        return {
          next: () => {
            const value = items.shift()
            return value === undefined ? { done: true, value } : { done: false, value }
          },
          return: () => {
            returned = true
            return { done: true, value: undefined }
          },
        }
      },
    }
    const { client } = await piping(source)
    expect(await client.ended).to.equal('clean')
    expect(data(client)).to.deep.equal(ABC)
    expect(returned).to.equal(false)
  })

  it('a source that failed by itself: no return() is called', async () => {
    let returned = false
    const source: AsyncIterable<string> = {
      [Symbol.asyncIterator]: () => ({
        next: async () => Promise.reject(new Error('upstream is gone')),
        return: async () => {
          returned = true
          return { done: true as const, value: undefined }
        },
      }),
    }
    const { client, settled } = await piping(source)
    expect(await within(settled)).to.be.an('error', 'upstream is gone')
    expect(await client.ended).to.equal('cut')
    expect(returned).to.equal(false)
  })

  it('an async iterable that has a destroy(), and is no Readable, by its return() alone', async () => {
    const calls: string[] = []
    const source = {
      destroy: () => calls.push('destroy'),
      [Symbol.asyncIterator]: () => ({
        next: () => never,
        return: async () => {
          calls.push('return')
          return { done: true as const, value: undefined }
        },
      }),
    }
    const { stream, settled } = await piping(source)
    stream.close()
    await within(settled)
    expect(calls).to.deep.equal(['return'])
  })

  for (const [when, end] of Object.entries<(piping: Piping, step: (result: IteratorResult<string>) => void) => void>({
    'the stream was closed, and an item comes late': ({ stream }, step) => {
      stream.close()
      step({ done: false, value: 'late' })
    },
    'an item fails it': (_, step) => step({ done: false, value: 5 as unknown as string }),
  })) {
    it(`once, when ${when}`, async () => {
      let returned = 0
      let step!: (result: IteratorResult<string>) => void
      const rest = [Promise.resolve({ done: false, value: 'first' }), new Promise<IteratorResult<string>>(resolve => (step = resolve))]
      const source: AsyncIterable<string> = {
        [Symbol.asyncIterator]: () => ({
          next: () => rest.shift()!,
          return: async () => {
            returned++
            return { done: true as const, value: undefined }
          },
        }),
      }
      const piped = await piping(source)
      await piped.client.event()
      end(piped, step)
      await within(piped.settled)
      await piped.client.ended
      expect(returned).to.equal(1)
    })
  }
})

describe('pipe() with map', () => {
  it('makes an event of each item', async () => {
    const { client } = await piping([1, 2] as unknown as Source, { map: (n: number): SseEvent => ({ id: String(n), event: 'n', data: { n } }) })
    expect(await client.ended).to.equal('clean')
    expect(client.events).to.deep.equal([
      { id: '1', event: 'n', data: '{"n":1}' },
      { id: '2', event: 'n', data: '{"n":2}' },
    ])
  })

  it('is given what the source yields, whatever that is', async () => {
    const items = [null, undefined, 0, '', Buffer.from('b'), { a: 1 }, ['x'], Symbol.for('s')]
    const given: unknown[] = []
    const { client } = await piping(items as unknown as Source, { map: (item: unknown) => `${given.push(item)}` })
    expect(await client.ended).to.equal('clean')
    expect(given).to.deep.equal(items)
    expect(data(client)).to.deep.equal(['1', '2', '3', '4', '5', '6', '7', '8'])
  })

  for (const wrong of [undefined, null, 5, {}, { data: 'x', dta: 'y' }, { event: 'a\nb' }, ['x'], Promise.resolve('x')]) {
    it(`fails the source when it returns ${wrong instanceof Promise ? 'a promise' : JSON.stringify(wrong)}`, async () => {
      const { client, settled, app } = await piping(['x'], { map: () => wrong })
      const error = await within(settled)
      expect(error).to.be.an.instanceOf(TypeError)
      expect(await client.ended).to.equal('cut')
      expect(app.errors).to.deep.equal([error])
    })
  }

  it('keeps what it threw as the cause', async () => {
    const cause = new RangeError('too far')
    const { settled } = await piping(['x'], {
      map: () => {
        throw cause
      },
    })
    const error = await within(settled)
    expect(error).to.be.an.instanceOf(TypeError)
    expect((error as Error).cause).to.equal(cause)
  })
})

describe('pipe() of what yields', () => {
  const show = (item: unknown): string => (item === undefined || typeof item === 'symbol' ? String(item) : (JSON.stringify(item) ?? typeof item))
  for (const item of [42, null, undefined, true, {}, { text: 'x' }, ['x'], Symbol.for('s'), () => 'x', { id: 'a\0' }, { retry: -1, data: 'x' }]) {
    it(`${show(item)}, fails with a TypeError, and sends what came before`, async () => {
      const { client, settled, app, stream } = await piping(['before', item] as unknown as Source)
      const error = await within(settled)
      expect(error).to.be.an.instanceOf(TypeError)
      expect(await client.ended).to.equal('cut')
      expect(data(client)).to.deep.equal(['before'])
      expect(app.errors).to.deep.equal([error])
      expect(await stream.closed).to.equal('error')
    })
  }

  it('nothing yet, being a promise, is refused with the way out', async () => {
    const { stream } = await piping([], { end: false })
    const message = 'got an object (Promise): await it first, or pass a function that returns it'
    expect(() => void stream.pipe(Promise.resolve(['x']) as never)).to.throw(TypeError, message)
  })

  it('results that are no objects, fails with a TypeError', async () => {
    const source = { [Symbol.asyncIterator]: () => ({ next: async () => 'no result' }) } as unknown as Source
    const { settled, client } = await piping(source)
    expect(await within(settled)).to.be.an.instanceOf(TypeError)
    expect(await client.ended).to.equal('cut')
  })
})

describe('pipe() of a Readable that is about to fail', () => {
  it('hears of it, in whatever turn it is made', async () => {
    const cause = new Error('gone')
    const { url, app } = await startWith({}, async ctx => {
      await new Promise<void>((resolve, reject) => {
        setImmediate(() => {
          const source = new Readable({ read() {} })
          source.destroy(cause)
          ctx.sse.pipe(source).then(resolve, reject)
        })
      })
    })
    const client = await connect(url)
    expect(await client.ended).to.equal('cut')
    expect(app.errors).to.deep.equal([cause])
  })
})

describe('pipe() of a source that owes an item for ever', () => {
  it('keeps neither the stream that has ended nor its map', async () => {
    const owed = new Promise<never>(() => {})
    const source = { [Symbol.asyncIterator]: () => ({ next: () => owed }) }
    const kept: WeakRef<object>[] = []
    const { url } = await serve(
      koa(sse(), ctx => {
        const map = (item: string): string => `${item} ${kept.length}`
        kept.push(new WeakRef(ctx.sse), new WeakRef(map))
        return ctx.sse.pipe(source, { map })
      }),
    )
    for (let i = 0; i < 5; i++) (await connect(url)).rst()
    await until(() => {
      collect()
      // The newest may stand in a register still.
      return kept.length === 10 && kept.filter(ref => ref.deref() !== undefined).length <= 2
    })
    expect(owed).to.be.a('promise')
  })
})

describe("a hub's pipe()", () => {
  it('keeps nothing of a source that has ended', async () => {
    const hub = makeHub()
    const sources = Array.from({ length: 5 }, () => new WeakRef(['a'].values()))
    for (const source of sources) await hub.pipe('a', source.deref()!)
    await until(() => {
      collect()
      return sources.filter(source => source.deref() !== undefined).length <= 1
    })
    expect(hub.stats().published).to.equal(5)
  })
})

describe('pipe() with end: false', () => {
  it('keeps nothing of a source that has ended', async () => {
    const { arrived, url } = await startWith({}, ctx => void ctx.sse.open())
    await connect(url)
    const { sse: stream } = await arrived
    const source = new WeakRef(['a'].values())
    await stream.pipe(source.deref()!, { end: false })
    await until(() => {
      collect()
      return source.deref() === undefined
    })
    expect(stream.connected).to.equal(true)
  })

  it('leaves the stream open for a second source, and for send()', async () => {
    const { url, arrived } = await start(async ctx => {
      await ctx.sse.pipe(['a', 'b'], { end: false })
      await ctx.sse.pipe(Readable.from(['c']), { end: false })
      await ctx.sse.send('d')
      await ctx.sse.pipe(['e'], { end: true })
      expect(await ctx.sse.send('f')).to.equal(false)
    })
    const client = await connect(url)
    expect(await client.ended).to.equal('clean')
    expect(data(client)).to.deep.equal(['a', 'b', 'c', 'd', 'e'])
    expect((await arrived).sse.eventsSent).to.equal(5)
  })

  it('keeps it open when the handler returns', async () => {
    const { client, settled, stream } = await piping(ABC, { end: false })
    expect(await client.take(3)).to.deep.equal(ABC)
    expect(await settled).to.equal(true)
    expect(stream.connected).to.equal(true)
    await stream.send('d')
    expect((await client.event()).data).to.equal('d')
  })

  it('is cut by a failing source all the same', async () => {
    const failure = new Error('on purpose')
    const { client, app } = await piping(
      (function* () {
        yield 'a'
        throw failure
      })(),
      { end: false },
    )
    expect(await client.ended).to.equal('cut')
    expect(app.errors).to.deep.equal([failure])
  })
})

describe("pipe() with head: 'first-event'", () => {
  const first = { head: 'first-event' } as const

  const fails = (error: unknown): (() => AsyncGenerator<string>) =>
    // oxlint-disable-next-line eslint/require-yield -- it fails before
    async function* () {
      await new Promise(setImmediate)
      throw error
    }

  const tooMany = (): Error => Object.assign(new Error('slow down'), { status: 429, expose: true })

  it('answers with the status of what a source threw before its first item', async () => {
    const failure = tooMany()
    const { url, app, arrived } = await start(ctx => ctx.sse.pipe(fails(failure), first))
    const client = await connect(url)
    expect(client.status).to.equal(429)
    expect(client.headers['content-type']).to.match(/^text\/plain/)
    await client.ended
    expect(client.text).to.equal('slow down')
    expect(app.errors).to.deep.equal([failure])
    expect((await arrived).sse.connected).to.equal(false)
  })

  it('does so when nobody awaits it', async () => {
    const failure = tooMany()
    const { url, app } = await start(ctx => void ctx.sse.pipe(fails(failure), first))
    const client = await connect(url)
    expect(client.status).to.equal(429)
    await client.ended
    expect(app.errors).to.deep.equal([failure])
  })

  it('does so when a function rejects', async () => {
    const failure = tooMany()
    const { url, app } = await start(ctx => ctx.sse.pipe(() => Promise.reject(failure), first))
    expect((await connect(url)).status).to.equal(429)
    expect(app.errors).to.deep.equal([failure])
  })

  it('answers 500 when the first item is no event, and tells no details', async () => {
    const { url, app } = await start(ctx => ctx.sse.pipe([{ secret: 'xyzzy' }] as unknown as Source, first))
    const client = await connect(url)
    expect(client.status).to.equal(500)
    await client.ended
    expect(client.text).to.equal('Internal Server Error')
    expect(app.errors).to.have.lengthOf(1)
    expect(app.errors[0]).to.be.an.instanceOf(TypeError)
  })

  it('lets a handler that catches the failure answer otherwise', async () => {
    const { url, app } = await start(async ctx => {
      try {
        await ctx.sse.pipe(fails(tooMany()), first)
      } catch {
        ctx.status = 502
        ctx.body = 'the upstream is ill'
      }
    })
    const client = await connect(url)
    expect(client.status).to.equal(502)
    await client.ended
    expect(client.text).to.equal('the upstream is ill')
    expect(app.errors).to.deep.equal([])
  })

  it('lets a handler that catches the failure stream something else', async () => {
    const { url, app } = await start(async ctx => {
      try {
        await ctx.sse.pipe(fails(tooMany()), first)
      } catch {
        await ctx.sse.pipe(['instead'])
      }
    })
    const client = await connect(url)
    expect(client.status).to.equal(200)
    expect(await client.ended).to.equal('clean')
    expect(data(client)).to.deep.equal(['instead'])
    expect(app.errors).to.deep.equal([])
  })

  it('holds the head back until the first item, and outer middleware too', async () => {
    const source = new PassThrough({ objectMode: true })
    let outside = false
    let answered = false
    const { url, arrived } = await start(
      ctx => ctx.sse.pipe(source, first),
      async (_, next) => {
        await next()
        outside = true
      },
    )
    const connecting = connect(url).then(client => {
      answered = true
      return client
    })
    const ctx = await arrived
    await new Promise(resolve => setTimeout(resolve, 100))
    expect(answered).to.equal(false)
    expect(outside).to.equal(false)
    expect(ctx.res.headersSent).to.equal(false)
    expect(ctx.sse.connected).to.equal(false)
    ctx.set('X-Upstream', 'ready')
    source.write('one')
    const client = await connecting
    expect(outside).to.equal(true)
    expect(client.headers['x-upstream']).to.equal('ready')
    expect((await client.event()).data).to.equal('one')
    source.end('two')
    expect(await client.ended).to.equal('clean')
    expect(data(client)).to.deep.equal(['one', 'two'])
  })

  it('holds the head back for a handler that does not await it', async () => {
    const source = new PassThrough({ objectMode: true })
    const { url, arrived } = await start(ctx => void ctx.sse.pipe(source, first))
    const connecting = connect(url)
    const ctx = await arrived
    await new Promise(setImmediate)
    expect(ctx.res.headersSent).to.equal(false)
    source.end('one')
    const client = await connecting
    expect(client.status).to.equal(200)
    expect(await client.ended).to.equal('clean')
    expect(data(client)).to.deep.equal(['one'])
  })

  for (const [kind, make] of Object.entries(kinds)) {
    it(`streams ${kind}`, async () => {
      const { client } = await piping(make(), first)
      expect(await within(client.ended)).to.equal('clean')
      expect(data(client)).to.deep.equal(ABC)
    })
  }

  for (const source of [[], Readable.from([]), async function* (): AsyncGenerator<string> {}] as Source[]) {
    it(`opens, and ends, with an empty ${typeof source === 'function' ? 'generator' : source.constructor.name}`, async () => {
      const { client, stream } = await piping(source, first)
      expect(client.status).to.equal(200)
      expect(client.headers['content-type']).to.match(/^text\/event-stream/)
      expect(await within(client.ended)).to.equal('clean')
      expect(await stream.closed).to.equal('closed')
    })
  }

  it('opens with an empty source, and stays open with end: false', async () => {
    const { client, stream } = await piping([], { ...first, end: false })
    expect(client.status).to.equal(200)
    expect(stream.connected).to.equal(true)
    await stream.send('x')
    expect((await client.event()).data).to.equal('x')
  })

  it('cuts the stream when the source fails after its first item', async () => {
    const failure = tooMany()
    const { client, app } = await piping(
      (async function* () {
        yield 'one'
        throw failure
      })(),
      first,
    )
    expect(client.status).to.equal(200)
    expect(await client.ended).to.equal('cut')
    expect(data(client)).to.deep.equal(['one'])
    expect(app.errors).to.deep.equal([failure])
  })

  for (const [kind, make] of Object.entries(tracked)) {
    if (!kind.includes('stuck') && !kind.includes('Stream') && !kind.includes('Readable') && !kind.includes('signal')) continue
    it(`releases ${kind} when the client leaves meanwhile`, async () => {
      const { source, released } = make([])
      let settled: Promise<unknown> | undefined
      const { port, arrived, app, sockets, streams } = await start(ctx => (settled = ctx.sse.pipe(source, first)))
      const socket = dial(port, '127.0.0.1')
      socket.write('GET / HTTP/1.1\r\nHost: test\r\n\r\n')
      const { sse: stream } = await arrived
      await new Promise(setImmediate)
      socket.end()
      expect(await within(stream.closed)).to.equal('client')
      expect(await within(settled!)).to.equal(undefined)
      await until(released, PROMPT)
      await until(() => sockets.size === 0, PROMPT)
      expect(stream.signal.aborted).to.equal(true)
      expect(streams.size).to.equal(0)
      expect(app.errors).to.deep.equal([])
    })

    it(`releases ${kind} when the stream is closed meanwhile, and leaves the answer to the handler`, async () => {
      const { source, released } = make([])
      let settled: Promise<unknown> | undefined
      const { url, app } = await start(async ctx => {
        settled = ctx.sse.pipe(source, first)
        await new Promise(setImmediate)
        ctx.sse.close()
        ctx.body = 'never mind'
        await settled
      })
      const client = await connect(url)
      expect(client.status).to.equal(200)
      await client.ended
      expect(client.text).to.equal('never mind')
      expect(await within(settled!)).to.equal(undefined)
      await until(released, PROMPT)
      expect(app.errors).to.deep.equal([])
    })
  }

  it('is refused when too many streams are open by then, and releases the source', async () => {
    const { source, released } = tracked['an async iterator that is stuck']!(['one'])
    const { url } = await startWith({ maxStreams: 1 }, ctx => (ctx.path === '/' ? void ctx.sse.open() : ctx.sse.pipe(source, first)))
    await connect(url)
    const refused = await connect(`${url}/more`)
    expect(refused.status).to.equal(503)
    expect(refused.headers['retry-after']).to.match(/^\d+$/)
    await until(released, PROMPT)
  })

  const overs: Record<string, [handler: (ctx: Context) => unknown, ...outer: Middleware[]]> = {
    'the stream was open': [ctx => ctx.sse.open()],
    'the stream had ended before it opened': [ctx => ctx.sse.close()],
    'the handler had failed': [ctx => ctx.throw(400), (ctx, next) => next().catch(() => void (ctx.body = 'failed'))],
  }
  for (const [when, [handler, ...outer]] of Object.entries(overs)) {
    it(`resolves, and releases the source, where the middleware is closed and ${when}`, async () => {
      const { source, released } = tracked['an async iterator that is stuck']!([])
      const { url, arrived, streams } = await start(handler, ...outer)
      await connect(url)
      const ctx = await arrived
      await streams.close()
      await within(ctx.sse.pipe(source, first))
      await until(released, PROMPT)
    })
  }

  it('keeps nothing of a stream that is over', async () => {
    let request: WeakRef<Context> | undefined
    const handler: Middleware = ctx => {
      request = new WeakRef(ctx)
      return ctx.sse.pipe(['x'], first)
    }
    const { url } = await serve(koa(sse(), handler))
    expect(await (await connect(url)).ended).to.equal('clean')
    await until(() => {
      collect()
      return request!.deref() === undefined
    })
  })

  it('answers a HEAD at once, and reads nothing', async () => {
    let called = false
    const { url } = await start(ctx =>
      ctx.sse.pipe(() => {
        called = true
        return ABC
      }, first),
    )
    const client = await connect(url, { method: 'HEAD' })
    expect(client.status).to.equal(200)
    expect(client.headers['content-type']).to.match(/^text\/event-stream/)
    expect(called).to.equal(false)
  })
})

describe('pipe() of a source that fails', () => {
  const failing: Record<string, (error: Error, items: string[]) => Source> = {
    'a generator': (error, items) =>
      (function* () {
        yield* items
        throw error
      })(),
    'an async generator': (error, items) =>
      (async function* () {
        yield* items
        throw error
      })(),
    'an async generator, later': (error, items) =>
      (async function* () {
        for (const item of items) {
          yield item
          await new Promise(setImmediate)
        }
        await new Promise(setImmediate)
        throw error
      })(),
    'an async iterator whose next() throws': (error, items) => {
      const rest = [...items]
      return {
        [Symbol.asyncIterator]: () => ({
          next: () => {
            if (rest.length === 0) throw error
            return Promise.resolve({ done: false as const, value: rest.shift()! })
          },
        }),
      }
    },
    'an iterable that cannot be iterated': error => ({
      [Symbol.iterator]: () => {
        throw error
      },
    }),
    'a Readable': (error, items) => {
      const rest = [...items]
      return new Readable({
        objectMode: true,
        read() {
          if (rest.length > 0) this.push(rest.shift())
          else setImmediate(() => this.destroy(error))
        },
      })
    },
    'a ReadableStream': (error, items) => {
      const rest = [...items]
      return new ReadableStream<string>({
        pull: controller => {
          if (rest.length > 0) controller.enqueue(rest.shift()!)
          else controller.error(error)
        },
      })
    },
    'a function that throws': error => () => {
      throw error
    },
    'a function that rejects': error => async () => {
      throw error
    },
    'a function whose promise yields a source that fails': (error, items) => async () =>
      (async function* () {
        yield* items
        throw error
      })(),
  }

  for (const [kind, make] of Object.entries(failing)) {
    for (const items of [[], ['a', 'b']]) {
      if (items.length > 0 && typeof make(new Error('probe'), items) === 'function' && !kind.includes('promise')) continue
      if (items.length > 0 && kind.includes('cannot be iterated')) continue
      it(`${kind}, ${items.length === 0 ? 'before its first item' : 'after some'}, rejects, and cuts the stream`, async () => {
        const failure = new Error('the database has no more xyzzy')
        let settled: Promise<unknown> | undefined
        const { url, app, arrived, streams } = await start(async ctx => {
          settled = ctx.sse.pipe(make(failure, items))
          await settled
        })
        const client = await connect(url)
        expect(client.status).to.equal(200)
        expect(await within(client.ended)).to.equal('cut')
        expect(data(client)).to.deep.equal(items)
        expect(client.text).not.to.include('xyzzy')
        const error = await within(
          settled!.then(
            () => undefined,
            (error: unknown) => error,
          ),
        )
        expect(error).to.equal(failure)
        expect((await arrived).sse.signal.aborted).to.equal(true)
        expect(await (await arrived).sse.closed).to.equal('error')
        await new Promise(setImmediate)
        expect(app.errors).to.deep.equal([failure])
        expect(streams.size).to.equal(0)
      })
    }

    it(`${kind}, harms nobody when nobody awaits it`, async () => {
      const failure = new Error('on purpose')
      const { url, app } = await start(ctx => void ctx.sse.pipe(make(failure, [])))
      const client = await connect(url)
      expect(await within(client.ended)).to.equal('cut')
      // An unhandledRejection would come by now, and test/support/serve.ts throws it.
      await new Promise(resolve => setTimeout(resolve, 5))
      expect(app.errors).to.deep.equal([failure])
    })
  }

  const spent: Record<string, () => Source> = {
    'a Readable that was destroyed before': () => {
      const readable = Readable.from(ABC)
      readable.destroy()
      return readable
    },
    'a Readable that has failed before': () => {
      const readable = new PassThrough()
      readable.on('error', () => {})
      return readable.destroy(new Error('on purpose'))
    },
    'a ReadableStream that has failed before': () => new ReadableStream({ start: controller => controller.error(new Error('on purpose')) }),
    'a Readable that is destroyed half-way': () => {
      const readable = new Readable({ objectMode: true, read: () => {} })
      readable.push('a')
      setImmediate(() => readable.destroy())
      return readable
    },
  }
  for (const [kind, make] of Object.entries(spent)) {
    it(`${kind}, rejects, and cuts the stream: it is no clean end`, async () => {
      const source = make()
      await Promise.resolve()
      const { client, settled, app } = await piping(source)
      const error = await within(settled)
      expect(error).to.be.an.instanceOf(Error)
      expect(await client.ended).to.equal('cut')
      expect(app.errors).to.deep.equal([error])
    })
  }

  it('reports once, though a handler goes on and fails as well', async () => {
    const failure = new Error('on purpose')
    const { url, app } = await start(async ctx => {
      try {
        await ctx.sse.pipe(failing['an async generator']!(failure, ['a']))
      } catch {
        throw new Error('another one')
      }
    })
    const client = await connect(url)
    expect(await client.ended).to.equal('cut')
    await new Promise(setImmediate)
    expect(app.errors).to.deep.equal([failure])
  })

  it('ends the stream though the handler catches it', async () => {
    const failure = new Error('on purpose')
    let sent: boolean | undefined
    const { url, app } = await start(async ctx => {
      await ctx.sse.pipe(failing['an async generator']!(failure, ['a'])).catch(() => {})
      sent = await ctx.sse.send('too late')
    })
    const client = await connect(url)
    expect(await client.ended).to.equal('cut')
    expect(sent).to.equal(false)
    expect(app.errors).to.deep.equal([failure])
  })

  it('tells the client what onError says', async () => {
    const { client, app } = await piping(
      failing['a Readable']!(new Error('on purpose'), ['a']),
      {},
      { onError: () => ({ event: 'sorry', data: 'x' }) },
    )
    expect(await client.ended).to.equal('cut')
    expect(client.events.map(({ event, data }) => [event, data])).to.deep.equal([
      [undefined, 'a'],
      ['sorry', 'x'],
    ])
    expect(app.errors).to.have.lengthOf(1)
  })

  for (const thrown of ['a string', undefined, null, 42]) {
    it(`with ${String(thrown)}, which is no error, is reported as one`, async () => {
      const { client, app } = await piping(
        // oxlint-disable-next-line eslint/require-yield -- it fails before
        (async function* () {
          throw thrown
        })(),
      )
      expect(await client.ended).to.equal('cut')
      expect(app.errors).to.have.lengthOf(1)
      expect(app.errors[0]).to.be.an.instanceOf(Error)
    })
  }

  const nonsense: Record<string, () => unknown> = {
    'a string': () => 'text',
    'a number': () => 42,
    nothing: () => undefined,
    'a Uint8Array': () => Uint8Array.of(1),
    'an object': () => ({}),
    'a promise of nothing': async () => undefined,
    'a function': () => () => ABC,
  }
  for (const [what, source] of Object.entries(nonsense)) {
    it(`a function that returns ${what}, fails with a TypeError`, async () => {
      const { client, settled, app } = await piping(source as Source)
      const error = await within(settled)
      expect(error).to.be.an.instanceOf(TypeError).with.property('message').that.includes('Expected `source` to be')
      expect(await client.ended).to.equal('cut')
      expect(app.errors).to.deep.equal([error])
    })
  }
})

describe('pipe() throws a TypeError at once, and harms nothing,', () => {
  const locked = (): ReadableStream => {
    const stream = ReadableStream.from(ABC)
    stream.getReader()
    return stream
  }
  const sources: Record<string, unknown> = {
    'a string': 'abc',
    'an empty string': '',
    'a number': 42,
    null: null,
    undefined: undefined,
    true: true,
    'a promise': Promise.resolve(ABC),
    'a Uint8Array': Uint8Array.of(1, 2),
    'a Buffer': Buffer.from('abc'),
    'an ArrayBuffer': new ArrayBuffer(1),
    'a plain object': {},
    'an iterator that is not iterable': { next: () => ({ done: true, value: undefined }) },
    'a WritableStream': new WritableStream(),
    'a locked ReadableStream': locked(),
  }
  for (const [what, source] of Object.entries(sources)) {
    it(`for ${what}`, async () => {
      const { url, app } = await start(async ctx => {
        expect(() => ctx.sse.pipe(source as Source)).to.throw(TypeError, 'source')
        expect(() => ctx.sse.pipe(source as Source, { head: 'first-event' })).to.throw(TypeError, 'source')
        expect(ctx.sse.connected).to.equal(false)
        expect(ctx.sse.bytesWritten).to.equal(0)
        expect(ctx.body).to.equal(undefined)
        await ctx.sse.send('well')
        const { bytesWritten } = ctx.sse
        expect(() => ctx.sse.pipe(source as Source)).to.throw(TypeError)
        expect(ctx.sse.bytesWritten).to.equal(bytesWritten)
        await ctx.sse.pipe(['still well'])
      })
      const client = await connect(url)
      expect(await client.ended).to.equal('clean')
      expect(data(client)).to.deep.equal(['well', 'still well'])
      expect(app.errors).to.deep.equal([])
    })
  }

  const options: Record<string, unknown> = {
    'an end that is no boolean': { end: 1 },
    'an end that is null': { end: null },
    'a map that is no function': { map: 'x' },
    'a head that nobody knows': { head: 'later' },
    'a head that is a boolean': { head: true },
    'an unknown option': { edn: false },
    'options that are null': null,
    'options that are a number': 5,
    'options that are a function': () => {},
    'options that are an array': [],
  }
  for (const [what, wrong] of Object.entries(options)) {
    it(`for ${what}`, async () => {
      const { url, app } = await start(async ctx => {
        const source = Readable.from(ABC)
        expect(() => ctx.sse.pipe(source, wrong as object)).to.throw(TypeError)
        expect(ctx.sse.connected).to.equal(false)
        expect(ctx.sse.bytesWritten).to.equal(0)
        // Nothing has been read.
        await ctx.sse.pipe(source)
      })
      const client = await connect(url)
      expect(await client.ended).to.equal('clean')
      expect(data(client)).to.deep.equal(ABC)
      expect(app.errors).to.deep.equal([])
    })
  }

  it('and takes undefined for the default of each option', async () => {
    const { client } = await piping(ABC, { end: undefined, map: undefined, head: undefined })
    expect(await client.ended).to.equal('clean')
    expect(data(client)).to.deep.equal(ABC)
  })
})
