import { spawn, type ChildProcessByStdio } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { Agent, get } from 'node:http'
import { createConnection } from 'node:net'
import { createInterface } from 'node:readline'
import type { Readable } from 'node:stream'
import { fileURLToPath } from 'node:url'
import { expect } from 'chai'
import type Koa from 'koa'
import type { Middleware } from 'koa'
import { auth } from '../example/auth.ts'
import { board } from '../example/board.ts'
import { channels } from '../example/channels.ts'
import { clock } from '../example/clock.ts'
import { gallery } from '../example/gallery.ts'
import { writeOn } from '../example/model.ts'
import { progress } from '../example/progress.ts'
import { resumable } from '../example/resumable.ts'
import { shutdown } from '../example/shutdown.ts'
import { tokens } from '../example/tokens.ts'
import { Hub } from '../src/hub.ts'
import { sse } from '../src/middleware.ts'
import { connect, type ConnectOptions, type LiveClient } from './support/client.ts'
import { paced } from './support/paced.ts'
import { signalled } from './support/promises.ts'
import { koa, serve, until } from './support/serve.ts'

type App = Koa & { errors: unknown[] }

/** An app of one example, which counts the generators that were released. */
const start = async (example: (released: () => void) => { routes(): unknown }): Promise<{ app: App; url: string; released: () => number }> => {
  let released = 0
  const app = koa(example(() => released++).routes() as Middleware)
  const { url } = await serve(app)
  return { app, url, released: () => released }
}

const ask = (url: string, body: unknown, options: ConnectOptions = {}): Promise<LiveClient> =>
  connect(`${url}/tokens`, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body), ...options })

function* endless(): Generator<string> {
  for (;;) yield 'x'.repeat(1_000)
}

const json = (data: string): any => JSON.parse(data)

const post = (url: string, body: unknown, headers: Record<string, string> = {}): Promise<Response> =>
  fetch(url, { method: 'POST', headers: { 'Content-Type': 'application/json', ...headers }, body: JSON.stringify(body) })

describe('example/clock', () => {
  it('tells the time of the server, once a second', async () => {
    const { url } = await start(released => clock(undefined, released))
    const client = await connect(`${url}/clock`)
    const [first, second] = [await client.event(), await client.event()]
    expect(first.event).to.equal('time')
    expect(Date.parse(first.data)).to.be.closeTo(Date.now(), 2_000)
    expect(Date.parse(second.data) - Date.parse(first.data)).to.be.within(990, 2_000)
  })

  it('releases its generator when the client leaves, before the next tick', async () => {
    const { app, url, released } = await start(released => clock(undefined, released))
    const client = await connect(`${url}/clock`)
    await client.event()
    expect(released()).to.equal(0)
    client.fin()
    await until(() => released() === 1, 900)
    expect(app.errors).to.deep.equal([])
  })
})

describe('example/progress', () => {
  it('counts up to 100 %, says that it is done, and ends cleanly', async () => {
    const { app, url } = await start(() => progress())
    const client = await connect(`${url}/progress`)
    expect(await client.ended).to.equal('clean')
    const last = client.events.at(-1)
    const steps = client.events.slice(0, -1).map(event => json(event.data))
    const percents = steps.map(step => step.percent as number)
    expect(last).to.include({ event: 'done', data: '' })
    expect(percents).to.deep.equal(Array.from({ length: 26 }, (_, index) => index * 4))
    expect(new Set(steps.map(step => step.step))).to.have.keys('Unpacking', 'Reading', 'Resizing', 'Writing', 'Checking', 'Finished')
    expect(app.errors).to.deep.equal([])
  })

  it('stops without an error when the client leaves', async () => {
    const app = koa()
    let left: unknown
    app.use(async (ctx, next) => {
      await next()
      void ctx.sse.closed.then(reason => (left = reason))
    })
    app.use(progress().routes() as Middleware)
    const { url } = await serve(app)
    const client = await connect(`${url}/progress`)
    await client.event()
    client.rst()
    await until(() => left === 'client')
    expect(app.errors).to.deep.equal([])
  })
})

