import { once, type EventEmitter } from 'node:events'
import { Agent, METHODS } from 'node:http'
import { connect as dial, type Socket } from 'node:net'
import { PassThrough, Readable } from 'node:stream'
import { setImmediate as turn } from 'node:timers/promises'
import { mock } from 'node:test'
import { runInNewContext } from 'node:vm'
import { expect } from 'chai'
import type { Context, Middleware } from 'koa'
import { EventStream, sse, type CloseReason } from 'koa-sse'
import request from 'supertest'
import { connect } from './support/client.ts'
import { signalled } from './support/promises.ts'
import { koa as newest, serve, until } from './support/serve.ts'
import { VERSIONS, type App } from './support/versions.ts'

/** A source that yields `items` and then nothing, and tells when it is released. */
const patient = (...items: string[]): AsyncIterable<string> & { readonly released: boolean; readonly pulled: number } => {
  let released = false
  let pulled = 0
  return {
    get released() {
      return released
    },
    get pulled() {
      return pulled
    },
    [Symbol.asyncIterator]: () => ({
      next: () => {
        const value = items[pulled++]
        return value === undefined ? new Promise(() => {}) : Promise.resolve({ done: false, value })
      },
      return: () => {
        released = true
        return Promise.resolve({ done: true, value: undefined })
      },
    }),
  }
}

/** All that comes over a socket of its own until the server ends it. */
const raw = async (port: number, text: string): Promise<string> => {
  const socket = dial(port, '127.0.0.1')
  socket.setEncoding('latin1')
  let received = ''
  socket.on('data', chunk => (received += String(chunk)))
  socket.write(text)
  await once(socket, 'close')
  return received
}

const listeners = (emitter: EventEmitter): Record<string, number> =>
  Object.fromEntries(emitter.eventNames().map(name => [String(name), emitter.listenerCount(name)]))

// Mocha hands an unhandled rejection on to whoever else listens; if nobody does, no test fails of it.
const rethrow = (error: unknown): never => {
  throw error
}
before(() => process.on('unhandledRejection', rethrow))
after(() => process.off('unhandledRejection', rethrow))

const boom = new Error('secret')
const unauthorised = Object.assign(new Error('secret'), { status: 401, expose: true })

