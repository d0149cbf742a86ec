import { expect } from 'chai'
import { once } from 'node:events'
import { createConnection } from 'node:net'
import { mock } from 'node:test'
import { constants } from 'node:zlib'
import type { Context } from 'koa'
import compress from 'koa-compress'
import supertest from 'supertest'
import { type CloseReason, EventStream, sse, type SseEvent, type SseOptions } from '../src/index.ts'
import { connect, type LiveClient } from './support/client.ts'
import { stuck } from './support/idle.ts'
import { koa, serve, until } from './support/serve.ts'

// One `describe` for each row of what aiohttp-sse 2.2.0 does.

/** Answers every request by `handler`. */
const stream = async (handler: (ctx: Context) => unknown, options: SseOptions = {}): Promise<{ url: string; port: number; errors: unknown[] }> => {
  const app = koa(sse(options), async ctx => {
    await handler(ctx)
  })
  const { url, port } = await serve(app)
  return { url, port, errors: app.errors }
}

/** A stream that is open, from both ends. */
const open = async (options: SseOptions = {}): Promise<{ sse: EventStream; client: LiveClient; errors: unknown[]; url: string }> => {
  const streams: EventStream[] = []
  const { url, errors } = await stream(ctx => streams.push(ctx.sse.open()), options)
  const client = await connect(url)
  return { sse: streams[0]!, client, errors, url }
}

describe('aiohttp-sse: async with sse_response(), send(data, id, event, retry)', () => {
  it('sends within a block, and ends the stream with it', async () => {
    const { url, errors } = await stream(async ctx => {
      await using stream = ctx.sse
      expect(await stream.send({ data: 'foo', id: 'xyz', event: 'bar', retry: 1 })).to.equal(true)
      await stream.send('the last')
    })
    const client = await connect(url)
    expect(await client.ended).to.equal('clean')
    expect(client.text).to.equal(':\n\nid: xyz\nevent: bar\ndata: foo\nretry: 1\n\ndata: the last\n\n')
    expect(errors).to.deep.equal([])
  })

  it('ends the stream when the block throws, so that the client can tell', async () => {
    const failure = new Error('in the block')
    const { url, errors } = await stream(async ctx => {
      const stream = ctx.sse
      await stream.send('foo')
      throw failure
    })
    const client = await connect(url)
    expect(await client.ended).to.equal('cut')
    expect(client.events.map(event => event.data)).to.deep.equal(['foo'])
    expect(errors).to.deep.equal([failure])
  })
})

describe('aiohttp-sse: the four sends of its suite', () => {
  it('are the same, byte for byte', async () => {
    const { url } = await stream(
      async ctx => {
        await ctx.sse.send('foo')
        await ctx.sse.send({ data: 'foo', event: 'bar' })
        await ctx.sse.send({ data: 'foo', event: 'bar', id: 'xyz' })
        await ctx.sse.send({ data: 'foo', event: 'bar', id: 'xyz', retry: 1 })
        ctx.sse.close()
      },
      { newline: '\r\n' },
    )
    const { text } = await supertest(url).get('/').expect(200)
    expect(text).to.equal(
      ':\r\n\r\n' +
        'data: foo\r\n\r\n' +
        'event: bar\r\ndata: foo\r\n\r\n' +
        'id: xyz\r\nevent: bar\r\ndata: foo\r\n\r\n' +
        'id: xyz\r\nevent: bar\r\ndata: foo\r\nretry: 1\r\n\r\n',
    )
  })
})

describe('aiohttp-sse: sep × the line ends of data', () => {
  const NEWLINES = ['\n', '\r', '\r\n'] as const
  for (const newline of NEWLINES) {
    for (const between of NEWLINES) {
      it(`splits data at ${JSON.stringify(between)} into lines that end with ${JSON.stringify(newline)}`, async () => {
        const { url } = await stream(
          async ctx => {
            await ctx.sse.send(['foo', 'bar', 'xyz'].join(between))
            ctx.sse.close()
          },
          { newline },
        )
        const { text } = await supertest(url).get('/').expect(200)
        expect(text).to.equal([':', '', 'data: foo', 'data: bar', 'data: xyz', '', ''].join(newline))
      })
    }
  }

  it('uses LF by default', async () => {
    const { url } = await stream(ctx => ctx.sse.pipe(['foo']))
    expect((await supertest(url).get('/')).text).to.equal(':\n\ndata: foo\n\n')
  })

  it('refuses any other', () => {
    for (const newline of ['', ' ', '\n\n', '\n\r', '\u2028', 'xyz', null, 10, true]) {
      expect(() => sse({ newline: newline as never }), JSON.stringify(newline)).to.throw(TypeError, '`newline`')
    }
  })
})