describe('example/tokens', () => {
  it('answers token by token, and ends cleanly with the answer', async () => {
    const { app, url, released } = await start(released => tokens(undefined, released))
    const client = await ask(url, { prompt: 'Why?' })
    expect(client.status).to.equal(200)
    expect(client.headers['content-type']).to.equal('text/event-stream')
    expect(await client.event()).to.include({ event: 'token', data: 'You ' })
    expect(await client.ended).to.equal('clean')
    const answer = client.events.map(event => event.data).join('')
    expect(answer).to.match(/^You asked: “Why\?”\n\nI am no model/)
    expect(answer).to.match(/cleanly\.$/)
    expect(client.events.length).to.be.greaterThan(50)
    expect(released()).to.equal(1)
    expect(app.errors).to.deep.equal([])
  })

  for (const how of ['fin', 'rst', 'destroy'] as const) {
    it(`releases its generator when the client leaves (${how})`, async () => {
      const { app, url, released } = await start(released => tokens(undefined, released))
      const client = await ask(url, { prompt: 'Why?' })
      await client.take(3)
      expect(released()).to.equal(0)
      client[how]()
      await until(() => released() === 1)
      expect(app.errors).to.deep.equal([])
    })
  }

  it('refuses a request without a prompt, before there is a stream', async () => {
    const { url, released } = await start(released => tokens(undefined, released))
    for (const client of [await ask(url, {}), await ask(url, { prompt: 5 }), await ask(url, undefined, { headers: {} })]) {
      expect(client.status).to.equal(400)
      expect(client.headers['content-type']).to.equal('text/plain; charset=utf-8')
    }
    expect(released()).to.equal(0)
  })
})

describe('example/auth', () => {
  for (const [what, path, headers] of [
    ['without a token', '/auth', {}],
    ['with a token that nobody has', '/auth', { Authorization: 'Bearer token-of-nobody' }],
    ['with a wrong token in the query', '/auth?token=toString', {}],
  ] as const) {
    it(`answers 401 ${what}, and opens no stream`, async () => {
      const { url, released } = await start(released => auth(undefined, released))
      const client = await connect(url + path, { headers })
      expect(client.status).to.equal(401)
      expect(client.headers).to.include({ 'www-authenticate': 'Bearer', 'content-type': 'text/plain; charset=utf-8' })
      expect(await client.ended).to.equal('clean')
      expect(released()).to.equal(0)
    })
  }

  for (const [what, path, headers, user] of [
    ['the Authorization header', '/auth', { Authorization: 'Bearer token-of-ada' }, 'Ada'],
    ['the query', '/auth?token=token-of-grace', {}, 'Grace'],
  ] as const) {
    it(`streams what is for the user whose token is in ${what}`, async () => {
      const { app, url, released } = await start(released => auth(undefined, released))
      const client = await connect(url + path, { headers })
      expect(client.status).to.equal(200)
      const event = await client.event()
      expect(event.event).to.equal('inbox')
      expect(json(event.data)).to.deep.equal({ user, unread: 1 })
      client.destroy()
      await until(() => released() === 1)
      expect(app.errors).to.deep.equal([])
    })
  }
})

describe('example/resumable', () => {
  const answered = async (url: string, prompt: string): Promise<string> => {
    const response = await post(`${url}/answers`, { prompt })
    expect(response.status).to.equal(201)
    return `${url}/answers/${json(await response.text()).id}`
  }
  const words = (client: LiveClient): string[] => client.events.filter(({ event }) => event === 'token').map(({ data }) => data)
  const done = async (client: LiveClient): Promise<void> => {
    while ((await client.event()).event !== 'done');
  }

  it('writes on when its reader leaves, and whoever comes sees all of it, or what is missing', async function () {
    this.timeout(20_000)
    const hub = new Hub()
    const { found, goOn } = paced(10)
    const { app, url, released } = await start(released => resumable(hub, sse(), released, found))
    const answer = await answered(url, 'Why?')

    const first = await connect(answer)
    expect(await first.event()).to.include({ event: 'stream-position', data: '' })
    expect(await first.event()).to.include({ event: 'question', data: 'Why?' })
    await first.take(5)
    first.rst()
    await until(() => hub.count() === 0)

    const reloaded = await connect(answer)
    const back = await connect(answer, { headers: { 'Last-Event-ID': first.events.at(-1)!.id! } })
    expect(await reloaded.event()).to.include({ event: 'stream-position' })
    expect(await reloaded.event()).to.include({ event: 'question' })
    await reloaded.take(5)
    expect(released()).to.equal(0)
    goOn()
    await Promise.all([done(reloaded), done(back)])
    expect(released()).to.equal(1)

    const whole = writeOn('Why?')
    expect(words(reloaded)).to.deep.equal(whole)
    expect([...words(first), ...words(back)]).to.deep.equal(whole)
    const after = await connect(answer)
    await done(after)
    expect(words(after)).to.deep.equal(whole)
    expect(app.errors).to.deep.equal([])
  })

  it('keeps answers apart', async () => {
    const { url } = await start(() => resumable())
    const clients = [await connect(await answered(url, 'One?')), await connect(await answered(url, 'Two?'))]
    const texts = await Promise.all(clients.map(async client => (await client.take(8)).join('')))
    expect(texts[0]).to.match(/^One\?You asked: “One\?”/)
    expect(texts[1]).to.match(/^Two\?You asked: “Two\?”/)
  })

  it('stops writing when the hub closes', async () => {
    const hub = new Hub()
    const { app, url, released } = await start(released => resumable(hub, sse(), released))
    const client = await connect(await answered(url, 'Why?'))
    await client.take(3)
    await hub.close()
    expect(await client.ended).to.equal('clean')
    await until(() => released() === 1)
    expect(app.errors).to.deep.equal([])
  })

  it('refuses a request without a prompt, and a reader of an answer that there is not', async () => {
    const { url } = await start(() => resumable())
    expect((await post(`${url}/answers`, {})).status).to.equal(400)
    expect((await connect(`${url}/answers/4711`)).status).to.equal(404)
  })
})

