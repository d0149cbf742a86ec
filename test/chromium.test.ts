import { expect } from 'chai'
import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { createSecureServer, type ServerHttp2Session } from 'node:http2'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { buffer } from 'node:stream/consumers'
import Koa, { type Middleware } from 'koa'
import type { BrowserContext, Page } from 'playwright-core'
import { type EventStream, type Newline, sse, type SseEvent, type SseOptions } from '../src/index.ts'
import { inChromium, PATIENCE } from './support/chromium.ts'
import { connect } from './support/client.ts'
import { koa, serve, until } from './support/serve.ts'

/** Long before any heartbeat, and long enough for a machine that does other things too. */
const AT_ONCE = 2_000

const PAGE = `<!doctype html><title>test</title><link rel="icon" href="data:,"><script>
  const log = []
  let source
  const listen = (path, ...types) => {
    source = new EventSource(path)
    for (const type of ['message', ...types]) source.addEventListener(type, ({ type, data, lastEventId }) => log.push([type, data, lastEventId]))
    source.addEventListener('error', () => log.push(['error', source.readyState]))
    source.addEventListener('open', () => log.push(['open']))
  }
</script>`

/** A page at every path but /events, where the stream is. */
const page: Middleware = async (ctx, next) => {
  if (ctx.path === '/events') return next()
  ctx.body = PAGE
}

/** An endless source that tells whether it was released. */
const idle = (): { source: (signal: AbortSignal) => AsyncGenerator<string>; released: () => boolean } => {
  let released = false
  const source = async function* (signal: AbortSignal): AsyncGenerator<string> {
    try {
      yield 'first'
      if (!signal.aborted) await once(signal, 'abort')
    } finally {
      released = true
    }
  }
  return { source, released: () => released }
}