describe('aiohttp-sse: headers, status, reason', () => {
  it('sets its headers, and keeps those of the handler', async () => {
    const { url } = await stream(ctx => {
      ctx.set('X-SSE', 'koa-sse')
      ctx.sse.open().close()
    })
    const { headers, status } = await connect(url, { headers: { connection: 'keep-alive' } })
    expect(status).to.equal(200)
    expect(headers).to.include({
      'content-type': 'text/event-stream',
      'cache-control': 'no-cache, no-transform',
      connection: 'keep-alive',
      'x-accel-buffering': 'no',
      'transfer-encoding': 'chunked',
      'x-sse': 'koa-sse',
    })
    expect(headers).not.to.have.property('content-length')
  })

  it('lets the handler choose status and reason', async () => {
    const { url } = await stream(ctx => {
      ctx.status = 202
      ctx.message = 'Be my guest'
      ctx.sse.open().close()
    })
    const { status, response } = await connect(url)
    expect([status, response.statusMessage]).to.deep.equal([202, 'Be my guest'])
  })

  it('lets what the handler set win', async () => {
    const mine = {
      'Content-Type': 'text/event-stream; charset=utf-8',
      'Cache-Control': 'no-store',
      'X-Accel-Buffering': 'yes',
      Connection: 'close',
    }
    const { url } = await stream(ctx => {
      ctx.set(mine)
      ctx.sse.open().close()
    })
    const { headers } = await connect(url)
    for (const [name, value] of Object.entries(mine)) expect(headers[name.toLowerCase()], name).to.equal(value)
  })
})

describe('aiohttp-sse: the head is sent at prepare()', () => {
  it('sends the head and a first byte at open, before any event', async () => {
    const { sse: stream, client } = await open()
    expect(client.status).to.equal(200)
    expect(await client.next()).to.deep.equal({ comment: '' })
    expect(client.text).to.equal(':\n\n')
    expect([stream.eventsSent, stream.bytesWritten]).to.deep.equal([0, 3])
  })

  it('sends retry as the first bytes, where it is set', async () => {
    const { client } = await open({ retry: 0 })
    await until(() => client.retry === 0)
    expect(client.text).to.equal('retry: 0\n\n')
  })
})

describe('aiohttp-sse: any method', () => {
  for (const method of ['GET', 'POST', 'PUT', 'DELETE', 'PATCH', 'OPTIONS']) {
    it(`streams to ${method}`, async () => {
      const { url } = await stream(ctx => ctx.sse.pipe([ctx.method]))
      const client = await connect(url, { method })
      expect(client.status).to.equal(200)
      expect(await client.ended).to.equal('clean')
      expect(client.text).to.equal(`:\n\ndata: ${method}\n\n`)
    })
  }

  it('answers HEAD with the head alone, and calls no source', async () => {
    let calls = 0
    let reason: CloseReason | undefined
    const made = (async function* () {
      calls++
      yield 'never'
    })()
    const { url, errors } = await stream(async ctx => {
      const closed = ctx.sse.closed
      expect(await ctx.sse.send('foo')).to.equal(false)
      await ctx.sse.pipe(() => {
        calls++
        return ['foo']
      })
      await ctx.sse.pipe(made)
      reason = await closed
    })
    const response = await supertest(url).head('/').expect(200).expect('Content-Type', 'text/event-stream')
    expect(response.text ?? '').to.equal('')
    await until(() => reason !== undefined)
    expect(reason).to.equal('closed')
    expect(calls).to.equal(0)
    expect(await made.next()).to.deep.equal({ done: true, value: undefined })
    expect(errors).to.deep.equal([])
  })

  it('leaves the connection in order after a HEAD', async () => {
    const { port } = await stream(ctx => ctx.sse.pipe(['foo']))
    // Node's own client does not use a connection again after a HEAD that has no length.
    const socket = createConnection(port, '127.0.0.1')
    let text = ''
    socket.setEncoding('utf8').on('data', (chunk: string) => (text += chunk))
    const ask = async (method: string): Promise<string> => {
      const from = text.length
      socket.write(`${method} / HTTP/1.1\r\nHost: localhost\r\n\r\n`)
      await until(() => text.endsWith(method === 'HEAD' ? '\r\n\r\n' : '\r\n0\r\n\r\n') && text.length > from)
      return text.slice(from)
    }
    for (let round = 0; round < 2; round++) {
      expect(await ask('HEAD')).to.match(/^HTTP\/1\.1 200 OK\r\n([\w-]+: [^\r]+\r\n)+\r\n$/)
      expect(await ask('GET')).to.match(/^HTTP\/1\.1 200 OK\r\n([\w-]+: [^\r]+\r\n)+\r\ne\r\n:\n\ndata: foo\n\n\r\n0\r\n\r\n$/)
    }
    socket.destroy()
  })
})