describe('example/channels', () => {
  const ada = { Authorization: 'Bearer token-of-ada' }
  const running = async (): Promise<{
    app: App
    hub: Hub
    listen: (query: string) => Promise<LiveClient>
    send: (body: unknown) => Promise<string>
  }> => {
    const hub = new Hub()
    const { app, url } = await start(() => channels(hub))
    const listen = async (query: string): Promise<LiveClient> => {
      const client = await connect(`${url}/events${query}`, { headers: ada })
      if (client.status === 200) expect((await client.event()).event).to.equal('stream-position')
      return client
    }
    const send = async (body: unknown): Promise<string> => {
      const response = await post(`${url}/send`, body, ada)
      return `${response.status} ${await response.text()}`
    }
    return { app, hub, listen, send }
  }

  it('sends to the channel that is named, and to no other; without a name to everyone', async () => {
    const { app, listen, send } = await running()
    const [news, both, sport, none] = [
      await listen('?channel_id=news'),
      await listen('?channel_id=news&channel_id=sport'),
      await listen('?channel_id=sport'),
      await listen(''),
    ]
    expect(await send({ channel_id: 'news', data: 'one' })).to.match(/^200 \{"id":"[\w-]+"\}$/)
    expect(await send({ channel_id: 'sport', data: 'two' })).to.match(/^200 /)
    expect(await send({ data: 'all' })).to.match(/^200 /)
    const read = async (client: LiveClient, count: number): Promise<unknown[]> => (await client.take(count)).map(data => json(data).data)
    expect(await read(news, 2)).to.deep.equal(['one', 'all'])
    expect(await read(both, 3)).to.deep.equal(['one', 'two', 'all'])
    expect(await read(sport, 2)).to.deep.equal(['two', 'all'])
    expect(await read(none, 1)).to.deep.equal(['all'])
    expect(json(none.events.at(-1)!.data)).to.deep.equal({ data: 'all', by: 'Ada' })
    expect(app.errors).to.deep.equal([])
  })

  it('answers 404 for a channel that nobody listens to: never, or not any more', async () => {
    const { hub, listen, send } = await running()
    expect(await send({ channel_id: 'news', data: 'x' })).to.equal('404 channel not found')
    const client = await listen('?channel_id=news')
    expect(await send({ channel_id: 'news', data: 'x' })).to.match(/^200 /)
    client.destroy()
    await until(() => hub.count() === 0)
    expect(await send({ channel_id: 'news', data: 'x' })).to.equal('404 channel not found')
    expect([...hub.channels()]).to.deep.equal([])
  })

  it('wants a token for both, opens no stream without one, and refuses rubbish', async () => {
    const { app, hub, listen, send } = await running()
    const { url } = await serve(app)
    expect((await connect(`${url}/events?channel_id=news`)).status).to.equal(401)
    expect((await connect(`${url}/events?channel_id=news&token=token-of-nobody`)).status).to.equal(401)
    expect((await post(`${url}/send`, { data: 'x' })).status).to.equal(401)
    expect((await listen('?channel_id=%00')).status).to.equal(400)
    expect((await listen(`?channel_id=${'x'.repeat(300)}`)).status).to.equal(400)
    expect((await listen(`?${'channel_id=a&'.repeat(101)}`)).status).to.equal(200)
    expect((await listen(`?${Array.from({ length: 101 }, (_, i) => `channel_id=${i}`).join('&')}`)).status).to.equal(400)
    expect(await send({})).to.match(/^400 /)
    expect(await send({ channel_id: 'x'.repeat(300), data: 'x' })).to.match(/^404 /)
    expect(hub.count()).to.equal(1)
  })
})

