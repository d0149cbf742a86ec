import { getMaxListeners } from 'node:events'
import { Agent } from 'node:http'
import { PassThrough, Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { setImmediate as turn } from 'node:timers/promises'
import { expect } from 'chai'
import type { Context, Middleware } from 'koa'
import { sse, SseError, type CloseReason, type EventStream, type SseOptions } from 'koa-sse'
import request from 'supertest'
import { clog } from './support/clog.ts'
import { connect, type ConnectOptions, type LiveClient } from './support/client.ts'
import { failure, isPending } from './support/promises.ts'
import { koa, serve, until } from './support/serve.ts'
import { reset } from './support/reset.ts'

const KB = 'x'.repeat(1_000)

interface Stand {
  app: ReturnType<typeof koa>
  url: string
  client: LiveClient
  stream: EventStream
  ctx: Context
}

/** A stream that is open, its handler gone, and its client. */
const stand = async (options: SseOptions = {}, asking: ConnectOptions = {}): Promise<Stand> => {
  let context: Context | undefined
  const app = koa(sse(options), ctx => {
    context = ctx
    ctx.sse.open()
  })
  const { url } = await serve(app)
  const client = await connect(url, asking)
  await until(() => client.text !== '')
  return { app, url, client, stream: context!.sse, ctx: context! }
}

/** What `look` finds in a handler that does not stream. */
const inHandler = async <T>(look: (ctx: Context) => T | Promise<T>, path = '/', asking: ConnectOptions = {}): Promise<T> => {
  let found: { value: T } | undefined
  const { url } = await serve(
    koa(sse(), async ctx => {
      found = { value: await look(ctx) }
      ctx.body ??= 'plain'
    }),
  )
  await (
    await connect(url + path, asking)
  ).ended
  return found!.value
}

describe('ctx.sse.send()', () => {
  it('opens the stream, and sends an event', async () => {
    const app = koa(sse(), async ctx => {
      expect(ctx.sse.connected).to.equal(false)
      const sent = ctx.sse.send({ id: '1', event: 'tick', data: [1], comment: 'c', retry: 7 })
      expect(ctx.sse.connected).to.equal(true)
      expect(await sent).to.equal(true)
      ctx.sse.close()
    })
    const { url } = await serve(app)
    const client = await connect(url)
    expect(await client.ended).to.equal('clean')
    expect(client.text).to.equal(':\n\n: c\nid: 1\nevent: tick\ndata: [1]\nretry: 7\n\n')
    expect(app.errors).to.deep.equal([])
  })

  it('resolves true when there is room for more', async () => {
    const { stream, client } = await stand()
    for (let i = 0; i < 10; i++) expect(await stream.send(String(i))).to.equal(true)
    expect(await client.take(10)).to.deep.equal(['0', '1', '2', '3', '4', '5', '6', '7', '8', '9'])
  })

  it('keeps the order of calls that nobody awaits', async () => {
    const { stream, client } = await stand()
    for (let i = 0; i < 500; i++) void stream.send(String(i))
    expect(await client.take(500)).to.deep.equal(Array.from({ length: 500 }, (_, i) => String(i)))
  })

  it('waits while the client does not read, and resolves true when it does', async () => {
    const { stream, client } = await stand()
    client.pause()
    let blocked = stream.send('x')
    for (let i = 0; i < 5_000 && !(await isPending(blocked)); i++) blocked = stream.send(KB.repeat(100))
    expect(await isPending(blocked)).to.equal(true)
    client.resume()
    expect(await blocked).to.equal(true)
    expect(await stream.send('last')).to.equal(true)
    while ((await client.event()).data !== 'last');
  })

  it('resolves false when the stream ends while it waits', async () => {
    const { stream, client } = await stand()
    client.pause()
    let blocked = stream.send('x')
    for (let i = 0; i < 5_000 && !(await isPending(blocked)); i++) blocked = stream.send(KB.repeat(100))
    expect(await isPending(blocked)).to.equal(true)
    client.destroy()
    expect(await blocked).to.equal(false)
    expect(await stream.closed).to.equal('client')
  })

  it('resolves false when the stream has ended, and writes nothing', async () => {
    const { stream, client, app } = await stand()
    stream.close()
    expect(await stream.send('late')).to.equal(false)
    expect(await stream.comment('late')).to.equal(false)
    expect(await client.ended).to.equal('clean')
    expect(await stream.send('late')).to.equal(false)
    expect(client.text).to.equal(':\n\n')
    expect(stream.eventsSent).to.equal(0)
    expect(app.errors).to.deep.equal([])
  })

  it('resolves false when the client has left', async () => {
    const { stream, client, app } = await stand()
    client.destroy()
    await stream.closed
    expect(await stream.send('late')).to.equal(false)
    expect(app.errors).to.deep.equal([])
  })

  it('lets concurrent senders never interleave', async () => {
    const { stream, client } = await stand({ highWaterMark: 2_000 })
    const senders = 20
    const each = 25
    const sender = async (name: number): Promise<void> => {
      for (let i = 0; i < each; i++) {
        // Many lines, and more bytes than wait at once.
        await stream.send({ id: `${name}-${i}`, event: `sender${name}`, data: `${name}\n${i}\n${KB.repeat(i % 3)}\nend` })
        if (i % 5 === name % 5) await turn()
      }
    }
    await Promise.all(Array.from({ length: senders }, (_, name) => sender(name)))
    stream.close()
    await client.ended
    const next = Array.from({ length: senders }, () => 0)
    for (const { id, event, data } of client.events) {
      const name = Number(event!.slice('sender'.length))
      const i = next[name]!++
      expect(id).to.equal(`${name}-${i}`)
      expect(data).to.equal(`${name}\n${i}\n${KB.repeat(i % 3)}\nend`)
    }
    expect(next).to.deep.equal(Array.from({ length: senders }, () => each))
  })
})

describe('ctx.sse.comment()', () => {
  it('opens the stream, and sends lines that clients ignore', async () => {
    const app = koa(sse(), async ctx => {
      expect(await ctx.sse.comment('one\ntwo\r\nthree\rfour')).to.equal(true)
      ctx.sse.close()
    })
    const { url } = await serve(app)
    const client = await connect(url)
    await client.ended
    expect(client.text).to.equal(':\n\n: one\n: two\n: three\n: four\n\n')
    expect(client.events).to.deep.equal([])
  })

  it('may be empty, and forges nothing', async () => {
    const { stream, client } = await stand()
    await stream.comment('')
    await stream.comment('\n\ndata: forged\n\n')
    stream.close()
    await client.ended
    expect(client.text).to.equal(':\n\n: \n\n: \n: \n: data: forged\n: \n: \n\n')
    expect(client.events).to.deep.equal([])
  })
})

describe('ctx.sse.open()', () => {
  it('returns the stream, again and again, and opens it once', async () => {
    const app = koa(sse({ retry: 1 }), ctx => {
      expect(ctx.sse.connected).to.equal(false)
      expect(ctx.sse.open()).to.equal(ctx.sse)
      const { body } = ctx.sse
      expect(ctx.sse.open()).to.equal(ctx.sse)
      expect(ctx.sse.body).to.equal(body)
      expect(ctx.sse.connected).to.equal(true)
      ctx.sse.close()
      expect(ctx.sse.open()).to.equal(ctx.sse)
      expect(ctx.sse.connected).to.equal(false)
    })
    const { url } = await serve(app)
    const client = await connect(url)
    expect(await client.ended).to.equal('clean')
    expect(client.text).to.equal('retry: 1\n\n')
    expect(app.errors).to.deep.equal([])
  })
})

describe('ctx.sse.close()', () => {
  it('ends the stream cleanly, after all that was sent', async () => {
    const { stream, client, app } = await stand()
    for (let i = 0; i < 500; i++) void stream.send(KB)
    stream.close()
    expect(await stream.closed).to.equal('closed')
    expect(await client.ended).to.equal('clean')
    expect(client.events).to.have.length(500)
    expect(app.errors).to.deep.equal([])
  })

  it('is safe to repeat', async () => {
    const { stream, client, app } = await stand()
    stream.close()
    stream.close()
    expect(await client.ended).to.equal('clean')
    stream.close()
    expect(await stream.closed).to.equal('closed')
    expect(app.errors).to.deep.equal([])
  })

  it('releases the source of a pipe, which settles', async () => {
    let released = false
    const { stream, client } = await stand()
    const piped = stream.pipe(
      (async function* () {
        try {
          for (;;) {
            yield 'tick'
            await turn()
          }
        } finally {
          released = true
        }
      })(),
    )
    await client.event()
    stream.close()
    await piped
    await until(() => released)
    expect(await client.ended).to.equal('clean')
  })

  it('waits for a client that reads slowly', async () => {
    const { stream, client } = await stand()
    client.pause()
    await clog(stream)
    const { bytesWritten } = stream
    stream.close()
    for (let i = 0; i < 5; i++) await turn()
    client.resume()
    expect(await client.ended).to.equal('clean')
    expect(Buffer.byteLength(client.text)).to.equal(bytesWritten)
  })

  describe('before the stream is open', () => {
    it('leaves the response to the handler', async () => {
      let called = false
      const readable = Readable.from(['x'])
      const results: unknown[] = []
      const handler: Middleware = async ctx => {
        ctx.sse.close()
        expect(ctx.sse.open()).to.equal(ctx.sse)
        results.push(await ctx.sse.send('x'), await ctx.sse.comment('x'))
        await ctx.sse.pipe(() => {
          called = true
          return ['x']
        })
        await ctx.sse.pipe(readable, { head: 'first-event' })
        results.push(ctx.sse.connected, ctx.sse.signal.aborted, await ctx.sse.closed, ctx.sse.eventsSent, ctx.sse.bytesWritten)
        ctx.body = 'plain'
      }
      const app = koa(sse(), handler)
      const { url } = await serve(app)
      await request(url)
        .get('/')
        .expect(200, 'plain')
        .expect('Content-Type', /^text\/plain/)
      expect(results).to.deep.equal([false, false, false, true, 'closed', 0, 0])
      expect(called).to.equal(false)
      expect(readable.destroyed).to.equal(true)
      expect(app.errors).to.deep.equal([])
    })

    it('leaves an error to Koa', async () => {
      const app = koa(sse(), ctx => {
        ctx.sse.close()
        ctx.throw(403)
      })
      const { url } = await serve(app)
      await request(url).get('/').expect(403)
    })

    it('ends a pipe that waits for its first item', async () => {
      let settled = false
      const handler: Middleware = async ctx => {
        const never = async function* (): AsyncGenerator<string> {
          yield await new Promise<string>(() => {})
        }
        const piped = ctx.sse.pipe(never(), { head: 'first-event' })
        await turn()
        ctx.sse.close()
        await piped
        settled = true
        ctx.body = 'plain'
      }
      const { url } = await serve(koa(sse(), handler))
      await request(url).get('/').expect(200, 'plain')
      expect(settled).to.equal(true)
    })
  })
})

describe('await using ctx.sse', () => {
  it('closes the stream at the end of the block', async () => {
    const app = koa(sse(), async ctx => {
      await using stream = ctx.sse
      await stream.send('one')
    })
    const { url } = await serve(app)
    const client = await connect(url)
    expect(await client.ended).to.equal('clean')
    expect(client.text).to.equal(':\n\ndata: one\n\n')
    expect(app.errors).to.deep.equal([])
  })

  it('does no harm to a stream that has ended, and none to one that never opened', async () => {
    const app = koa(sse(), async ctx => {
      await using stream = ctx.sse
      if (ctx.path === '/ended') stream.open().close()
      else ctx.body = 'plain'
    })
    const { url } = await serve(app)
    const client = await connect(`${url}/ended`)
    expect(await client.ended).to.equal('clean')
    await request(url).get('/').expect(200, 'plain')
    expect(app.errors).to.deep.equal([])
  })
})

describe('ctx.sse.connected', () => {
  it('is true while the stream is open', async () => {
    const app = koa(sse(), ctx => {
      expect(ctx.sse.connected).to.equal(false)
      ctx.sse.open()
      expect(ctx.sse.connected).to.equal(true)
      ctx.sse.close()
      expect(ctx.sse.connected).to.equal(false)
    })
    const { url } = await serve(app)
    expect(await (await connect(url)).ended).to.equal('clean')
    expect(app.errors).to.deep.equal([])
  })

  for (const how of ['fin', 'rst', 'destroy'] as const) {
    it(`is false at once when the client leaves (${how})`, async () => {
      const { stream, client } = await stand()
      expect(stream.connected).to.equal(true)
      const closed = stream.closed.then(() => stream.connected)
      client[how]()
      expect(await closed).to.equal(false)
    })
  }
})

describe('ctx.sse.signal', () => {
  it('is one that fetch takes: undici asks for its limit of listeners, which Node 20 does not know of one that has 0', async () => {
    const app = koa(sse(), ctx => {
      expect(getMaxListeners(ctx.sse.signal)).to.equal(Infinity)
      ctx.status = 204
    })
    const { url } = await serve(app)
    expect((await fetch(url)).status).to.equal(204)
    expect(app.errors).to.deep.equal([])
  })

  it('is one AbortSignal, before and after the stream opens', async () => {
    const app = koa(sse(), ctx => {
      const { signal } = ctx.sse
      expect(signal).to.be.instanceOf(AbortSignal)
      ctx.sse.open()
      expect(ctx.sse.signal).to.equal(signal)
      expect(signal.aborted).to.equal(false)
      ctx.sse.close()
      expect(ctx.sse.signal).to.equal(signal)
      expect(signal.aborted).to.equal(true)
    })
    const { url } = await serve(app)
    await (
      await connect(url)
    ).ended
    expect(app.errors).to.deep.equal([])
  })

  it('is aborted when the client leaves', async () => {
    const { stream, client } = await stand()
    const { signal } = stream
    const aborted = new Promise<void>(resolve => signal.addEventListener('abort', () => resolve()))
    client.fin()
    await aborted
    expect(signal.aborted).to.equal(true)
    expect(stream.connected).to.equal(false)
  })

  it('is aborted when the client leaves before the stream opens', async () => {
    let aborted = false
    let reason: CloseReason | undefined
    let asked = false
    const app = koa(sse(), async ctx => {
      const { signal } = ctx.sse
      asked = true
      await new Promise(resolve => signal.addEventListener('abort', resolve))
      aborted = signal.aborted
      reason = await ctx.sse.closed
    })
    const { url, sockets } = await serve(app)
    connect(url).catch(() => {})
    await until(() => asked)
    for (const socket of sockets) socket.destroy()
    await until(() => reason !== undefined)
    expect(aborted).to.equal(true)
    expect(reason).to.equal('client')
    expect(app.errors).to.deep.equal([])
  })

  it('is aborted already when somebody asks for it after the end', async () => {
    const { stream, client } = await stand()
    client.destroy()
    await until(() => !stream.connected)
    await stream.closed
    expect(stream.signal.aborted).to.equal(true)
  })

  it('survives a listener that throws', async () => {
    const thrown: unknown[] = []
    const listenersBefore = process.listeners('uncaughtException')
    process.removeAllListeners('uncaughtException')
    process.on('uncaughtException', error => thrown.push(error))
    try {
      const { stream, client } = await stand()
      stream.signal.addEventListener('abort', () => {
        throw new Error('mine')
      })
      stream.close()
      expect(await stream.closed).to.equal('closed')
      expect(await client.ended).to.equal('clean')
    } finally {
      process.removeAllListeners('uncaughtException')
      for (const listener of listenersBefore) process.on('uncaughtException', listener)
    }
    expect(thrown.map(error => (error as Error).message)).to.deep.equal(['mine'])
  })
})

describe('ctx.sse.closed', () => {
  const reasons: [CloseReason, string, SseOptions, (stand: Stand, middleware: ReturnType<typeof sse>) => unknown][] = [
    ['client', 'when the client leaves with a FIN', {}, ({ client }) => client.fin()],
    ['client', 'when the client leaves with a RST', {}, ({ client }) => client.rst()],
    ['closed', 'after close()', {}, ({ stream }) => stream.close()],
    ['closed', 'at the end of a piped source', {}, ({ stream }) => stream.pipe(['one'])],
    ['closed', 'when somebody ends the body', {}, ({ stream }) => stream.body.end()],
    ['error', 'when somebody destroys the body with an error', {}, ({ stream }) => stream.body.destroy(new Error('mine'))],
    ['error', 'when a source fails', {}, ({ stream }) => stream.pipe([5] as never).catch(() => {})],
    [
      'slow',
      'when more than maxBuffer would wait',
      {},
      ({ stream }) => {
        // The kernel takes megabytes.
        for (let i = 0; i < 50_000 && stream.connected; i++) void stream.send(KB)
      },
    ],
    [
      'stalled',
      'when the client reads nothing for stallTimeout',
      { stallTimeout: 40 },
      async ({ stream, client }) => {
        client.pause()
        await clog(stream)
      },
    ],
    ['expired', 'at maxAge', { maxAge: 40 }, () => {}],
    ['shutdown', 'when the middleware is closed', {}, (_stand, middleware) => middleware.close()],
  ]

  for (const [reason, when, options, end] of reasons) {
    it(`resolves with '${reason}' ${when}`, async () => {
      const middleware = sse(options)
      let context: Context | undefined
      const app = koa(middleware, ctx => {
        context = ctx
        ctx.sse.open()
      })
      const { url } = await serve(app)
      const client = await connect(url)
      const stream = context!.sse
      const { closed, signal } = stream
      expect(await isPending(closed)).to.equal(true)
      await end({ app, url, client, stream, ctx: context! }, middleware)
      expect(await closed).to.equal(reason)
      expect(await stream.closed).to.equal(reason)
      expect(signal.aborted).to.equal(true)
      expect(stream.connected).to.equal(false)
      expect(await stream.send('late')).to.equal(false)
      expect(app.errors).to.have.length(reason === 'error' ? 1 : 0)
      client.resume()
      const clean = ['closed', 'expired', 'shutdown'].includes(reason)
      expect(await client.ended).to.equal(clean ? 'clean' : 'cut')
    })
  }

  it('keeps the first reason', async () => {
    const { stream, client } = await stand()
    stream.close()
    client.destroy()
    for (let i = 0; i < 5; i++) await turn()
    expect(await stream.closed).to.equal('closed')
  })

  it('is known to who asks after the end', async () => {
    const { stream, client } = await stand()
    client.destroy()
    await until(() => !stream.connected)
    expect(await stream.closed).to.equal('client')
  })
})

describe('ctx.sse.lastEventId', () => {
  const ask = (path: string, header?: string): Promise<string | undefined> =>
    inHandler(ctx => ctx.sse.lastEventId, path, header === undefined ? {} : { headers: { 'Last-Event-ID': header } })

  it('is the header', async () => {
    expect(await ask('/', '42')).to.equal('42')
  })

  it('is undefined when there is none', async () => {
    expect(await ask('/')).to.equal(undefined)
    expect(await ask('/?other=1')).to.equal(undefined)
    expect(await ask('/', '')).to.equal(undefined)
    expect(await ask('/?lastEventId=')).to.equal(undefined)
  })

  it('decodes the header as UTF-8', async () => {
    for (const id of ['é日', '😀', 'plain', '\uFFFD', 'a\uFFFDé']) expect(await ask('/', Buffer.from(id).toString('latin1'))).to.equal(id)
  })

  it('keeps a header that is not valid UTF-8 as latin1', async () => {
    for (const id of ['é', 'caf\u00e9 \u00ff', '\u00e6\u0097']) expect(await ask('/', id)).to.equal(id)
  })

  it('is the query otherwise, under two names', async () => {
    expect(await ask('/?lastEventId=42')).to.equal('42')
    expect(await ask('/?last_event_id=43')).to.equal('43')
    expect(await ask('/a/path?x=1&lastEventId=44&y=2')).to.equal('44')
    expect(await ask(`/?lastEventId=${encodeURIComponent('é日&=')}`)).to.equal('é日&=')
    expect(await ask('/?lastEventId=0')).to.equal('0')
  })

  it('prefers the header', async () => {
    expect(await ask('/?lastEventId=42&last_event_id=43', '41')).to.equal('41')
    expect(await ask('/?lastEventId=42&last_event_id=43')).to.equal('42')
  })

  it('does not stumble over a malformed query', async () => {
    expect(await ask('/?lastEventId=%E0%A4%A')).to.be.a('string')
    expect(await ask('/?%')).to.equal(undefined)
  })

  it('is there while the stream is open, and after', async () => {
    const { stream, client } = await stand({}, { headers: { 'Last-Event-ID': '7' } })
    expect(stream.lastEventId).to.equal('7')
    client.destroy()
    await stream.closed
    expect(stream.lastEventId).to.equal('7')
  })
})

describe('ctx.sse.body', () => {
  it('throws before the stream is open', async () => {
    const error = await inHandler(ctx => failure(() => ctx.sse.body))
    expect(error).to.be.instanceOf(SseError)
    expect(error).to.have.property('code', 'ERR_SSE_NOT_OPEN')
    expect(error).to.have.property('message').that.includes('open')
  })

  it('is the PassThrough that is ctx.body', async () => {
    const app = koa(sse(), ctx => {
      ctx.sse.open()
      expect(ctx.sse.body).to.be.instanceOf(PassThrough)
      expect(ctx.body).to.equal(ctx.sse.body)
      ctx.sse.close()
    })
    const { url } = await serve(app)
    expect(await (await connect(url)).ended).to.equal('clean')
    expect(app.errors).to.deep.equal([])
  })

  it('takes bytes by hand, in order with what is sent, in the turn of opening and later', async () => {
    const app = koa(sse(), async ctx => {
      ctx.sse.open()
      for (let round = 0; round < 3; round++) {
        ctx.sse.body.write(`data: hand${round}a\n\n`)
        void ctx.sse.send(`sent${round}a`)
        ctx.sse.body.write(`data: hand${round}b\n\n`)
        void ctx.sse.send(`sent${round}b`)
        await turn()
      }
      ctx.sse.close()
    })
    const { url } = await serve(app)
    const client = await connect(url)
    expect(await client.ended).to.equal('clean')
    expect(client.text.startsWith(':\n\n'), client.text).to.equal(true)
    expect(client.events.map(event => event.data)).to.deep.equal([0, 1, 2].flatMap(n => [`hand${n}a`, `sent${n}a`, `hand${n}b`, `sent${n}b`]))
    expect(app.errors).to.deep.equal([])
  })

  it('takes a pipeline, with backpressure', async () => {
    const { stream, client, app } = await stand()
    let pulled = 0
    function* much(): Generator<string> {
      for (; pulled < 20_000; pulled++) yield `data: ${pulled} ${KB}\n\n`
    }
    client.pause()
    const done = pipeline(Readable.from(much()), stream.body)
    let before = -1
    while (before !== pulled) {
      before = pulled
      for (let i = 0; i < 20; i++) await turn()
    }
    expect(pulled).to.be.below(20_000)
    client.resume()
    await done
    expect(await client.ended).to.equal('clean')
    expect(client.events).to.have.length(20_000)
    expect(await stream.closed).to.equal('closed')
    expect(app.errors).to.deep.equal([])
  })

  it('takes one through what wraps the body, too', async () => {
    const app = koa(
      async (ctx, next) => {
        await next()
        ctx.body = ctx.sse.body.pipe(new PassThrough())
      },
      sse(),
      async ctx => {
        ctx.sse.open()
        await pipeline(Readable.from(Array.from({ length: 50 }, (_, n) => `data: ${n}${' '.repeat(20_000)}\n\n`)), ctx.sse.body)
      },
    )
    const client = await connect((await serve(app)).url)
    expect(await client.ended).to.equal('clean')
    expect(client.events).to.have.length(50)
    expect(app.errors).to.deep.equal([])
  })

  it('ends the stream when somebody ends it', async () => {
    const { stream, client, app } = await stand()
    const finished = new Promise(resolve => stream.body.end('data: last\n\n', (error?: Error | null) => resolve(error)))
    expect(await stream.closed).to.equal('closed')
    // No error: it has finished, and was not destroyed.
    expect(await finished).not.to.be.instanceOf(Error)
    expect(await client.ended).to.equal('clean')
    expect(client.events.map(event => event.data)).to.deep.equal(['last'])
    expect(await stream.send('late')).to.equal(false)
    expect(app.errors).to.deep.equal([])
  })

  it('fails the stream when somebody destroys it with an error, which is told once', async () => {
    const { stream, client, app } = await stand()
    const mine = new Error('mine')
    stream.body.destroy(mine)
    expect(await stream.closed).to.equal('error')
    expect(await client.ended).to.equal('cut')
    expect(stream.body.closed).to.equal(true)
    expect(app.errors).to.deep.equal([mine])
  })

  it('is the end of a pipeline that writes and ends it', async () => {
    const app = koa(sse(), async ctx => {
      ctx.sse.open()
      await pipeline(Readable.from(['data: a\n\n', 'data: b\n\n']), ctx.sse.body)
      done = await ctx.sse.closed
    })
    let done: string | undefined
    const { url } = await serve(app)
    const client = await connect(url)
    expect(await client.ended).to.equal('clean')
    expect(client.text).to.equal(':\n\ndata: a\n\ndata: b\n\n')
    await until(() => done !== undefined)
    expect([done, app.errors]).to.deep.equal(['closed', []])
  })

  it('fails the stream in the turn of opening too', async () => {
    const mine = new Error('mine')
    const app = koa(sse(), ctx => {
      ctx.sse.open()
      ctx.sse.body.destroy(mine)
    })
    const { url } = await serve(app)
    // Koa's ordinary way has nothing left to send, not even a head.
    const outcome = await connect(url).then(
      client => client.ended,
      () => 'cut',
    )
    expect(outcome).to.equal('cut')
    expect(app.errors).to.deep.equal([mine])
  })
})

describe('ctx.sse.bytesWritten and eventsSent', () => {
  it('stay what they were when a client leaves that had not read it all', async () => {
    const { stream, client } = await stand()
    client.pause()
    await clog(stream)
    const before = [stream.bytesWritten, stream.eventsSent]
    client.destroy()
    await stream.closed
    expect([stream.bytesWritten, stream.eventsSent]).to.deep.equal(before)
  })

  it('are what a client has received', async () => {
    const { stream, client } = await stand({ retry: 1_000, newline: '\r\n' })
    expect(stream.bytesWritten).to.equal('retry: 1000\r\n\r\n'.length)
    expect(stream.eventsSent).to.equal(0)
    await stream.send('é日😀\nline')
    await stream.send({ id: '1' })
    await stream.comment('ü')
    await stream.pipe(['one', { event: 'two' }, Buffer.from('drei')], { end: false })
    await stream.send({ data: KB.repeat(200) })
    stream.close()
    expect(await client.ended).to.equal('clean')
    expect(stream.bytesWritten).to.equal(Buffer.byteLength(client.text))
    expect(stream.eventsSent).to.equal(6)
  })

  it('are 0 before the stream opens', async () => {
    expect(await inHandler(ctx => [ctx.sse.bytesWritten, ctx.sse.eventsSent])).to.deep.equal([0, 0])
  })

  it('count the farewell of onError and of close()', async () => {
    const middleware = sse({ onError: () => 'sorry' })
    const streams: EventStream[] = []
    const { url } = await serve(
      koa(middleware, ctx => {
        streams.push(ctx.sse.open())
        if (ctx.path === '/fails') throw new Error('mine')
      }),
    )
    const clients = [await connect(`${url}/fails`), await connect(url)]
    await middleware.close({ event: 'bye' })
    for (const [i, client] of clients.entries()) {
      await client.ended
      expect(streams[i]!.bytesWritten).to.equal(Buffer.byteLength(client.text))
    }
  })

  it('count bytes that somebody writes to the body', async () => {
    const app = koa(sse(), async ctx => {
      ctx.sse.open().body.write('data: hand\n\n')
      await turn()
      ctx.sse.body.write('data: é\n\n')
      await ctx.sse.send('sent')
      ctx.sse.close()
      expect(ctx.sse.bytesWritten).to.equal(Buffer.byteLength(':\n\ndata: hand\n\ndata: é\n\ndata: sent\n\n'))
    })
    const { url } = await serve(app)
    const client = await connect(url)
    await client.ended
    expect(client.text).to.equal(':\n\ndata: hand\n\ndata: é\n\ndata: sent\n\n')
    expect(app.errors).to.deep.equal([])
  })

  it('do not count what a stream that has ended refuses', async () => {
    const { stream } = await stand()
    await stream.send('one')
    stream.close()
    const { bytesWritten } = stream
    await stream.send('late')
    await stream.comment('late')
    await stream.pipe(['late'])
    expect(stream.eventsSent).to.equal(1)
    expect(stream.bytesWritten).to.equal(bytesWritten)
  })
})

describe('a wrong argument', () => {
  const circular: Record<string, unknown> = {}
  circular['self'] = circular
  const wrongs: [string, (stream: any) => unknown][] = [
    ['send()', stream => stream.send()],
    ['send(null)', stream => stream.send(null)],
    ['send(5)', stream => stream.send(5)],
    ['send({})', stream => stream.send({})],
    ['send() with an unknown key', stream => stream.send({ data: 'x', foo: 1 })],
    ['send() with a line end in id', stream => stream.send({ id: 'a\nb' })],
    ['send() with a NUL in id', stream => stream.send({ id: 'a\0b' })],
    ['send() with a line end in event', stream => stream.send({ event: 'a\rb' })],
    ['send() with a wrong retry', stream => stream.send({ retry: -1 })],
    ['send() with data that does not serialise', stream => stream.send({ data: circular })],
    ['send() of a BigInt', stream => stream.send({ data: 10n })],
    ['comment()', stream => stream.comment()],
    ['comment(5)', stream => stream.comment(5)],
    ['pipe()', stream => stream.pipe()],
    ['pipe(null)', stream => stream.pipe(null)],
    ['pipe(5)', stream => stream.pipe(5)],
    ['pipe({})', stream => stream.pipe({})],
    ['pipe() of a string', stream => stream.pipe('text')],
    ['pipe() of a promise', stream => stream.pipe(Promise.resolve(['x']))],
    ['pipe() with options that are none', stream => stream.pipe(['x'], 5)],
    ['pipe() with an unknown option', stream => stream.pipe(['x'], { ends: true })],
    ['pipe() with a wrong end', stream => stream.pipe(['x'], { end: 'no' })],
    ['pipe() with a wrong map', stream => stream.pipe(['x'], { map: 'data' })],
    ['pipe() with a wrong head', stream => stream.pipe(['x'], { head: 'later' })],
  ]

  it('is a TypeError at the call, and leaves an open stream unharmed', async () => {
    const { stream, client, app } = await stand()
    for (const [name, call] of wrongs) {
      const before = stream.bytesWritten
      expect(() => call(stream), name).to.throw(TypeError)
      expect(stream.bytesWritten, name).to.equal(before)
      expect(await stream.send(name), name).to.equal(true)
    }
    stream.close()
    expect(await client.ended).to.equal('clean')
    expect(client.events.map(event => event.data)).to.deep.equal(wrongs.map(([name]) => name))
    expect(stream.eventsSent).to.equal(wrongs.length)
    expect(app.errors).to.deep.equal([])
  })

  it('does not open a stream that is not open', async () => {
    const app = koa(sse(), ctx => {
      for (const [name, call] of wrongs) expect(() => call(ctx.sse), name).to.throw(TypeError)
      ctx.body = 'plain'
    })
    const { url } = await serve(app)
    await request(url).get('/').expect(200, 'plain')
    expect(app.errors).to.deep.equal([])
  })

  it('is a TypeError for a stream that has ended too', async () => {
    const { stream } = await stand()
    stream.close()
    for (const [name, call] of wrongs) expect(() => call(stream), name).to.throw(TypeError)
  })
})

describe('a handler that has returned without opening', () => {
  const late = async (use: (ctx: Context) => unknown): Promise<{ error: unknown; app: ReturnType<typeof koa>; text: string }> => {
    let context: Context | undefined
    const app = koa(sse(), ctx => {
      context = ctx
      ctx.body = 'plain'
    })
    const { url } = await serve(app)
    const { text } = await request(url).get('/')
    return { error: await failure(() => use(context!)), app, text }
  }

  for (const [name, use] of [
    ['send', ctx => ctx.sse.send('late')],
    ['comment', ctx => ctx.sse.comment('late')],
    ['open', ctx => ctx.sse.open()],
    ['pipe', ctx => ctx.sse.pipe(['late'])],
  ] as [string, (ctx: Context) => unknown][]) {
    it(`gets an SseError that names the fix from ${name}()`, async () => {
      const { error, app, text } = await late(use)
      expect(text).to.equal('plain')
      expect(error).to.be.instanceOf(SseError)
      expect(error).to.have.property('code', 'ERR_SSE_NOT_OPEN')
      expect((error as Error).message).to.include('open()')
      expect(app.errors).to.deep.equal([])
    })
  }

  it('gets one from a pipe that would have waited for its first item too', async () => {
    let released = false
    const source = (async function* () {
      try {
        yield 'late'
      } finally {
        released = true
      }
    })()
    const { error, app } = await late(ctx => ctx.sse.pipe(source, { head: 'first-event' }))
    expect(error).to.have.property('code', 'ERR_SSE_NOT_OPEN')
    await until(() => released)
    expect(app.errors).to.deep.equal([])
  })

  it('gets the source that it wanted to pipe released', async () => {
    const readable = Readable.from(['late'])
    const { error } = await late(ctx => ctx.sse.pipe(readable))
    expect(error).to.have.property('code', 'ERR_SSE_NOT_OPEN')
    expect(readable.destroyed).to.equal(true)
  })

  it('disturbs nobody else on the same connection', async () => {
    let context: Context | undefined
    const errors: unknown[] = []
    const handler: Middleware = async ctx => {
      if (ctx.path === '/first') {
        context = ctx
        ctx.body = 'first'
        return
      }
      await ctx.sse.send('one')
      errors.push(await failure(() => context!.sse.send('not mine')))
      await ctx.sse.send('two')
      ctx.sse.close()
    }
    const { url } = await serve(koa(sse(), handler))
    const agent = new Agent({ keepAlive: true, maxSockets: 1 })
    await (
      await connect(`${url}/first`, { agent })
    ).ended
    const client = await connect(`${url}/second`, { agent })
    expect(await client.ended).to.equal('clean')
    agent.destroy()
    expect(client.text).to.equal(':\n\ndata: one\n\ndata: two\n\n')
    expect(errors[0]).to.have.property('code', 'ERR_SSE_NOT_OPEN')
  })
})

describe('a client that left before the handler got to open', () => {
  it('does no harm', async () => {
    const results: unknown[] = []
    const readable = Readable.from(['x'])
    let asked = false
    let left = (): void => {}
    const gone = new Promise<void>(resolve => (left = resolve))
    const app = koa(sse(), async ctx => {
      asked = true
      await gone
      expect(ctx.sse.open()).to.equal(ctx.sse)
      results.push(await ctx.sse.send('x'), await ctx.sse.comment('x'), await ctx.sse.pipe(readable), ctx.sse.connected, await ctx.sse.closed)
      results.push(ctx.sse.signal.aborted, readable.destroyed)
    })
    const { url, sockets } = await serve(app)
    connect(url).catch(() => {})
    await until(() => asked)
    for (const socket of sockets) reset(socket)
    await until(() => sockets.size === 0)
    left()
    await until(() => results.length === 7)
    expect(results).to.deep.equal([false, false, undefined, false, 'client', true, true])
    expect(app.errors).to.deep.equal([])
  })
})