describe('aiohttp-sse: CR and LF in id and event', () => {
  it('are refused, and nothing is written', async () => {
    const { sse: stream, client } = await open()
    const before = stream.bytesWritten
    for (const bad of ['a\nb', 'a\rb', 'a\r\nb', '\n', '\r', 'xyz\n\ndata: forged']) {
      expect(() => stream.send({ id: bad, data: 'foo' }), JSON.stringify(bad)).to.throw(TypeError, '`id`')
      expect(() => stream.send({ event: bad, data: 'foo' }), JSON.stringify(bad)).to.throw(TypeError, '`event`')
    }
    expect(stream.bytesWritten).to.equal(before)
    await stream.send('well')
    expect(await client.event()).to.deep.equal({ data: 'well', id: undefined, event: undefined })
    expect(client.text).to.equal(':\n\ndata: well\n\n')
  })
})

describe('aiohttp-sse: retry', () => {
  it('of a wrong kind is a TypeError, and the stream stays usable', async () => {
    const { sse: stream, client, errors } = await open()
    for (const retry of ['one', '1', true, false, null, -1, 1.5, NaN, Infinity, 2 ** 53, 1n, {}, []]) {
      expect(() => stream.send({ data: 'foo', retry: retry as never }), String(retry)).to.throw(TypeError, '`retry`')
    }
    expect(stream.connected).to.equal(true)
    await stream.send({ data: 'foo', retry: 0 })
    await client.event()
    expect(client.text).to.equal(':\n\ndata: foo\nretry: 0\n\n')
    expect(errors).to.deep.equal([])
  })
})

describe('aiohttp-sse: ping', () => {
  it('is a comment after a whole period without a byte, and none before', async () => {
    const began = performance.now()
    const { sse: stream, client } = await open({ heartbeat: 40 })
    expect(await client.next()).to.deep.equal({ comment: '' })
    expect(await client.next()).to.deep.equal({ comment: 'ping' })
    expect(performance.now() - began).to.be.at.least(40)
    expect(client.text).to.equal(':\n\n: ping\n\n')
    const sent = performance.now()
    await stream.send('foo')
    await client.event()
    await client.next()
    expect(performance.now() - sent).to.be.at.least(40)
    expect(client.text).to.equal(':\n\n: ping\n\ndata: foo\n\n: ping\n\n')
  })

  it('says what it is told, and counts as no event', async () => {
    const { sse: stream, client } = await open({ heartbeat: 10, heartbeatText: 'still there' })
    await client.next()
    for (let n = 0; n < 3; n++) expect(await client.next()).to.deep.equal({ comment: 'still there' })
    expect(stream.eventsSent).to.equal(0)
  })

  it('has a period of any number of milliseconds', async () => {
    for (const heartbeat of [1, 12.5, 0.5]) {
      const { sse: stream, client } = await open({ heartbeat })
      await client.next()
      expect(await client.next()).to.deep.equal({ comment: 'ping' })
      stream.close()
    }
  })

  it('comes every 15 s by default, and false turns it off', async () => {
    mock.timers.enable({ apis: ['setInterval'] })
    try {
      const { sse: stream } = await open()
      const { sse: silent } = await open({ heartbeat: false })
      mock.timers.tick(14_999)
      expect(stream.bytesWritten).to.equal(3)
      mock.timers.tick(3_751)
      expect(stream.bytesWritten).to.equal(':\n\n: ping\n\n'.length)
      mock.timers.tick(600_000)
      expect(silent.bytesWritten).to.equal(3)
      stream.close()
      silent.close()
    } finally {
      mock.timers.reset()
    }
  })

  it('refuses a period that is no number, or no period', () => {
    for (const heartbeat of ['15', 'ten', true, null, {}, [], 15n]) {
      expect(() => sse({ heartbeat: heartbeat as never }), String(heartbeat)).to.throw(TypeError, '`heartbeat`')
    }
    for (const heartbeat of [0, -1, -0.5, NaN, Infinity, -Infinity]) {
      expect(() => sse({ heartbeat }), String(heartbeat)).to.throw(RangeError, '`heartbeat`')
    }
    expect(() => sse({ heartbeatText: 5 as never })).to.throw(TypeError, '`heartbeatText`')
  })
})