describe('example/board', () => {
  const running = async (): Promise<{ app: App; hub: Hub; url: string; write: (...texts: string[]) => Promise<void> }> => {
    const hub = new Hub({ history: { events: 5 } })
    const { app, url } = await start(() => board(hub))
    const write = async (...texts: string[]): Promise<void> => {
      for (const text of texts) expect((await post(`${url}/board`, { by: 'Ada', text })).status).to.equal(200)
    }
    return { app, hub, url, write }
  }
  const state = async (url: string): Promise<{ position: string; notes: { by: string; text: string }[] }> =>
    json(await (await fetch(`${url}/board`)).text())
  const texts = async (client: LiveClient, count: number): Promise<string[]> => (await client.take(count)).map(data => json(data).text)

  it('gives a state and the position that belongs to it: what is written in between comes, and nothing twice', async () => {
    const { app, url, write } = await running()
    await write('one', 'two')
    const { position, notes } = await state(url)
    expect(notes).to.deep.equal([
      { by: 'Ada', text: 'one' },
      { by: 'Ada', text: 'two' },
    ])
    await write('three')
    const client = await connect(`${url}/board/events?tab=a&lastEventId=${position}`)
    await write('four')
    expect(await texts(client, 2)).to.deep.equal(['three', 'four'])
    expect(app.errors).to.deep.equal([])
  })

  it('cuts one tab off, for as long as it says; on its return it gets what it missed', async () => {
    const { hub, url, write } = await running()
    const { position } = await state(url)
    const [a, b] = [
      await connect(`${url}/board/events?tab=a&lastEventId=${position}`),
      await connect(`${url}/board/events?tab=b&lastEventId=${position}`),
    ]
    await write('one')
    expect(await texts(a, 1)).to.deep.equal(['one'])
    expect(json(await (await post(`${url}/board/cut?tab=a`, undefined)).text())).to.deep.equal({ cut: 1 })
    expect(await a.ended).to.equal('clean')
    expect(a.retry).to.equal(2_000)
    expect(hub.count('board')).to.equal(1)

    await write('two', 'three')
    const back = await connect(`${url}/board/events?tab=a&lastEventId=${position}`, { headers: { 'Last-Event-ID': a.events.at(-1)!.id! } })
    await write('four')
    expect(await texts(back, 3)).to.deep.equal(['two', 'three', 'four'])
    expect(await texts(b, 4)).to.deep.equal(['one', 'two', 'three', 'four'])
  })

  it('tells a tab that has missed more than is kept, which then reads the state again', async () => {
    const { url, write } = await running()
    await write('one')
    const { position } = await state(url)
    await write('two', 'three', 'four', 'five', 'six', 'seven')
    const client = await connect(`${url}/board/events?tab=a&lastEventId=${position}`)
    const reset = await client.event()
    expect(reset).to.include({ event: 'stream-reset', data: '{"reason":"trimmed"}' })
    const anew = await state(url)
    expect(anew.notes.map(note => note.text)).to.deep.equal(['one', 'two', 'three', 'four', 'five', 'six', 'seven'])
    expect(reset.id).to.equal(anew.position)
    await write('eight')
    expect(await texts(client, 1)).to.deep.equal(['eight'])
  })

  it('keeps the last fifty notes, cuts long ones, and refuses rubbish', async () => {
    const { url, write } = await running()
    await write(...Array.from({ length: 52 }, (_, i) => `${i}`), 'x'.repeat(1_000))
    const { notes } = await state(url)
    expect(notes.length).to.equal(50)
    expect(notes[0]!.text).to.equal('3')
    expect(notes.at(-1)!.text).to.equal('x'.repeat(200))
    for (const body of [{}, { by: 'Ada' }, { by: 1, text: 'x' }]) expect((await post(`${url}/board`, body)).status).to.equal(400)
    expect((await connect(`${url}/board/events?tab=%00`)).status).to.equal(400)
    expect(json(await (await post(`${url}/board/cut?tab=nobody`, undefined)).text())).to.deep.equal({ cut: 0 })
  })
})