for (const [version, koa] of VERSIONS) {
  describe(`sse() on Koa ${version}`, () => {
    describe('when the stream opens', () => {
      it('returns, so that outer middleware go on while the handler runs', async () => {
        const order: string[] = []
        const outer: Middleware = async (_ctx, next) => {
          await next()
          order.push('outer')
        }
        const end = signalled()
        const handler: Middleware = async ctx => {
          await ctx.sse.send('one')
          await end.promise
          order.push('handler')
        }
        const { url } = await serve(koa(outer, sse(), handler))
        const client = await connect(url)
        expect((await client.event()).data).to.equal('one')
        expect(order).to.deep.equal(['outer'])
        end.go()
        await until(() => order.length === 2)
      })

      it('does not deadlock a handler that awaits its source', async () => {
        async function* source(): AsyncGenerator<string> {
          yield 'one'
          await turn()
          yield 'two'
        }
        const app = koa(sse(), async ctx => {
          await ctx.sse.pipe(source())
        })
        const { url } = await serve(app)
        const client = await connect(url)
        expect(await client.ended).to.equal('clean')
        expect(client.events.map(event => event.data)).to.deep.equal(['one', 'two'])
        expect(app.errors).to.deep.equal([])
      })

      it('does not deadlock a handler that awaits the end of its stream', async () => {
        const reasons: CloseReason[] = []
        const handler: Middleware = async ctx => {
          reasons.push(await ctx.sse.open().closed)
        }
        const app = koa(sse(), handler)
        const { url } = await serve(app)
        const client = await connect(url)
        client.fin()
        await until(() => reasons.length > 0)
        expect(reasons).to.deep.equal(['client'])
        expect(app.errors).to.deep.equal([])
      })

      it('lets outer middleware set headers and cookies, however long that takes; what was sent meanwhile follows in order', async () => {
        const slow: Middleware = async (ctx, next) => {
          await next()
          for (let i = 0; i < 10; i++) await turn()
          ctx.set('X-Late', 'yes')
          ctx.cookies.set('a', '1')
          ctx.cookies.set('b', '2')
        }
        const handler: Middleware = async ctx => {
          for (let i = 0; i < 5; i++) {
            await ctx.sse.send(String(i))
            await turn()
          }
          ctx.sse.close()
        }
        const { url } = await serve(koa(slow, sse(), handler))
        const client = await connect(url)
        expect(client.headers['x-late']).to.equal('yes')
        expect(client.headers['set-cookie']).to.have.length(2)
        expect(await client.ended).to.equal('clean')
        expect(client.text).to.equal(':\n\ndata: 0\n\ndata: 1\n\ndata: 2\n\ndata: 3\n\ndata: 4\n\n')
      })

      it('stays open when the handler returns', async () => {
        let stream: EventStream | undefined
        const app = koa(sse(), ctx => {
          stream = ctx.sse.open()
        })
        const { url } = await serve(app)
        const client = await connect(url)
        for (let i = 0; i < 5; i++) await turn()
        expect(stream!.connected).to.equal(true)
        expect(await stream!.send('later')).to.equal(true)
        expect((await client.event()).data).to.equal('later')
        stream!.close()
        expect(await client.ended).to.equal('clean')
        expect(app.errors).to.deep.equal([])
      })
    })

    describe('head', () => {
      it('reaches the client at once, with the first byte, before any event', async () => {
        const { url } = await serve(koa(sse(), ctx => void ctx.sse.open()))
        const client = await connect(url, { headers: { Connection: 'keep-alive' } })
        expect(client.status).to.equal(200)
        expect(client.headers).to.include({
          'content-type': 'text/event-stream',
          'cache-control': 'no-cache, no-transform',
          'x-accel-buffering': 'no',
          connection: 'keep-alive',
          'transfer-encoding': 'chunked',
        })
        await until(() => client.text !== '')
        expect(client.text).to.equal(':\n\n')
      })

      it('lets a client that wants the connection closed after the stream have it so', async () => {
        const { port, server } = await serve(koa(sse(), ctx => ctx.sse.pipe(['one'])))
        // Or Node would close it by itself, in time.
        server.keepAliveTimeout = 0
        const received = await raw(port, 'GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n')
        expect(received).to.match(/\r\nconnection: keep-alive\r\n/i)
        expect(received).to.match(/\r\n0\r\n\r\n$/)
      })

      it('promises no kept connection to a proxy that passes such a wish on', async () => {
        const { port } = await serve(koa(sse(), ctx => ctx.sse.pipe(['one'])))
        const received = await raw(port, 'GET / HTTP/1.1\r\nHost: x\r\nVia: 1.1 proxy\r\nConnection: close\r\n\r\n')
        expect(received).to.match(/\r\nconnection: close\r\n/i)
        expect(received).not.to.match(/keep-alive/i)
      })

      it('is what the handler has set, where it has', async () => {
        const handler: Middleware = ctx => {
          ctx.status = 201
          ctx.set({ 'Cache-Control': 'private', 'X-Accel-Buffering': 'yes', 'Content-Type': 'text/event-stream; charset=utf-8', 'X-Own': '1' })
          ctx.sse.open()
        }
        const { url } = await serve(koa(sse(), handler))
        const client = await connect(url)
        expect(client.status).to.equal(201)
        expect(client.headers).to.include({
          'cache-control': 'private',
          'x-accel-buffering': 'yes',
          'content-type': 'text/event-stream; charset=utf-8',
          'x-own': '1',
        })
      })

      it('keeps every status but the default 404', async () => {
        for (const status of [200, 202, 404, 410, 500]) {
          const handler: Middleware = ctx => {
            ctx.status = status
            void ctx.sse.send('x')
            ctx.sse.close()
          }
          const { url } = await serve(koa(sse(), handler))
          const client = await connect(url)
          expect(client.status).to.equal(status)
          expect((await client.event()).data).to.equal('x')
        }
      })

      it('has no Content-Length, which would cut the stream short', async () => {
        const handler: Middleware = ctx => {
          ctx.length = 5
          void ctx.sse.send('longer than five bytes')
          ctx.sse.close()
        }
        const { url } = await serve(koa(sse(), handler))
        const client = await connect(url)
        expect(client.headers).not.to.have.property('content-length')
        expect((await client.event()).data).to.equal('longer than five bytes')
        expect(await client.ended).to.equal('clean')
      })

      it('is an event stream though the handler had set another body before', async () => {
        const handler: Middleware = ctx => {
          ctx.body = { not: 'this' }
          void ctx.sse.send('x')
          ctx.sse.close()
        }
        const { url } = await serve(koa(sse(), handler))
        const client = await connect(url)
        expect(client.headers['content-type']).to.match(/^text\/event-stream/)
        await client.ended
        expect(client.text).to.equal(':\n\ndata: x\n\n')
      })
    })

    describe('before it opens', () => {
      it('is an ordinary Koa handler', async () => {
        const app = koa(sse(), ctx => {
          if (ctx.path === '/401') ctx.throw(401, 'who are you?')
          if (ctx.path === '/204') ctx.status = 204
          if (ctx.path === '/text') ctx.body = 'text'
          if (ctx.path === '/json') ctx.body = { a: 1 }
          if (ctx.path === '/stream') ctx.body = Readable.from(['piece by ', 'piece'])
          if (ctx.path === '/redirect') ctx.redirect('/elsewhere')
          if (ctx.path === '/teapot') ctx.status = 418
        })
        const { url } = await serve(app)
        await request(url).get('/401').expect(401, 'who are you?')
        await request(url).get('/204').expect(204)
        await request(url)
          .get('/text')
          .expect(200, 'text')
          .expect('Content-Type', /^text\/plain/)
        await request(url).get('/json').expect(200, { a: 1 })
        const streamed = await request(url).get('/stream').buffer(true).parse(collect)
        expect(streamed.body).to.equal('piece by piece')
        await request(url).get('/redirect').redirects(0).expect(302).expect('Location', '/elsewhere')
        await request(url).get('/teapot').expect(418)
        await request(url).get('/nothing').expect(404, 'Not Found')
      })

      it('leaves no trace in a response', async () => {
        const answer: Middleware = ctx => {
          ctx.body = 'plain'
        }
        const heads: unknown[] = []
        for (const app of [koa(answer), koa(sse(), answer)]) {
          const { url } = await serve(app)
          const { status, headers } = await request(url).get('/')
          heads.push({ status, ...headers, date: '' })
        }
        expect(heads[1]).to.deep.equal(heads[0])
      })

      it('waits for the handler as any middleware does', async () => {
        const order: string[] = []
        const outer: Middleware = async (_ctx, next) => {
          await next()
          order.push('outer')
        }
        const app = koa(outer, sse(), async ctx => {
          for (let i = 0; i < 5; i++) await turn()
          order.push('handler')
          ctx.body = 'late'
        })
        const { url } = await serve(app)
        await request(url).get('/').expect(200, 'late')
        expect(order).to.deep.equal(['handler', 'outer'])
      })

      it('gives an error to Koa, once', async () => {
        const app = koa(sse(), async () => {
          await turn()
          throw boom
        })
        const { url } = await serve(app)
        await request(url).get('/').expect(500, 'Internal Server Error')
        expect(app.errors).to.deep.equal([boom])
      })

      it('gives an error to outer middleware, which may make something of it', async () => {
        const outer: Middleware = async (ctx, next) => {
          try {
            await next()
          } catch (error) {
            ctx.status = 409
            ctx.body = (error as Error).message
          }
        }
        const app = koa(outer, sse(), () => {
          throw boom
        })
        const { url } = await serve(app)
        await request(url).get('/').expect(409, 'secret')
        expect(app.errors).to.deep.equal([])
      })
    })

    describe('an error after it has opened', () => {
      const failures: [string, Middleware][] = [
        [
          'in the very turn of opening',
          ctx => {
            ctx.sse.open()
            throw boom
          },
        ],
        [
          'in the turn of opening, of an async handler',
          async ctx => {
            ctx.sse.open()
            throw boom
          },
        ],
        [
          'with a status, that Koa would answer with',
          ctx => {
            ctx.sse.open()
            throw unauthorised
          },
        ],
        [
          'later',
          async ctx => {
            await ctx.sse.send('one')
            for (let i = 0; i < 5; i++) await turn()
            throw boom
          },
        ],
        [
          'of a source, that the handler returns',
          ctx =>
            ctx.sse.pipe(
              (async function* () {
                yield 'one'
                throw boom
              })(),
            ),
        ],
        [
          'of a source, before its first item',
          ctx =>
            ctx.sse.pipe(
              // oxlint-disable-next-line eslint/require-yield
              (async function* (): AsyncGenerator<string> {
                throw boom
              })(),
            ),
        ],
        [
          'of a source that nobody awaits',
          ctx => {
            void ctx.sse.pipe(
              (async function* () {
                yield 'one'
                throw boom
              })(),
            )
          },
        ],
        [
          'of a source, whose rejection the handler catches',
          async ctx => {
            await ctx.sse
              .pipe(
                (async function* () {
                  yield 'one'
                  throw boom
                })(),
              )
              .catch(() => {})
            await ctx.sse.send('saved?')
            await ctx.sse.closed
          },
        ],
      ]

      for (const [name, handler] of failures) {
        it(`${name}, is told once, and the response is cut`, async () => {
          const contexts: string[] = []
          let reason: CloseReason | undefined
          const app = koa(
            sse(),
            (ctx, next) => {
              void ctx.sse.closed.then(closed => (reason = closed))
              return next()
            },
            handler,
          )
          app.on('error', (_error, ctx: Context) => contexts.push(ctx.path))
          const { url } = await serve(app)
          const client = await connect(`${url}/here`)
          expect(client.status).to.equal(200)
          expect(await client.ended).to.equal('cut')
          expect(client.text).not.to.include('secret')
          expect(client.text).not.to.include('saved')
          await until(() => reason !== undefined)
          expect(reason).to.equal('error')
          expect(app.errors).to.have.length(1)
          expect(app.errors[0]).to.be.oneOf([boom, unauthorised])
          expect(contexts).to.deep.equal(['/here'])
        })
      }

      it('lets what was sent before, and the event of onError, reach the client', async () => {
        const app = koa(sse({ onError: () => 'sorry' }), async ctx => {
          void ctx.sse.send('one')
          void ctx.sse.send('two')
          throw boom
        })
        const { url } = await serve(app)
        const client = await connect(url)
        expect(await client.ended).to.equal('cut')
        expect(client.text).to.equal(':\n\ndata: one\n\ndata: two\n\ndata: sorry\n\n')
      })

      it('may be no Error: Koa is told one, and onError what was thrown', async () => {
        for (const thrown of ['boom', 42, null, undefined, { a: 1 }]) {
          const seen: unknown[] = []
          const app = koa(sse({ onError: error => void seen.push(error) }), async ctx => {
            await ctx.sse.send('one')
            throw thrown
          })
          const { url } = await serve(app)
          const client = await connect(url)
          expect(await client.ended).to.equal('cut')
          expect(app.errors).to.have.length(1)
          expect(app.errors[0]).to.be.instanceOf(Error)
          expect(seen).to.deep.equal([thrown])
        }
      })

      it('of two, is the first: a source, then its handler', async () => {
        const second = new Error('second')
        const app = koa(sse(), async ctx => {
          try {
            await ctx.sse.pipe(
              (async function* () {
                yield 'one'
                throw boom
              })(),
            )
          } catch {
            throw second
          }
        })
        const { url } = await serve(app)
        expect(await (await connect(url)).ended).to.equal('cut')
        for (let i = 0; i < 5; i++) await turn()
        expect(app.errors).to.deep.equal([boom])
      })

      it('of two, is the first: a handler, then its source', async () => {
        const fail = signalled()
        let rejected = false
        const app = koa(sse(), async ctx => {
          const piped = ctx.sse.pipe(async function* (signal) {
            yield 'one'
            await once(signal, 'abort')
            await fail.promise
            throw new Error('second')
          })
          piped.catch(() => (rejected = true))
          await turn()
          throw boom
        })
        const { url } = await serve(app)
        expect(await (await connect(url)).ended).to.equal('cut')
        fail.go()
        for (let i = 0; i < 5; i++) await turn()
        expect(app.errors).to.deep.equal([boom])
        expect(rejected).to.equal(false)
      })

      it('of a handler that has closed its stream is told, and the client sees a clean end', async () => {
        const app = koa(sse(), async ctx => {
          await ctx.sse.send('one')
          ctx.sse.close()
          throw boom
        })
        const { url } = await serve(app)
        expect(await (await connect(url)).ended).to.equal('clean')
        await until(() => app.errors.length > 0)
        expect(app.errors).to.deep.equal([boom])
      })

      it('of another realm, as those of Node are under Jest, is told as it is', async () => {
        const foreign: unknown = runInNewContext("new Error('boom')")
        const app = koa(sse(), ctx => {
          ctx.sse.open()
          throw foreign
        })
        const { url } = await serve(app)
        expect(await (await connect(url)).ended).to.equal('cut')
        expect(app.errors).to.have.lengthOf(1)
        expect(app.errors[0]).to.equal(foreign)
      })

      it('of its own, after the client has left, is told too', async () => {
        const app = koa(sse(), async ctx => {
          await ctx.sse.open().closed
          throw boom
        })
        const { url } = await serve(app)
        const client = await connect(url)
        client.fin()
        await until(() => app.errors.length > 0)
        expect(app.errors).to.deep.equal([boom])
      })

      // As these libraries fail when the signal that they were given is aborted.
      class APIUserAbortError extends Error {}
      class CohereError extends Error {}
      const aborts: [string, (reason: unknown) => unknown][] = [
        ['fetch', reason => reason],
        ['openai 6', () => new APIUserAbortError('Request was aborted.')],
        ['axios 1', () => Object.assign(new Error('canceled'), { name: 'CanceledError', code: 'ERR_CANCELED' })],
        ['@mistralai/mistralai 2', cause => Object.assign(new Error('Request aborted by client', { cause }), { name: 'RequestAbortedError' })],
        // There, and in any other context of node:vm, these are no instances of Error. Of DOMException there is but one to be had here.
        ['Node, under Jest,', () => runInNewContext("Object.assign(new Error('aborted'), { code: 'ABORT_ERR' })")],
        ['fetch, under Jest,', () => ({ name: 'AbortError', [Symbol.toStringTag]: 'DOMException' })],
        [
          '@modelcontextprotocol/sdk 1',
          reason => Object.assign(new Error(`MCP error -32001: ${String(reason)}`), { name: 'McpError', code: -32_001 }),
        ],
        ['@langchain/openai 1', () => new Error('AbortError')],
        ['@connectrpc/connect 2', reason => Object.assign(new Error(`[canceled] ${(reason as Error).message}`), { name: 'ConnectError', code: 1 })],
        ['@elastic/elasticsearch 9', () => Object.assign(new Error('Request aborted'), { name: 'RequestAbortedError' })],
        ['@elastic/elasticsearch 9, in the middle,', reason => Object.assign(new Error((reason as Error).message), { name: 'ConnectionError' })],
        ['cohere-ai 8', cause => new CohereError('The user aborted a request', { cause })],
      ]
      for (const [library, fail] of aborts)
        for (const opens of [true, false])
          it(`is not told when it is but that ${library} was aborted, by a client that has left ${opens ? 'its stream' : 'before it opened'}`, async () => {
            let begun = false
            let done = false
            const app = koa(sse(), async ctx => {
              const { signal } = opens ? ctx.sse.open() : ctx.sse
              begun = true
              try {
                await new Promise((_, reject) => signal.addEventListener('abort', () => reject(fail(signal.reason))))
              } finally {
                done = true
              }
            })
            const { port } = await serve(app)
            const client = dial(port, '127.0.0.1').resume()
            client.write('GET / HTTP/1.1\r\nHost: test\r\n\r\n')
            await until(() => begun)
            client.end()
            await until(() => done)
            for (let i = 0; i < 5; i++) await turn()
            expect(app.errors).to.deep.equal([])
          })

      it('releases the sources', async () => {
        const source = patient('one')
        const app = koa(sse(), async ctx => {
          void ctx.sse.pipe(source)
          await turn()
          throw boom
        })
        const { url } = await serve(app)
        await (
          await connect(url)
        ).ended
        expect(source.released).to.equal(true)
      })
    })

    describe('outer middleware', () => {
      const behind = (outer: (ctx: Context) => unknown): { app: App; source: ReturnType<typeof patient>; reason: () => CloseReason | undefined } => {
        const source = patient('one')
        let reason: CloseReason | undefined
        const app = koa(
          async (ctx, next) => {
            await next()
            await outer(ctx)
          },
          sse(),
          async ctx => {
            void ctx.sse.pipe(source)
            reason = await ctx.sse.closed
          },
        )
        return { app, source, reason: () => reason }
      }

      it('that throws is answered as usual, and the stream ends, reason error', async () => {
        const { app, source, reason } = behind(() => {
          throw Object.assign(new Error('conflict'), { status: 409, expose: true })
        })
        const { url } = await serve(app)
        const { status, text, headers } = await request(url).get('/')
        expect(status).to.equal(409)
        expect(text).to.equal('conflict')
        expect(headers['content-type']).to.match(/^text\/plain/)
        expect(headers).not.to.have.property('x-accel-buffering')
        await until(() => reason() !== undefined && source.released)
        expect(reason()).to.equal('error')
        expect(app.errors).to.have.length(1)
      })

      it('that throws later is answered as usual too, also with what would follow from a disconnect', async () => {
        for (const error of [boom, new DOMException('a fetch of its own took too long', 'AbortError')]) {
          const { app, source, reason } = behind(async () => {
            for (let i = 0; i < 5; i++) await turn()
            throw error
          })
          const { url } = await serve(app)
          await request(url).get('/').expect(500, 'Internal Server Error')
          await until(() => reason() !== undefined && source.released)
          expect(reason()).to.equal('error')
          expect(app.errors).to.deep.equal([error])
        }
      })

      it('that replaces the body is what the client hears, and the stream ends, reason closed', async () => {
        const { app, source, reason } = behind(ctx => {
          ctx.body = 'instead'
        })
        const { url } = await serve(app)
        const client = await connect(url)
        expect(await client.ended).to.equal('clean')
        expect(client.text).to.equal('instead')
        await until(() => reason() !== undefined && source.released)
        expect(reason()).to.equal('closed')
        expect(app.errors).to.deep.equal([])
      })

      it('that sets 204 is what the client hears, and the stream ends, reason closed', async () => {
        const { app, source, reason } = behind(ctx => {
          ctx.status = 204
        })
        const { url } = await serve(app)
        const client = await connect(url)
        expect(client.status).to.equal(204)
        expect(await client.ended).to.equal('clean')
        expect(client.text).to.equal('')
        await until(() => reason() !== undefined && source.released)
        expect(reason()).to.equal('closed')
        expect(app.errors).to.deep.equal([])
      })

      it('that wraps the body gets every byte, and the end', async () => {
        const wrapper: Middleware = async (ctx, next) => {
          await next()
          const upper = new PassThrough({ transform: (chunk: Buffer, _encoding, callback) => callback(null, chunk.toString().toUpperCase()) })
          ctx.body = (ctx.body as PassThrough).pipe(upper)
        }
        const app = koa(wrapper, sse(), async ctx => {
          await ctx.sse.send('one')
          await turn()
          await ctx.sse.send('two')
          ctx.sse.close()
        })
        const { url } = await serve(app)
        const client = await connect(url)
        expect(await client.ended).to.equal('clean')
        expect(client.text).to.equal(':\n\nDATA: ONE\n\nDATA: TWO\n\n')
        expect(app.errors).to.deep.equal([])
      })

      for (const [when, ends] of [
        ['while the stream is open', false],
        ['when the stream has ended', true],
      ] as const) {
        it(`that wraps the body, and fails ${when}, cuts the response, and the app hears of it once`, async () => {
          let reason: string | undefined
          const wrapper: Middleware = async (ctx, next) => {
            await next()
            const broken = new PassThrough({
              transform: (chunk: Buffer, _encoding, callback) => callback(chunk.includes('last') ? boom : null, chunk),
            })
            ctx.body = (ctx.body as PassThrough).pipe(broken)
          }
          const app = koa(wrapper, sse(), async ctx => {
            await ctx.sse.send('first')
            await turn()
            await turn()
            void ctx.sse.send('last')
            if (ends) ctx.sse.close()
            reason = await ctx.sse.closed
          })
          const { url } = await serve(app)
          const client = await connect(url)
          expect(await client.ended).to.equal('cut')
          expect(client.text).to.equal(':\n\ndata: first\n\n')
          expect(app.errors).to.deep.equal([boom])
          expect(reason).to.equal(ends ? 'closed' : 'error')
        })
      }

      it('that wraps the body, and is aborted by the app while the stream is open, cuts the response, and the app hears of it', async () => {
        const aborted = new DOMException('too slow', 'AbortError')
        for (const error of [aborted, new Error('upstream', { cause: aborted })]) {
          const broken = new PassThrough()
          let reason: string | undefined
          const wrapper: Middleware = async (ctx, next) => {
            await next()
            ctx.body = (ctx.body as PassThrough).pipe(broken)
          }
          const app = koa(wrapper, sse(), async ctx => {
            void ctx.sse.send('first')
            reason = await ctx.sse.closed
          })
          const { url } = await serve(app)
          const client = await connect(url)
          await client.event()
          broken.destroy(error)
          expect(await client.ended).to.equal('cut')
          await until(() => reason !== undefined)
          expect(app.errors).to.deep.equal([error])
          expect(reason).to.equal('error')
        }
      })
    })

    describe('HEAD', () => {
      it('gets the head alone, and keeps the connection sound', async () => {
        const handler: Middleware = async ctx => {
          void ctx.sse.send('never')
          if (ctx.method === 'GET') ctx.sse.close()
        }
        const app = koa(sse({ retry: 5 }), handler)
        const { port } = await serve(app)
        const received = await raw(port, 'HEAD / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.0\r\nHost: x\r\n\r\n')
        const [first, second, ...body] = received.split('\r\n\r\n')
        expect(first).to.match(/^HTTP\/1\.1 200 OK\r\n/)
        expect(first!.toLowerCase()).to.include('content-type: text/event-stream')
        expect(second).to.match(/^HTTP\/1\.1 200 OK\r\n/)
        expect(body).to.deep.equal(['retry: 5\n\ndata: never\n\n'])
        expect(app.errors).to.deep.equal([])
      })

      it('starts no producer, and releases one that is made', async () => {
        let called = false
        const source = patient('one')
        const readable = Readable.from(['one'])
        const results: unknown[] = []
        const handler: Middleware = async ctx => {
          results.push(await ctx.sse.send('x'), await ctx.sse.comment('x'))
          results.push(
            await ctx.sse.pipe(() => {
              called = true
              return ['x']
            }),
          )
          results.push(await ctx.sse.pipe(source), await ctx.sse.pipe(readable), await ctx.sse.pipe(patient('x'), { head: 'first-event' }))
          results.push(ctx.sse.connected, ctx.sse.eventsSent, await ctx.sse.closed)
        }
        const app = koa(sse(), handler)
        const { url } = await serve(app)
        await request(url).head('/').expect(200).expect('Content-Type', 'text/event-stream')
        await until(() => results.length === 9)
        expect(results).to.deep.equal([false, false, undefined, undefined, undefined, undefined, false, 0, 'closed'])
        expect(called).to.equal(false)
        expect(source.pulled).to.equal(0)
        expect(source.released).to.equal(true)
        expect(readable.destroyed).to.equal(true)
        expect(app.errors).to.deep.equal([])
      })

      it('is answered as the handler says when it does not stream', async () => {
        const { url } = await serve(koa(sse(), ctx => void (ctx.body = 'plain')))
        await request(url).head('/').expect(200).expect('Content-Length', '5')
      })
    })

    describe('HTTP/1.0', () => {
      it('gets no chunks and no keep-alive, and the end of the connection for an end', async () => {
        const app = koa(sse(), async ctx => {
          await ctx.sse.send('one')
          await turn()
          await ctx.sse.send('two')
          ctx.sse.close()
        })
        const { port } = await serve(app)
        for (const extra of ['', 'Connection: keep-alive\r\n']) {
          const received = await raw(port, `GET / HTTP/1.0\r\nHost: x\r\n${extra}\r\n`)
          const [head, ...body] = received.split('\r\n\r\n')
          expect(head).to.match(/^HTTP\/1\.1 200 OK\r\n/)
          expect(head!.toLowerCase()).not.to.include('transfer-encoding').and.not.to.include('keep-alive')
          expect(body).to.deep.equal([':\n\ndata: one\n\ndata: two\n\n'])
        }
        expect(app.errors).to.deep.equal([])
      })

      it('is read as it comes', async () => {
        const { port } = await serve(koa(sse(), ctx => ctx.sse.pipe(patient('one'))))
        const socket = dial(port, '127.0.0.1')
        let received = ''
        socket.on('data', chunk => (received += chunk.toString()))
        socket.write('GET / HTTP/1.0\r\n\r\n')
        await until(() => received.endsWith('\r\n\r\n:\n\ndata: one\n\n'))
        socket.destroy()
      })
    })

    describe('composition', () => {
      const auth: Middleware = async (ctx, next) => {
        if (ctx.get('Authorization') !== 'Bearer right') ctx.throw(401)
        ctx.state['user'] = 'ada'
        await next()
      }
      const handler: Middleware = async ctx => {
        await ctx.sse.send(`hello ${String(ctx.state['user'])}`)
        ctx.sse.close()
      }

      for (const [name, chain] of [
        ['auth, sse', (): Middleware[] => [auth, sse(), handler]],
        ['sse, auth', (): Middleware[] => [sse(), auth, handler]],
      ] as [string, () => Middleware[]][]) {
        it(`${name}: 401 before the stream, and the stream for who may`, async () => {
          const app = koa(...chain())
          const { url } = await serve(app)
          const { status, headers } = await request(url).get('/')
          expect(status).to.equal(401)
          expect(headers['content-type']).not.to.include('event-stream')
          const client = await connect(url, { headers: { Authorization: 'Bearer right' } })
          expect((await client.event()).data).to.equal('hello ada')
          expect(await client.ended).to.equal('clean')
        })
      }
    })
  })
}