describe('aiohttp-sse: ping ends by itself when the connection is lost', () => {
  it('ends at once, for that stream alone', async () => {
    const streams: EventStream[] = []
    const { url } = await stream(ctx => streams.push(ctx.sse.open()), { heartbeat: 10 })
    const [first, second] = [await connect(url), await connect(url)]
    first.destroy()
    expect(await streams[0]!.closed).to.equal('client')
    const before = streams[0]!.bytesWritten
    // The other's pings are the clock.
    await second.next()
    for (let n = 0; n < 5; n++) expect(await second.next()).to.deep.equal({ comment: 'ping' })
    expect(streams[0]!.bytesWritten).to.equal(before)
    expect(streams[1]!.connected).to.equal(true)
  })
})

describe('aiohttp-sse: is_connected()', () => {
  it('is false before, true inside, false after', async () => {
    const states: boolean[] = []
    const { url } = await stream(async ctx => {
      states.push(ctx.sse.connected)
      await ctx.sse.send('foo')
      states.push(ctx.sse.connected)
      ctx.sse.close()
      states.push(ctx.sse.connected)
    })
    await supertest(url).get('/')
    expect(states).to.deep.equal([false, true, false])
  })

  for (const leave of ['destroy', 'fin', 'rst'] as const) {
    it(`is false at once when the client leaves by ${leave}`, async () => {
      const { sse: stream, client } = await open({ heartbeat: false })
      expect(stream.connected).to.equal(true)
      client[leave]()
      await once(stream.signal, 'abort')
      expect(stream.connected).to.equal(false)
    })
  }
})

describe('aiohttp-sse: stop_streaming() and wait()', () => {
  it('close the stream and wait for its end, from another task', async () => {
    const { sse: stream, client } = await open()
    const waiting = [stream.closed, stream.closed, once(stream.signal, 'abort')]
    void stream.send('the last')
    stream.close()
    stream.close()
    expect((await Promise.all(waiting)).slice(0, 2)).to.deep.equal(['closed', 'closed'])
    expect(await client.ended).to.equal('clean')
    expect(client.events.map(event => event.data)).to.deep.equal(['the last'])
    expect(await stream.closed).to.equal('closed')
  })

  it('close is allowed before open; then the response is the handler’s own', async () => {
    const { url, errors } = await stream(async ctx => {
      const { closed } = ctx.sse
      ctx.sse.close()
      expect(await closed).to.equal('closed')
      expect(await ctx.sse.send('foo')).to.equal(false)
      ctx.body = 'no stream'
    })
    await supertest(url)
      .get('/')
      .expect(200, 'no stream')
      .expect('Content-Type', /^text\/plain/)
    expect(errors).to.deep.equal([])
  })

  it('waiting is allowed before open, too', async () => {
    let reason: Promise<CloseReason> | undefined
    const { url } = await stream(async ctx => {
      reason = ctx.sse.closed
      await ctx.sse.send('foo')
    })
    const client = await connect(url)
    await client.event()
    client.destroy()
    expect(await reason).to.equal('client')
  })
})