describe('example/shutdown', () => {
  it('says farewell to all, ends what is under way, and resolves with the server closed', async () => {
    const { app, hubs, streams } = gallery()
    const { server, url } = await serve(app)
    const { id } = json(await (await post(`${url}/answers`, { prompt: 'Why?' })).text())
    const clients = [
      await connect(`${url}/clock`),
      await connect(`${url}/board/events?tab=a`),
      await connect(`${url}/answers/${id}`),
      await connect(`${url}/counts`),
    ]
    const stalled = await connect(`${url}/progress`)
    stalled.pause()
    for (const client of clients) await client.event()
    await shutdown(server, hubs, streams)
    expect(server.listening).to.equal(false)
    for (const client of clients) {
      expect(await client.ended).to.equal('clean')
      expect(client.events.at(-1)).to.include({ event: 'farewell', data: 'The server restarts.' })
      expect(client.retry).to.be.within(2_000, 4_000)
    }
    expect(new Set(clients.map(client => client.retry)).size).to.be.greaterThan(1)
  })

  for (const path of ['/clock', '/board/events?tab=a']) {
    it(`gives no 503 to a client that waits for the connection which ${path} leaves behind: an EventSource would never come back`, async () => {
      const { app, hubs, streams } = gallery()
      const { server, url } = await serve(app)
      // As a browser, which opens six and no more, does with the seventh request.
      const agent = new Agent({ keepAlive: true, maxSockets: 1 })
      const client = await connect(`${url}${path}`, { agent })
      const waiting = get(`${url}/clock`, { agent })
      const answer = new Promise(resolve => {
        waiting.on('response', response => resolve(response.resume().statusCode))
        waiting.on('error', () => resolve('none'))
      })
      await client.event()
      await shutdown(server, hubs, streams)
      expect(await client.ended).to.equal('clean')
      expect(await answer).to.equal('none')
      agent.destroy()
    })
  }

  it('leaves no connection to the next request that an ordinary one was on, either', async () => {
    const streams = sse()
    const slow = signalled()
    const { server, port, url } = await serve(
      koa(streams, async ctx => {
        if (ctx.path === '/endless') return ctx.sse.pipe(endless())
        await slow.promise
        ctx.body = 'at last'
      }),
    )
    // As long as this one is there, the server is not closed.
    const stalled = await connect(`${url}/endless`)
    stalled.pause()
    const agent = new Agent({ keepAlive: true })
    const answer = once(get({ agent, port, host: '127.0.0.1' }), 'response')
    await once(server, 'request')
    const closed = shutdown(server, [], streams)
    slow.go()
    const [response] = await answer
    const over = once(response.socket, 'close')
    await once(response.resume(), 'end')
    const since = performance.now()
    await over
    expect(performance.now() - since).to.be.below(200)
    stalled.destroy()
    await closed
    agent.destroy()
  })
})