describe('Chromium (pending where none is installed)', function () {
  this.timeout(30_000)
  const browser = inChromium()
  let context: BrowserContext
  let tab: Page

  beforeEach(async () => {
    context = await browser().newContext({ ignoreHTTPSErrors: true })
    context.setDefaultTimeout(PATIENCE)
    tab = await context.newPage()
  })

  afterEach(() => context?.close())

  /** Opens the page of an app; what the page has seen so far is in its `log`. */
  const visit = async (handler: Middleware, options: SseOptions = {}): Promise<{ url: string; errors: unknown[] }> => {
    const app = koa(page, sse({ heartbeat: false, ...options }), handler)
    const { url } = await serve(app)
    await tab.goto(url)
    return { url: `${url}/events`, errors: app.errors }
  }

  const logged = async (count: number): Promise<unknown[][]> => {
    await tab.waitForFunction(`log.length >= ${count}`)
    return tab.evaluate<unknown[][]>('log')
  }

  /** What was logged, but for connections that opened and broke. */
  const events = async (count: number): Promise<unknown[][]> => {
    await tab.waitForFunction(`log.filter(each => each.length === 3).length >= ${count}`)
    return tab.evaluate<unknown[][]>('log.filter(each => each.length === 3)')
  }

  type Visit = (handler: Middleware, options: SseOptions) => Promise<{ errors: unknown[] }>

  /** Lets handlers fail, one after the other, and looks for what onError had to say. */
  const expectLastEvents = async (visit: Visit): Promise<void> => {
    const TIMES = 12
    const fail: (() => void)[] = []
    const { errors } = await visit(
      async ctx => {
        await ctx.sse.send('all is well')
        await new Promise<void>((_, reject) => fail.push(() => reject(new Error('upstream'))))
      },
      { retry: 1, onError: () => ({ event: 'sorry', data: 'try again' }) },
    )
    await tab.evaluate(`listen('/events', 'sorry')`)
    for (let n = 0; n < TIMES; n++) {
      await tab.waitForFunction(`log.filter(each => each[0] === 'message').length > ${n}`)
      fail[n]!()
    }
    await tab.waitForFunction(`log.filter(each => each[0] === 'message').length > ${TIMES}`)
    expect(errors).to.have.lengthOf(TIMES)
    // Chromium drops what it has not handed over yet when a stream breaks, so a cut that follows at once takes the event along.
    // No server can be sure how much later is late enough for a busy machine.
    const seen = (await events(TIMES)).filter(each => each[0] === 'sorry')
    expect(seen.length).to.be.at.least(TIMES - 3)
  }

  describe('its EventSource', () => {
    for (const newline of ['\n', '\r\n', '\r'] as Newline[]) {
      it(`reads types, ids and data of many lines as they are sent, lines ending with ${JSON.stringify(newline)}`, async () => {
        let stream!: EventStream
        await visit(ctx => void (stream = ctx.sse).open(), { newline })
        await tab.evaluate(`listen('/events', 'lines', 'json')`)
        // The head comes before any event.
        expect(await logged(1)).to.deep.equal([['open']])
        const sent = [
          [{ data: 'hello' }, ['message', 'hello', '']],
          [{ event: 'lines', id: '1', data: 'one\ntwo\r\nthree\rfour\n' }, ['lines', 'one\ntwo\nthree\nfour\n', '1']],
          [{ data: '' }, ['message', '', '1']],
          [{ event: 'json', id: 'é日😀', data: { text: 'a\nb\u2028c' } }, ['json', '{"text":"a\\nb\u2028c"}', 'é日😀']],
          [{ id: '', data: 'again' }, ['message', 'again', '']],
          [{ id: '0', data: '0' }, ['message', '0', '0']],
        ] as const
        for (const [n, [event, seen]] of sent.entries()) {
          await stream.send(event)
          expect((await logged(n + 2))[n + 1]).to.deep.equal(seen)
        }
      })
    }

    it('reads no forged event, and all characters', async () => {
      const hostile = [
        '\n\nevent: forged\ndata: x\n\n',
        '\r\revent: forged\rdata: x\r\r',
        'x\r\nid: forged\r\nretry: 1',
        '\uFEFFdata: x',
        ' two  spaces ',
        'nul\0',
        '\uD800lone',
        '\u2028\u2029\u0085\v\f',
        '😀日本',
        '\n',
      ]
      await visit(
        ctx => void ctx.sse.pipe([...hostile, ...hostile.map(data => ({ event: 'real', id: 'real', data, comment: data }))], { end: false }),
      )
      await tab.evaluate(`listen('/events', 'real', 'forged')`)
      const data = hostile.map(each => each.replaceAll('\r\n', '\n').replaceAll('\r', '\n').replaceAll('\uD800', '\uFFFD'))
      expect(await events(2 * hostile.length)).to.deep.equal([
        ...data.map(each => ['message', each, '']),
        ...data.map(each => ['real', each, 'real']),
      ])
    })

    it('comes back by itself after the time it was told, with its last id as UTF-8', async () => {
      const ids: unknown[] = []
      const raw: unknown[] = []
      const times: number[] = []
      await visit(
        ctx => {
          times.push(performance.now())
          raw.push(ctx.get('Last-Event-ID'))
          const n = ids.push(ctx.sse.lastEventId)
          const id = ['plain-1', 'é日', '', 'last'][n - 1]!
          void ctx.sse.pipe([{ id, data: `connection ${n}` }], { end: n < 4 })
        },
        { retry: 100 },
      )
      await tab.evaluate(`listen('/events')`)
      expect((await events(4)).map(([, data, id]) => [data, id])).to.deep.equal([
        ['connection 1', 'plain-1'],
        ['connection 2', 'é日'],
        ['connection 3', ''],
        ['connection 4', 'last'],
      ])
      expect(ids).to.deep.equal([undefined, 'plain-1', 'é日', undefined])
      expect(raw[2]).to.equal(Buffer.from('é日').toString('latin1'))
      // 3 s if it had not been told.
      for (const [n, time] of times.slice(1).entries()) expect(time - times[n]!).to.be.within(95, 2_500)
    })

    it('comes back by itself when a source fails', async () => {
      const ids: unknown[] = []
      const failure = new Error('upstream')
      const fail: (() => void)[] = []
      const { errors } = await visit(
        ctx => {
          const n = ids.push(ctx.sse.lastEventId)
          const failed = new Promise<void>((_, reject) => fail.push(() => reject(failure)))
          const failing = async function* (): AsyncGenerator<SseEvent> {
            yield { id: `id-${n}`, data: `connection ${n}` }
            await failed
          }
          void ctx.sse.pipe(failing())
        },
        { retry: 10 },
      )
      await tab.evaluate(`listen('/events')`)
      for (const n of [1, 2]) {
        await events(n)
        fail[n - 1]!()
      }
      expect((await events(3)).map(each => each[1])).to.deep.equal(['connection 1', 'connection 2', 'connection 3'])
      expect(ids).to.deep.equal([undefined, 'id-1', 'id-2'])
      expect(errors).to.deep.equal([failure, failure])
    })

    it('reads the last event of a handler that fails', () => expectLastEvents(visit))

    it('gives up for good at a 503', async () => {
      const { url } = await visit(ctx => void ctx.sse.send('welcome'), { maxStreams: 1 })
      const first = await connect(url)
      expect((await first.event()).data).to.equal('welcome')
      await tab.evaluate(`listen('/events')`)
      expect(await logged(1)).to.deep.equal([['error', 2]])
    })

    it('comes back until there is room when whenFull is retry', async () => {
      const { url } = await visit(
        ctx => {
          ctx.sse.open()
          void ctx.sse.send('welcome')
        },
        { maxStreams: 1, whenFull: 'retry', retry: 10 },
      )
      const first = await connect(url)
      expect((await first.event()).data).to.equal('welcome')
      await tab.evaluate(`listen('/events')`)
      expect((await logged(4)).slice(0, 4)).to.deep.equal([['open'], ['error', 0], ['open'], ['error', 0]])
      first.destroy()
      expect(await events(1)).to.deep.equal([['message', 'welcome', '']])
    })

    it('gives up at an ordinary answer before the stream: 204, 401, another type', async () => {
      await visit(ctx => {
        if (ctx.query['status'] === '200') ctx.body = 'no stream'
        else ctx.status = Number(ctx.query['status'])
      })
      for (const [n, status] of [204, 401, 200].entries()) {
        await tab.evaluate(`listen('/events?status=${status}')`)
        expect((await logged(n + 1))[n]).to.deep.equal(['error', 2])
      }
    })

    const leaves: [how: string, leave: () => Promise<unknown>][] = [
      ['is closed', () => tab.evaluate('source.close()')],
      ['has its tab closed', () => tab.close()],
      ['has its page left', () => tab.goto('about:blank')],
    ]
    for (const [how, leave] of leaves) {
      it(`lets the server release the source at once when it ${how}`, async () => {
        const { source, released } = idle()
        let stream!: EventStream
        const { errors } = await visit(ctx => void (stream = ctx.sse).pipe(source))
        await tab.evaluate(`listen('/events')`)
        expect(await events(1)).to.deep.equal([['message', 'first', '']])
        expect([stream.connected, released()]).to.deep.equal([true, false])
        await leave()
        await until(released, AT_ONCE)
        expect(await stream.closed).to.equal('client')
        expect(stream.connected).to.equal(false)
        expect(errors).to.deep.equal([])
      })
    }
  })

  describe('its fetch', () => {
    const ASK = `
      globalThis.abort = new AbortController()
      globalThis.ask = async question => {
        const response = await fetch('/events', { method: 'POST', body: question, signal: abort.signal })
        const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
        log.push([response.status, response.headers.get('content-type')])
        try {
          for (;;) {
            const { done, value } = await reader.read()
            log.push([done ? 'done' : value])
            if (done) return
          }
        } catch (error) {
          log.push([error.name])
        }
      }`

    it('reads the stream that answers a POST, event by event', async () => {
      let stream!: EventStream
      await visit(async ctx => {
        const question = (await buffer(ctx.req)).toString()
        stream = ctx.sse
        await stream.send(`you asked ${question}`)
      })
      await tab.evaluate(`${ASK}; void ask('why?')`)
      // The first bytes and the first event may come as one piece, or as two.
      await tab.waitForFunction(`log.slice(1).map(each => each[0]).join('') === ':\\n\\ndata: you asked why?\\n\\n'`)
      const before = (await tab.evaluate<unknown[]>('log')).length
      expect((await logged(1))[0]).to.deep.equal([200, 'text/event-stream'])
      for (const n of [0, 1, 2]) {
        await stream.send({ id: String(n), data: 'because' })
        expect((await logged(before + n + 1))[before + n]).to.deep.equal([`id: ${n}\ndata: because\n\n`])
      }
      stream.close()
      expect((await logged(before + 4))[before + 3]).to.deep.equal(['done'])
    })

    it('can tell a source that failed from one that ended', async () => {
      const { errors } = await visit(async ctx => {
        await ctx.sse.send('half')
        throw new Error('upstream')
      })
      await tab.evaluate(`${ASK}; void ask('')`)
      await tab.waitForFunction(`log.at(-1)?.[0] === 'TypeError'`)
      expect(errors).to.have.lengthOf(1)
    })

    it('lets the server release the source at once when it is aborted', async () => {
      const { source, released } = idle()
      let stream!: EventStream
      // Nobody reads the body of the request.
      const { errors } = await visit(ctx => void (stream = ctx.sse).pipe(source))
      await tab.evaluate(`${ASK}; void ask('x'.repeat(10_000))`)
      await tab.waitForFunction(`log.at(-1)?.[0].endsWith?.('data: first\\n\\n')`)
      await tab.evaluate('abort.abort()')
      await until(released, AT_ONCE)
      expect(await stream.closed).to.equal('client')
      expect(errors).to.deep.equal([])
    })
  })

  describe('over HTTP/2 (pending without openssl)', () => {
    let key: Buffer
    let cert: Buffer
    let close: (() => Promise<void>) | undefined

    before(function () {
      const folder = mkdtempSync(join(tmpdir(), 'koa-sse-'))
      const files = ['-keyout', join(folder, 'key.pem'), '-out', join(folder, 'cert.pem')]
      try {
        execFileSync(
          'openssl',
          ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2', '-subj', '/CN=localhost', ...files],
          {
            stdio: 'ignore',
          },
        )
        key = readFileSync(join(folder, 'key.pem'))
        cert = readFileSync(join(folder, 'cert.pem'))
      } catch {
        this.skip()
      } finally {
        rmSync(folder, { recursive: true })
      }
    })

    afterEach(async () => {
      await close?.()
      close = undefined
    })

    const visitSecurely = async (handler: Middleware, options: SseOptions = {}): Promise<{ sessions: ServerHttp2Session[]; errors: unknown[] }> => {
      const app = Object.assign(new Koa(), { errors: [] as unknown[] })
      app.on('error', error => app.errors.push(error))
      app
        .use(page)
        .use(sse({ heartbeat: false, ...options }))
        .use(handler)
      const callback = app.callback()
      const server = createSecureServer({ key, cert }, (req, res) => void callback(req, res))
      const sessions: ServerHttp2Session[] = []
      server.on('session', session => sessions.push(session))
      await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
      close = async () => {
        const closed = new Promise(resolve => server.close(resolve))
        for (const session of sessions) session.destroy()
        await closed
      }
      await tab.goto(`https://127.0.0.1:${(server.address() as AddressInfo).port}`)
      return { sessions, errors: app.errors }
    }

    it('has more streams at once than the six of HTTP/1.1, on one connection', async () => {
      const streams: EventStream[] = []
      const { sessions, errors } = await visitSecurely(ctx => void streams.push(ctx.sse.open()))
      await tab.evaluate(`for (let n = 0; n < 20; n++) listen('/events')`)
      await tab.waitForFunction(`log.filter(each => each[0] === 'open').length === 20`)
      await Promise.all(streams.map((stream, n) => stream.send(String(n))))
      const data = (await events(20)).map(each => Number(each[1]))
      expect(data.toSorted((a, b) => a - b)).to.deep.equal(Array.from({ length: 20 }, (_, n) => n))
      // One without credentials may serve what asks for none.
      expect(sessions.filter(session => !session.destroyed).length).to.be.at.most(2)
      await tab.close()
      expect(await Promise.all(streams.map(stream => stream.closed))).to.deep.equal(streams.map(() => 'client'))
      expect(errors).to.deep.equal([])
    })

    it('lets the server release the source at once when an EventSource is closed', async () => {
      const { source, released } = idle()
      let stream!: EventStream
      const { errors } = await visitSecurely(ctx => void (stream = ctx.sse).pipe(source))
      await tab.evaluate(`listen('/events')`)
      expect(await events(1)).to.deep.equal([['message', 'first', '']])
      await tab.evaluate('source.close()')
      await until(released, AT_ONCE)
      expect(await stream.closed).to.equal('client')
      expect(errors).to.deep.equal([])
    })

    it('comes back by itself, with its last id, when the stream ends and when a handler fails', async () => {
      const ids: unknown[] = []
      let fail!: () => void
      const failure = new Promise<void>((_, reject) => (fail = () => reject(new Error('upstream'))))
      const { errors } = await visitSecurely(
        async ctx => {
          const n = ids.push(ctx.sse.lastEventId)
          await ctx.sse.send({ id: `é日-${n}`, data: `connection ${n}` })
          if (n === 1) ctx.sse.close()
          if (n === 2) await failure
        },
        { retry: 10 },
      )
      await tab.evaluate(`listen('/events')`)
      await events(2)
      fail()
      expect((await events(3)).map(each => each[1])).to.deep.equal(['connection 1', 'connection 2', 'connection 3'])
      expect(ids).to.deep.equal([undefined, 'é日-1', 'é日-2'])
      expect(errors).to.have.lengthOf(1)
    })

    it('reads the last event of a handler that fails', () => expectLastEvents(visitSecurely))
  })
})