describe('aiohttp-sse: send on a lost connection', () => {
  it('resolves false, throws nothing, and is no error of the app', async () => {
    const { sse: stream, client, errors } = await open()
    client.destroy()
    await stream.closed
    expect(await Promise.all([stream.send('foo'), stream.comment('foo'), stream.send({ id: 'x' })])).to.deep.equal([false, false, false])
    expect(errors).to.deep.equal([])
  })

  it('resolves false where it waits for room, too', async () => {
    const { sse: stream, client, errors } = await open({ highWaterMark: 1_000, maxBuffer: 100_000_000 })
    client.pause()
    const sends: Promise<boolean>[] = []
    // More than the kernel takes.
    for (let n = 0; n < 20; n++) sends.push(stream.send('x'.repeat(1_000_000)))
    client.fin()
    expect(await stream.closed).to.equal('client')
    const results = await Promise.all(sends)
    expect(results.at(-1)).to.equal(false)
    expect(errors).to.deep.equal([])
  })
})

describe('aiohttp-sse: last_event_id', () => {
  const ids = async (path: string, headers: Record<string, string> = {}): Promise<unknown> => {
    let id: unknown = 'not asked'
    const { url } = await stream(ctx => {
      id = ctx.sse.lastEventId
      expect(ctx.sse.open().lastEventId).to.equal(id)
      ctx.sse.close()
    })
    const client = await connect(url + path, { headers })
    await client.ended
    return id
  }

  it('is the header, known before open', async () => {
    expect(await ids('/', { 'Last-Event-ID': '42' })).to.equal('42')
    expect(await ids('/', { 'last-event-id': '0' })).to.equal('0')
    expect(await ids('/')).to.equal(undefined)
  })

  it('is decoded as UTF-8', async () => {
    expect(await ids('/', { 'Last-Event-ID': Buffer.from('é日').toString('latin1') })).to.equal('é日')
    expect(await ids('/', { 'Last-Event-ID': 'caf\u00e9' })).to.equal('café')
  })

  it('falls back to the query', async () => {
    expect(await ids('/?lastEventId=a%20b')).to.equal('a b')
    expect(await ids('/?last_event_id=7')).to.equal('7')
    expect(await ids('/?lastEventId=7', { 'Last-Event-ID': '8' })).to.equal('8')
  })
})

describe('aiohttp-sse: response_cls', () => {
  class JsonStream extends EventStream {
    sendJson(data: unknown, rest: Omit<SseEvent, 'data'> = {}): Promise<boolean> {
      return this.send({ ...rest, data: JSON.stringify(data) })
    }
  }

  it('may be a subclass with methods of its own', async () => {
    const { url } = await stream(
      async ctx => {
        expect(ctx.sse).to.be.instanceOf(JsonStream)
        await (ctx.sse as JsonStream).sendJson({ foo: 'bar' }, { id: 'xyz' })
        ctx.sse.close()
      },
      { Stream: JsonStream },
    )
    expect((await supertest(url).get('/')).text).to.equal(':\n\nid: xyz\ndata: {"foo":"bar"}\n\n')
  })

  it('may be nothing else', () => {
    for (const Stream of [Map, Array, EventTarget, {}, null, 'EventStream', () => {}]) {
      expect(() => sse({ Stream: Stream as never }), String(Stream)).to.throw(TypeError, '`Stream`')
    }
  })
})

describe('aiohttp-sse: compression', () => {
  it('does not happen by default, and does by choice', async () => {
    const app = koa(compress({ threshold: 0 }), sse(), ctx => {
      if (ctx.path === '/compressed') {
        ctx.set('Cache-Control', 'no-cache')
        ctx.compress = { gzip: { flush: constants.Z_SYNC_FLUSH } }
      }
      void ctx.sse.pipe(['foo'])
    })
    const { url } = await serve(app)
    const plain = await supertest(url).get('/').set('Accept-Encoding', 'gzip').expect(200)
    expect(plain.headers).not.to.have.property('content-encoding')
    const gzip = await supertest(url).get('/compressed').set('Accept-Encoding', 'gzip').expect('Content-Encoding', 'gzip')
    expect([plain.text, gzip.text]).to.deep.equal([':\n\ndata: foo\n\n', ':\n\ndata: foo\n\n'])
  })
})