describe('example/gallery', () => {
  const counts = async (client: LiveClient, matches: (counts: any) => boolean): Promise<any> => {
    for (;;) {
      const { data } = await client.event()
      if (matches(json(data))) return json(data)
    }
  }

  it('counts open streams, events and released generators, and streams the counts', async () => {
    const { url } = await serve(gallery().app)
    const watcher = await connect(`${url}/counts`)
    const none = { clock: 0, tokens: 0, auth: 0, resumable: 0 }
    expect(await watcher.event()).to.include({ event: 'process', data: `{"pid":${process.pid}}` })
    expect(json((await watcher.event()).data)).to.deep.equal({ open: 0, events: 0, released: none })

    const clients = [await connect(`${url}/clock`), await ask(url, { prompt: 'Why?' })]
    await counts(watcher, now => now.open === 2 && now.events > 2)
    for (const client of clients) client.destroy()
    const after = await counts(watcher, now => now.open === 0)
    expect(after.released).to.deep.equal({ clock: 1, tokens: 1, auth: 0, resumable: 0 })
  })

  it('counts nothing for a request that was refused', async () => {
    const { url } = await serve(gallery().app)
    await (
      await connect(`${url}/auth`)
    ).ended
    const watcher = await connect(`${url}/counts`)
    expect(await counts(watcher, now => now.open !== undefined)).to.include({ open: 0, events: 0 })
  })

  it('serves its page, and the code of its examples, and of nothing else', async () => {
    const { url } = await serve(gallery().app)
    const page = await fetch(url)
    expect(page.headers.get('content-type')).to.equal('text/html; charset=utf-8')
    const html = await page.text()
    const cards = [...html.matchAll(/class="card" id="(\w+)"/g)].map(match => match[1])
    expect(cards).to.include.members(['clock', 'progress', 'tokens', 'auth', 'resumable', 'board', 'channels', 'shutdown'])
    for (const card of cards) {
      const source = await (await fetch(`${url}/source/${card}.ts`)).text()
      expect(source, card).to.equal(readFileSync(new URL(`../example/${card}.ts`, import.meta.url), 'utf8'))
    }
    for (const [name, type] of [
      ['page.js', 'text/javascript; charset=utf-8'],
      ['page.css', 'text/css; charset=utf-8'],
    ] as const) {
      const response = await fetch(`${url}/page/${name}`)
      expect(html).to.include(`"/page/${name}"`)
      expect(response.headers.get('content-type')).to.equal(type)
      expect(await response.text()).to.equal(readFileSync(new URL(`../example/${name}`, import.meta.url), 'utf8'))
    }
    expect((await fetch(`${url}/page/server.ts`)).status).to.equal(404)
    for (const name of ['page.html', '..%2Fpackage.json', '%2Fetc%2Fpasswd'])
      expect((await fetch(`${url}/source/${name}`)).status, name).to.equal(404)
  })
})

describe('npm start', () => {
  const root = fileURLToPath(new URL('..', import.meta.url))
  const { scripts } = json(readFileSync(new URL('../package.json', import.meta.url), 'utf8'))
  const [command, ...args] = scripts.start.split(' ') as [string, ...string[]]
  let child: ChildProcessByStdio<null, Readable, Readable> | undefined

  const npmStart = (port: string): ChildProcessByStdio<null, Readable, Readable> => {
    expect(command).to.equal('node')
    return (child = spawn(process.execPath, args, { cwd: root, env: { PATH: process.env['PATH'], PORT: port }, stdio: ['ignore', 'pipe', 'pipe'] }))
  }

  const firstLine = async (stream: Readable): Promise<string> => {
    const [line] = (await once(createInterface({ input: stream }), 'line')) as [string]
    return line
  }

  afterEach(() => {
    child?.kill('SIGKILL')
    child = undefined
  })

  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    it(`prints its address, serves, and on ${signal} ends its streams cleanly and exits with 0`, async () => {
      const server = npmStart('0')
      const exit = once(server, 'exit')
      const line = await firstLine(server.stdout)
      expect(line).to.match(/^koa-sse gallery: http:\/\/127\.0\.0\.1:\d+$/)
      const url = line.slice(line.indexOf('http'))
      expect(await (await fetch(url)).text()).to.include('<title>koa-sse gallery</title>')
      const { id } = json(await (await post(`${url}/answers`, { prompt: 'Why?' })).text())
      const clients = [await connect(`${url}/clock`), await connect(`${url}/board/events?tab=a`), await connect(`${url}/answers/${id}`)]
      for (const client of clients) await client.event()
      // Connections of which nothing has come, and on which nothing is under way.
      const idle = createConnection(Number(new URL(url).port), '127.0.0.1').on('error', () => {})
      await once(idle, 'connect')
      server.kill(signal)
      for (const client of clients) {
        expect(await client.ended).to.equal('clean')
        expect(client.events.at(-1)).to.include({ event: 'farewell', data: 'The server restarts.' })
        expect(client.retry).to.be.within(2_000, 4_000)
      }
      expect(await exit).to.deep.equal([0, null])
      idle.destroy()
    })
  }

  it('exits with 1, and says so in a line, when the port is taken', async () => {
    const { port } = await serve(koa())
    const server = npmStart(String(port))
    const exit = once(server, 'exit')
    expect(await firstLine(server.stderr)).to.match(/EADDRINUSE/)
    expect(await exit).to.deep.equal([1, null])
  })
})
