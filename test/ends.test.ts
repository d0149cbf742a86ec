import { once } from 'node:events'
import { get } from 'node:http'
import { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { expect } from 'chai'
import type { Context, Middleware } from 'koa'
import { encode, sse, type CloseReason, type EventStream, type Source, type SseOptions } from 'koa-sse'
import { connect } from './support/client.ts'
import { stuck } from './support/idle.ts'
import { signalled } from './support/promises.ts'
import { serve, until } from './support/serve.ts'
import { startWith } from './support/start.ts'
import { VERSIONS } from './support/versions.ts'

/** What a client is told: status, type, and the body as far as it came; `cut` when it was not whole. */
const answer = async (url: string): Promise<{ status: number; type: string | undefined; body: string; cut: boolean }> =>
  new Promise((resolve, reject) => {
    const request = get(url, { agent: false }, res => {
      let body = ''
      res.setEncoding('utf8').on('data', (chunk: string) => (body += chunk))
      res.on('close', () => resolve({ status: res.statusCode!, type: res.headers['content-type'], body, cut: !res.complete }))
      res.on('error', () => {})
    })
    request.on('error', reject)
  })

const failing = (error: unknown = new Error('boom')): AsyncIterable<string> => ({
  // oxlint-disable-next-line promise/no-promise-in-callback -- it is none
  [Symbol.asyncIterator]: () => ({ next: () => Promise.reject(error) }),
})

for (const [version, koa] of VERSIONS) {
  describe(`on Koa ${version}, a handler that answers otherwise after its stream has opened`, () => {
    const serveOn = async (...middleware: Middleware[]): Promise<{ url: string; size: () => number }> => {
      const streams = sse()
      const { url } = await serve(koa(streams, ...middleware))
      return { url, size: () => streams.size }
    }

    for (const status of [204, 304]) {
      it(`is heard, when it had set ${status} before`, async () => {
        let reason: Promise<CloseReason> | undefined
        const { url, size } = await serveOn((ctx: Context) => {
          ctx.status = status
          reason = ctx.sse.closed
          void ctx.sse.send('x')
        })
        expect(await answer(url)).to.include({ status, body: '', cut: false })
        await until(() => size() === 0)
        expect(await reason).to.equal('closed')
      })
    }

    it('is heard, when a source failed at once', async () => {
      const { url, size } = await serveOn(async (ctx: Context) => {
        try {
          await ctx.sse.pipe(failing())
        } catch {
          ctx.status = 502
          ctx.body = 'upstream failed'
        }
      })
      expect(await answer(url)).to.deep.include({ status: 502, body: 'upstream failed', cut: false })
      expect(size()).to.equal(0)
    })

    it('is heard, when a source ended at once, or the stream was closed', async () => {
      const { url, size } = await serveOn(async (ctx: Context) => {
        if (ctx.path === '/close') {
          await using stream = ctx.sse
          await stream.send('x')
        } else await ctx.sse.pipe(['a', 'b'])
        ctx.body = { ok: true }
      })
      for (const path of ['/', '/close']) expect(await answer(url + path)).to.include({ status: 200, body: '{"ok":true}' })
      expect(size()).to.equal(0)
    })

    it('is heard, when middleware between sse() and it does so', async () => {
      const { url } = await serveOn(
        async (ctx, next) => {
          await next()
          ctx.body = { wrapped: true }
        },
        (ctx: Context) => ctx.sse.pipe(['a']),
      )
      expect(await answer(url)).to.include({ status: 200, body: '{"wrapped":true}' })
    })

    for (let microtasks = 0; microtasks < 20; microtasks++) {
      it(`gets an end in any case: 204 after ${microtasks} microtasks`, async () => {
        const { url, size } = await serveOn(async (ctx: Context) => {
          ctx.sse.open()
          for (let i = 0; i < microtasks; i++) await Promise.resolve()
          ctx.status = 204
        })
        expect(await answer(url)).to.include({ status: 204, body: '' })
        await until(() => size() === 0)
      })
    }

    it('gets a cut when it does so as Koa has been told that somebody else responds', async () => {
      let told = false
      const { url, size } = await serveOn((ctx: Context) => {
        ctx.sse.open()
        const shared = [Object.getPrototypeOf(ctx) as object, ctx.app.context].flatMap(each => Object.getOwnPropertyDescriptor(each, 'respond') ?? [])
        // oxlint-disable-next-line typescript/unbound-method -- it is called on a context
        const read = shared[0]?.get
        // Behind `npm run test:plain` nobody is told so.
        if (read === undefined) return ctx.sse.close()
        Object.defineProperty(ctx, 'respond', {
          configurable: true,
          get() {
            const answered: unknown = read.call(ctx)
            told = answered === false
            if (told) ctx.body = 'too late'
            return answered
          },
        })
      })
      const outcome = await answer(url).catch((error: { code: string }) => error.code)
      if (typeof outcome === 'string') expect([outcome, told]).to.deep.equal(['ECONNRESET', true])
      else expect([outcome.cut, outcome.body.includes('too late')]).to.deep.equal([told, false])
      await until(() => size() === 0)
    })

    it('may set a length: it is taken off, or the stream would be cut short', async () => {
      const { url } = await serveOn(async (ctx: Context) => {
        void ctx.sse.send('a')
        ctx.length = 4
        setTimeout(() => ctx.sse.close(), 10)
      })
      expect(await answer(url)).to.include({ status: 200, body: ':\n\ndata: a\n\n', cut: false })
    })
  })
}

describe("a handler that fails while a pipe with head: 'first-event' waits", () => {
  for (const kind of ['always ready', 'slow'] as const) {
    it(`answers with its failure, and a source that is ${kind} is released`, async () => {
      const began = signalled()
      const over = signalled()
      let released = false
      let piped: Promise<void> | undefined
      const { url, app } = await startWith({}, ctx => {
        piped = ctx.sse.pipe(
          async function* () {
            try {
              began.go()
              await over.promise
              for (;;) {
                yield 'x'
                if (kind === 'slow') await new Promise(resolve => setImmediate(resolve))
              }
            } finally {
              released = true
            }
          },
          { head: 'first-event' },
        )
        ctx.throw(400)
      })
      expect(await answer(url)).to.include({ status: 400, body: 'Bad Request' })
      await began.promise
      over.go()
      await until(() => released)
      await piped
      expect(app.errors).to.have.lengthOf.at.most(1)
    })
  }

  it('has a source released that owes its first item', async () => {
    const { source, returned } = stuck()
    let piped: Promise<void> | undefined
    const { url } = await startWith({}, ctx => {
      piped = ctx.sse.pipe(source, { head: 'first-event' })
      ctx.throw(400)
    })
    expect(await answer(url)).to.include({ status: 400, body: 'Bad Request' })
    expect(returned()).to.equal(1)
    await piped
  })

  it('aborts its signal; an outer error handler that streams gets another', async () => {
    let first: AbortSignal | undefined
    let second: AbortSignal | undefined
    const outer: Middleware = async (ctx, next) => {
      try {
        await next()
      } catch {
        await (ctx as Context).sse.pipe(signal => {
          second = signal
          return [`aborted: ${signal.aborted}`]
        })
      }
    }
    const { url } = await startWith(
      {},
      ctx => {
        void ctx.sse.pipe(
          signal => {
            first = signal
            return new Promise<string[]>(() => {})
          },
          { head: 'first-event' },
        )
        ctx.throw(400)
      },
      outer,
    )
    expect((await answer(url)).body).to.include('data: aborted: false')
    expect([first!.aborted, first === second]).to.deep.equal([true, false])
  })

  it('keeps its answer, though a pipe or a task that it left behind has something to say meanwhile', async () => {
    const said = signalled()
    const outer: Middleware = async (ctx, next) => {
      try {
        await next()
      } catch (error) {
        ctx.status = (error as { status: number }).status
        ctx.body = { error: 'no' }
        await said.promise
      }
    }
    let sent: boolean | undefined
    const { url } = await startWith(
      {},
      ctx => {
        void ctx.sse.pipe(
          async function* () {
            await sleep(5)
            yield 'secret'
          },
          { head: 'first-event' },
        )
        setTimeout(() => {
          void ctx.sse.send('secret').then(result => {
            sent = result
            said.go()
          })
        }, 10)
        ctx.throw(401)
      },
      outer,
    )
    expect(await answer(url)).to.include({ status: 401, body: '{"error":"no"}' })
    expect(sent).to.equal(false)
  })

  it('has a source released that outer middleware began to pipe before it answered otherwise', async () => {
    const began = signalled()
    const over = signalled()
    let pulled = 0
    const outer: Middleware = async (ctx, next) => {
      try {
        await next()
      } catch {
        const source = (async function* () {
          try {
            await began.promise
            for (;;) {
              pulled++
              yield 'secret'
              await new Promise(resolve => setImmediate(resolve))
            }
          } finally {
            over.go()
          }
        })()
        void (ctx as Context).sse.pipe(source, { head: 'first-event' })
        ctx.body = 'instead'
      }
    }
    const { url, app } = await startWith({}, ctx => ctx.throw(400), outer)
    expect(await answer(url)).to.include({ status: 200, body: 'instead' })
    began.go()
    await over.promise
    expect(pulled).to.equal(1)
    expect(app.errors).to.deep.equal([])
  })

  it('lets a task that it left behind send into nothing, when Koa has answered', async () => {
    let sent: Promise<boolean> | undefined
    const { url } = await startWith({}, ctx => {
      ctx.res.on('finish', () => {
        sent = ctx.sse.send('late')
      })
      ctx.throw(401)
    })
    expect(await answer(url)).to.include({ status: 401, body: 'Unauthorized' })
    expect(await sent).to.equal(false)
  })
})

describe("a source of a pipe with head: 'first-event' that fails", () => {
  it('is an HTTP error, whatever status the handler had set before', async () => {
    const { url } = await startWith({}, ctx => {
      ctx.status = 201
      void ctx.sse.pipe(failing(Object.assign(new Error('upstream'), { status: 429 })), { head: 'first-event' })
    })
    expect(await answer(url)).to.include({ status: 429, body: 'Too Many Requests' })
  })

  it('is one too when it fails with nothing', async () => {
    const { url } = await startWith({}, ctx => {
      void ctx.sse.pipe(failing(null), { head: 'first-event' })
    })
    expect(await answer(url)).to.include({ status: 500 })
  })

  it('takes the others along that wait like it', async () => {
    let released = false
    const { url, app } = await startWith({}, ctx => {
      void ctx.sse.pipe(failing(), { head: 'first-event' })
      void ctx.sse.pipe(
        (async function* () {
          try {
            await sleep(20)
            yield 'b'
          } finally {
            released = true
          }
        })(),
        { head: 'first-event' },
      )
    })
    expect(await answer(url)).to.include({ status: 500 })
    await until(() => released)
    expect(app.errors).to.have.lengthOf(1)
  })

  it('leaves what the handler answers then, and what it pipes in its place', async () => {
    async function* instead(): AsyncGenerator<string> {
      await sleep(20)
      yield 'instead'
    }
    for (const awaits of [true, false]) {
      const { url } = await startWith({}, async ctx => {
        const piped = ctx.sse.pipe(failing(), { head: 'first-event' }).catch(() => ctx.sse.pipe(instead(), { head: 'first-event' }))
        if (awaits) await piped
      })
      expect(await answer(url)).to.include({ status: 200, body: ':\n\ndata: instead\n\n', cut: false })
    }
  })
})

describe('an error that is no consequence of how the stream ended', () => {
  it('is Koa’s, when the handler closed before it opened', async () => {
    const { url, app } = await startWith({}, ctx => {
      ctx.sse.close()
      throw Object.assign(new Error('db'), { code: 'ECONNRESET' })
    })
    expect(await answer(url)).to.include({ status: 500 })
    expect(app.errors).to.have.lengthOf(1)
  })

  it('is told, when the server had closed the stream', async () => {
    for (const error of [Object.assign(new Error('redis gone'), { code: 'ECONNRESET' }), 'no Error at all']) {
      const { url, app } = await startWith({}, async ctx => {
        await ctx.sse.send('x')
        ctx.sse.close()
        throw error
      })
      expect(await answer(url)).to.include({ status: 200, cut: false })
      await until(() => app.errors.length === 1)
    }
  })

  it('is told, when the client had left before the handler opened', async () => {
    const over = signalled()
    const wentOn = signalled()
    const { url, app, arrived } = await startWith(
      {},
      async ctx => {
        await once(ctx.req.socket, 'close')
        expect(await ctx.sse.send('x')).to.equal(false)
        await over.promise
        throw new Error('own bug')
      },
      async (_ctx, next) => {
        await next()
        wentOn.go()
      },
    )
    const request = get(url, { agent: false }).on('error', () => {})
    await arrived
    request.destroy()
    await wentOn.promise
    over.go()
    await until(() => app.errors.length === 1)
    expect(app.errors[0]).to.have.property('message', 'own bug')
  })

  it('is outer middleware’s and Koa’s, when the client had left, and the handler did not open', async () => {
    const caught: unknown[] = []
    const { url, app, arrived } = await startWith(
      {},
      async ctx => {
        expect(await ctx.sse.closed).to.equal('client')
        throw new Error('own bug')
      },
      async (_ctx, next) => {
        await next().catch((error: unknown) => {
          caught.push(error)
          throw error
        })
      },
    )
    const request = get(url, { agent: false }).on('error', () => {})
    await arrived
    request.destroy()
    await until(() => app.errors.length === 1)
    expect(app.errors).to.deep.equal(caught)
  })

  for (const opens of [true, false]) {
    it(`is told, when it is outer middleware’s, and the client has left ${opens ? 'the stream' : 'after a handler that did not open'} meanwhile`, async () => {
      const returned = signalled()
      const over = signalled()
      const { url, app, arrived } = await startWith(
        {},
        ctx => {
          if (opens) ctx.sse.open()
        },
        async (_ctx, next) => {
          await next()
          returned.go()
          await over.promise
          throw new Error('outer bug')
        },
      )
      const request = get(url, { agent: false }).on('error', () => {})
      const { req } = await arrived
      await returned.promise
      const left = once(req.socket, 'close')
      request.destroy()
      await left
      over.go()
      await until(() => app.errors.length === 1)
      expect(app.errors[0]).to.have.property('message', 'outer bug')
    })
  }

  const revoked = Proxy.revocable({}, {})
  revoked.revoke()
  const ODD: Record<string, unknown> = {
    'a string': 'boom',
    'a number': 0,
    'an error that throws where it is looked at': Object.defineProperty(new Error('own bug'), 'code', {
      get() {
        throw new Error('not here')
      },
    }),
    'an error whose code is no text': Object.assign(new Error('own bug'), { code: Object.create(null) as unknown }),
    'a revoked Proxy': revoked.proxy,
  }
  for (const [what, thrown] of Object.entries(ODD)) {
    for (const who of ['handler', 'outer middleware']) {
      // Koa itself looks at it.
      if (thrown === revoked.proxy && who !== 'handler') continue
      it(`is told, when the client has left, and ends no process: ${what}, of ${who}`, async () => {
        const throwLater = async (ctx: Context): Promise<void> => {
          expect(await ctx.sse.closed).to.equal('client')
          throw thrown
        }
        const { url, app, arrived } = await startWith(
          {},
          async ctx => {
            ctx.sse.open()
            if (who === 'handler') await throwLater(ctx)
          },
          async (ctx, next) => {
            await next()
            if (who !== 'handler') await throwLater(ctx)
          },
        )
        const request = get(url, { agent: false }).on('error', () => {})
        await arrived
        request.destroy()
        await until(() => app.errors.length === 1)
        expect(app.errors[0]).to.be.an.instanceOf(Error)
      })
    }
  }
})

describe('several pipes into one stream', () => {
  it('never end it as slow: each waits when there is no room', async () => {
    const big = 'y'.repeat(400_000)
    const { url, arrived } = await startWith({}, async ctx => {
      ctx.sse.open()
      await sleep(5)
      await Promise.all(Array.from({ length: 4 }, async () => ctx.sse.pipe(Array(5).fill(big) as string[], { end: false })))
      ctx.sse.close()
    })
    const client = await connect(url)
    const { sse: stream } = await arrived
    for (let i = 0; i < 20; i++) expect((await client.event()).data).to.equal(big)
    expect(await stream.closed).to.equal('closed')
  })
})

describe('a source', () => {
  const piped = async (source: Source<never>, options: SseOptions = {}): Promise<{ error: unknown; stream: EventStream }> => {
    let outcome: unknown
    const { url, arrived } = await startWith(options, ctx => {
      outcome = ctx.sse.pipe(source as Source).then(
        () => undefined,
        (error: unknown) => error,
      )
    })
    await answer(url)
    const { sse: stream } = await arrived
    return { error: await outcome, stream }
  }

  for (const [what, make] of Object.entries({
    'is being destroyed': () => {
      const source = new Readable({ read() {} })
      source.destroy(new Error('early'))
      return source
    },
    'cannot be made': () => new Readable({ construct: callback => callback(new Error('early')), read() {} }),
  })) {
    it(`that is a function of a Readable which ${what} fails like any other, and ends no process`, async () => {
      expect((await piped(make as never)).error).to.have.property('message', 'early')
    })
  }

  it('is returned once, and not at all when it has thrown', async () => {
    let returns = 0
    const items = (next: () => Promise<IteratorResult<string>>): AsyncIterable<string> => ({
      [Symbol.asyncIterator]: () => ({
        next,
        return: async () => {
          returns++
          return { done: true, value: undefined }
        },
      }),
    })
    await piped(items(() => Promise.reject(new Error('own'))) as never)
    expect(returns).to.equal(0)
    const owed = signalled()
    const { url, arrived } = await startWith({}, ctx => {
      void ctx.sse.pipe(
        items(async () => {
          await owed.promise
          return { done: false, value: 'late' }
        }),
      )
    })
    const client = await connect(url)
    const ctx = await arrived
    client.rst()
    expect(await ctx.sse.closed).to.equal('client')
    owed.go()
    await sleep(5)
    expect(returns).to.equal(1)
  })

  it('is returned when it has ended its own stream, though it is running then', async () => {
    let released = false
    const { url } = await startWith({}, ctx => {
      void ctx.sse.pipe(
        (function* () {
          try {
            ctx.sse.close()
            for (;;) yield 'never'
          } finally {
            released = true
          }
        })(),
      )
    })
    await answer(url)
    expect(released).to.equal(true)
  })

  it('that cannot be iterated is nobody’s news where it is not read', async () => {
    const source = {
      [Symbol.iterator]: () => {
        throw new Error('no iterator')
      },
    }
    let outcome: unknown = 'none'
    const { url } = await startWith({}, async ctx => {
      ctx.sse.open().close()
      outcome = await ctx.sse.pipe(source)
    })
    await answer(url)
    expect(outcome).to.equal(undefined)
  })
})

describe('encode()', () => {
  it('knows three newlines', () => {
    for (const newline of ['x', '', null, 5]) expect(() => encode('a', newline as never)).to.throw(TypeError, 'newline')
  })
})