const collect = (res: unknown, done: (error: Error | null, body: unknown) => void): void => {
  let text = ''
  const stream = res as Readable
  stream.on('data', chunk => (text += String(chunk)))
  stream.on('end', () => done(null, text))
}

describe('sse()', () => {
  const koa = newest

  it('is a named function, as Koa likes it', () => {
    expect(sse().name).to.equal('sse')
    expect(sse()).to.have.length(2)
  })

  it('gives every request a stream of its own', async () => {
    const streams = new Set<unknown>()
    const { url } = await serve(koa(sse(), ctx => void (streams.add(ctx.sse), (ctx.body = 'x'))))
    await request(url).get('/')
    await request(url).get('/')
    expect(streams.size).to.equal(2)
    for (const stream of streams) expect(stream).to.be.instanceOf(EventStream)
  })

  describe('before it opens', () => {
    it('costs no listener, no timer and no stream', async () => {
      const seen: Record<string, number>[][] = []
      let timers = 0
      const { setTimeout, setInterval } = globalThis
      mock.method(globalThis, 'setTimeout', (...args: Parameters<typeof setTimeout>) => (timers++, setTimeout(...args)))
      mock.method(globalThis, 'setInterval', (...args: Parameters<typeof setInterval>) => (timers++, setInterval(...args)))
      try {
        const look: Middleware = ctx => {
          void ctx.sse?.lastEventId
          void ctx.sse?.connected
          void ctx.sse?.bytesWritten
          seen.push([listeners(ctx.req), listeners(ctx.res), listeners(ctx.req.socket)])
          expect(ctx.body).to.equal(undefined)
          ctx.body = 'plain'
        }
        for (const app of [koa(look), koa(sse({ maxAge: 1_000 }), look)]) {
          const { url } = await serve(app)
          const client = await connect(url)
          await client.ended
          expect(client.text).to.equal('plain')
        }
        expect(timers).to.equal(0)
        expect(seen[1]).to.deep.equal(seen[0])
      } finally {
        mock.restoreAll()
      }
    })

    it('leaves nothing behind of a signal that somebody asked for', async () => {
      const seen: Record<string, number>[][] = []
      let stream: EventStream | undefined
      let closed = false
      const look: Middleware = async (ctx, next) => {
        await next()
        seen.push([listeners(ctx.req), listeners(ctx.res), listeners(ctx.req.socket)])
      }
      const handler: Middleware = ctx => {
        stream = ctx.sse
        void stream.signal
        void stream.closed.then(() => (closed = true))
        ctx.body = 'plain'
      }
      for (const app of [koa(look, ctx => void (ctx.body = 'plain')), koa(look, sse(), handler)]) {
        const { url } = await serve(app)
        await (
          await connect(url)
        ).ended
      }
      expect(seen[1]).to.deep.equal(seen[0])
      for (let i = 0; i < 5; i++) await turn()
      expect(stream!.signal.aborted).to.equal(false)
      expect(closed).to.equal(false)
    })
  })

  it('leaves no listener on a connection that lives on', async () => {
    const sockets: Socket[] = []
    const counts: Record<string, number>[] = []
    const handler: Middleware = async ctx => {
      sockets.push(ctx.req.socket)
      counts.push(listeners(ctx.req.socket))
      void ctx.sse.signal
      await ctx.sse.send('x')
      ctx.sse.close()
    }
    const { url } = await serve(koa(sse(), handler))
    const agent = new Agent({ keepAlive: true, maxSockets: 1 })
    for (let i = 0; i < 5; i++) expect(await (await connect(url, { agent })).ended).to.equal('clean')
    agent.destroy()
    expect(new Set(sockets).size).to.equal(1)
    for (const count of counts.slice(2)) expect(count).to.deep.equal(counts[1])
  })

  describe("pipe with head: 'first-event'", () => {
    it('makes the middleware wait with it', async () => {
      const go = signalled()
      const order: string[] = []
      const outer: Middleware = async (_ctx, next) => {
        await next()
        order.push('outer')
      }
      async function* source(): AsyncGenerator<string> {
        await go.promise
        order.push('first')
        yield 'one'
        await new Promise(() => {})
      }
      const { url } = await serve(koa(outer, sse(), ctx => void ctx.sse.pipe(source(), { head: 'first-event' })))
      const connecting = connect(url)
      for (let i = 0; i < 10; i++) await turn()
      expect(order).to.deep.equal([])
      go.go()
      const client = await connecting
      expect((await client.event()).data).to.equal('one')
      expect(order).to.deep.equal(['first', 'outer'])
    })

    // oxlint-disable-next-line eslint/require-yield
    const failing = async function* (): AsyncGenerator<string> {
      await turn()
      throw Object.assign(new Error('slow down'), { status: 429, expose: true })
    }

    for (const [name, handler] of [
      ['that the handler returns', ctx => ctx.sse.pipe(failing(), { head: 'first-event' })],
      ['that nobody awaits', ctx => void ctx.sse.pipe(failing(), { head: 'first-event' })],
    ] as [string, Middleware][]) {
      it(`is an ordinary HTTP error when a source ${name} fails before it`, async () => {
        const app = koa(sse({ onError: () => 'not this' }), handler)
        const { url } = await serve(app)
        const { status, text, headers } = await request(url).get('/')
        expect(status).to.equal(429)
        expect(text).to.equal('slow down')
        expect(headers['content-type']).not.to.include('event-stream')
        expect(app.errors).to.have.length(1)
      })
    }

    it('lets a handler answer otherwise when the source fails before it', async () => {
      const app = koa(sse(), async ctx => {
        try {
          await ctx.sse.pipe(failing(), { head: 'first-event' })
        } catch (error) {
          ctx.status = 502
          ctx.body = (error as Error).message
        }
      })
      const { url } = await serve(app)
      await request(url).get('/').expect(502, 'slow down')
      expect(app.errors).to.deep.equal([])
    })

    it('opens and ends when the source ends without one', async () => {
      const app = koa(sse(), ctx => ctx.sse.pipe([], { head: 'first-event' }))
      const { url } = await serve(app)
      const client = await connect(url)
      expect(client.status).to.equal(200)
      expect(client.headers['content-type']).to.equal('text/event-stream')
      expect(await client.ended).to.equal('clean')
      expect(client.text).to.equal(':\n\n')
    })
  })

  describe('twice on one request', () => {
    it('has the options of the inner one', async () => {
      const outer = sse({ retry: 1, newline: '\r', maxStreams: 1 })
      const inner = sse({ retry: 2 })
      const { url } = await serve(koa(outer, inner, ctx => void ctx.sse.open()))
      for (let i = 0; i < 2; i++) {
        const client = await connect(url)
        await until(() => client.text !== '')
        expect(client.text).to.equal('retry: 2\n\n')
      }
      expect(outer.size).to.equal(0)
      expect(inner.size).to.equal(2)
    })

    it('lets go on who comes before the outer one, whatever stands between the two', async () => {
      let over = false
      const { url } = await serve(
        koa(
          sse(),
          async (ctx, next) => {
            await next()
            await ctx.sse.closed
            over = true
          },
          sse(),
          ctx => void ctx.sse.open(),
        ),
      )
      const client = await connect(url)
      client.fin()
      await until(() => over)
    })

    it('has the Stream of the inner one', async () => {
      class Own extends EventStream {}
      let stream: unknown
      const { url } = await serve(koa(sse(), sse({ Stream: Own }), ctx => void (stream = ctx.sse.open())))
      await connect(url)
      expect(stream).to.be.instanceOf(Own)
    })

    for (const [name, inner] of [
      ['other options', () => sse({ retry: 2, newline: '\r\n' })],
      ['a Stream of its own', () => sse({ Stream: class Own extends EventStream {} })],
    ] as [string, () => Middleware][]) {
      it(`keeps a stream that is open already, though the inner one has ${name}`, async () => {
        const outer = sse({ retry: 1 })
        const streams = new Set<EventStream>()
        const app = koa(
          outer,
          async (ctx, next) => {
            streams.add(ctx.sse)
            await ctx.sse.send('outer')
            await next()
          },
          inner(),
          async ctx => {
            streams.add(ctx.sse)
            await ctx.sse.send('inner')
            ctx.sse.close()
          },
        )
        const { url } = await serve(app)
        const client = await connect(url)
        expect(await client.ended).to.equal('clean')
        expect(client.text).to.equal('retry: 1\n\ndata: outer\n\ndata: inner\n\n')
        expect(streams.size).to.equal(1)
        expect(app.errors).to.deep.equal([])
      })
    }

    it('returns early from both', async () => {
      let back = 0
      const count: Middleware = async (_ctx, next) => {
        await next()
        back++
      }
      const { url } = await serve(koa(count, sse(), count, sse(), async ctx => void (await ctx.sse.open().closed)))
      await connect(url)
      expect(back).to.equal(2)
    })

    it('returns early from the inner one too when the stream is open already', async () => {
      let back = false
      const between: Middleware = async (ctx, next) => {
        ctx.sse.open()
        await next()
        back = true
      }
      const { url } = await serve(koa(sse(), between, sse(), async ctx => void (await ctx.sse.closed)))
      await connect(url)
      await until(() => back)
    })

    it('tells of a failure once', async () => {
      const app = koa(sse(), sse(), async ctx => {
        await ctx.sse.send('one')
        throw boom
      })
      const { url } = await serve(app)
      expect(await (await connect(url)).ended).to.equal('cut')
      for (let i = 0; i < 5; i++) await turn()
      expect(app.errors).to.deep.equal([boom])
    })
  })

  for (const method of ['GET', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS', 'QUERY']) {
    // Node 20 learned QUERY late.
    if (!METHODS.includes(method)) continue
    it(`streams for ${method}`, async () => {
      const app = koa(sse(), async ctx => {
        await ctx.sse.send(ctx.method)
        ctx.sse.close()
      })
      const { url } = await serve(app)
      const client = await connect(url, { method })
      expect((await client.event()).data).to.equal(method)
      expect(await client.ended).to.equal('clean')
      expect(app.errors).to.deep.equal([])
    })
  }

  it('streams for a POST whose body nobody reads', async () => {
    const app = koa(sse(), ctx => ctx.sse.pipe(['one', 'two']))
    const { url } = await serve(app)
    const client = await connect(url, { method: 'POST', body: Buffer.alloc(1_000_000) })
    expect(await client.take(2)).to.deep.equal(['one', 'two'])
    expect(await client.ended).to.equal('clean')
  })

  it('notices that the client of a POST leaves whose body nobody reads', async () => {
    let stream: EventStream | undefined
    const { url } = await serve(koa(sse(), ctx => void (stream = ctx.sse.open())))
    const client = await connect(url, { method: 'POST', body: Buffer.alloc(200_000) })
    client.fin()
    expect(await stream!.closed).to.equal('client')
  })

  it('lets a handler read the body first, or make a source of it', async () => {
    const handler: Middleware = async ctx => {
      if (ctx.path === '/first') {
        let text = ''
        for await (const chunk of ctx.req) text += String(chunk)
        await ctx.sse.send(text)
        ctx.sse.close()
      } else await ctx.sse.pipe(ctx.req)
    }
    const { url } = await serve(koa(sse(), handler))
    for (const path of ['/first', '/source']) {
      const client = await connect(url + path, { method: 'POST', body: 'what came' })
      await client.ended
      expect(client.events.map(event => event.data).join('')).to.equal('what came')
    }
  })
})