describe('aiohttp-sse: the user’s task is cancelled while it waits', () => {
  it('aborts the signal, and settles pipe() and closed', async () => {
    const log: string[] = []
    const { url, errors } = await stream(async ctx => {
      const { signal, closed } = ctx.sse
      signal.addEventListener('abort', () => log.push('abort'))
      await ctx.sse.pipe(async function* (own) {
        expect(own).to.equal(signal)
        yield 'foo'
        try {
          await new Promise((_, reject) => own.addEventListener('abort', () => reject(own.reason as Error)))
        } finally {
          log.push('released')
        }
      })
      log.push('piped', await closed)
    })
    const client = await connect(url)
    expect((await client.event()).data).to.equal('foo')
    client.destroy()
    await until(() => log.length === 4)
    expect(log).to.have.members(['abort', 'released', 'piped', 'client'])
    expect(log[0]).to.equal('abort')
    expect(errors).to.deep.equal([])
  })

  it('settles them for a source that ignores the signal, too', async () => {
    const { source, returned } = stuck()
    let piped: Promise<void> | undefined
    const { url, errors } = await stream(ctx => void (piped = ctx.sse.pipe(source)))
    const client = await connect(url)
    client.destroy()
    await until(() => piped !== undefined)
    await piped
    expect(returned()).to.equal(1)
    expect(errors).to.deep.equal([])
  })
})

describe('aiohttp-sse: its examples', () => {
  it('the clock: a page, and a stream that an EventSource reads', async () => {
    const { url } = await stream(async ctx => {
      if (ctx.path === '/') return void (ctx.body = '<script>new EventSource("/clock")</script>')
      await ctx.sse.pipe(async function* (signal) {
        for (let tick = 0; !signal.aborted; tick++) {
          yield { id: String(tick), data: `Server Time : ${tick}` }
          await new Promise(resolve => setTimeout(resolve, 5))
        }
      })
    })
    await supertest(url)
      .get('/')
      .expect('Content-Type', /^text\/html/)
    const client = await connect(`${url}/clock`)
    expect(await client.take(3)).to.deep.equal(['Server Time : 0', 'Server Time : 1', 'Server Time : 2'])
  })

  it('the chat: whoever is there gets what anybody says', async () => {
    const room = new Set<EventStream>()
    const { url } = await stream(async ctx => {
      if (ctx.method === 'POST') {
        for (const stream of room) void stream.send({ event: 'said', data: { text: ctx.query['text'] } })
        return void (ctx.status = 204)
      }
      room.add(ctx.sse.open())
      await ctx.sse.closed
      room.delete(ctx.sse)
    })
    const clients = [await connect(url), await connect(url), await connect(url)]
    await supertest(url).post('/?text=hi').expect(204)
    for (const client of clients) expect(await client.event()).to.deep.equal({ event: 'said', data: '{"text":"hi"}', id: undefined })
    clients[0]!.destroy()
    await until(() => room.size === 2)
    await supertest(url).post('/?text=bye').expect(204)
    for (const client of clients.slice(1)) expect((await client.event()).data).to.equal('{"text":"bye"}')
  })

  it('the graceful shutdown: every stream ends cleanly, and the server can close', async () => {
    const mw = sse()
    const { url, server } = await serve(koa(mw, ctx => void ctx.sse.open()))
    const clients = [await connect(url), await connect(url), await connect(url)]
    expect(mw.size).to.equal(3)
    const closed = new Promise(resolve => server.close(resolve))
    await mw.close({ event: { event: 'bye', data: '' }, retry: 100 })
    for (const client of clients) {
      expect(await client.ended).to.equal('clean')
      expect(client.events).to.deep.equal([{ event: 'bye', data: '', id: undefined }])
      expect(client.retry).to.be.within(100, 200)
    }
    expect(mw.size).to.equal(0)
    server.closeIdleConnections()
    await closed
  })
})
