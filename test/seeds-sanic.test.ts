import { expect } from 'chai'
import Koa, { type Context, type Middleware } from 'koa'
import { Router } from '@koa/router'
import { Hub, sse } from 'koa-sse'
import { connect, type LiveClient } from './support/client.ts'
import { serve, until } from './support/serve.ts'

const hubs: Hub[] = []

/** The app of sanic_sse's readme: clients pick their channel, a POST sends to one, or to all. */
const sanic = async (...before: Middleware[]): Promise<{ hub: Hub; url: string; app: Koa; join: (channel?: string) => Promise<LiveClient> }> => {
  const hub = new Hub()
  hubs.push(hub)
  const app = new Koa()
  const router = new Router()
  app.context['hub'] = hub
  router.get('/sse', ...before, sse({ heartbeat: 40 }), hub.subscriber((ctx: Context) => ctx.query['channel_id'] ?? []) as Middleware)
  router.post('/send', async ctx => {
    const shared = ctx['hub'] as Hub
    const { channel_id: channel, message, event, event_id: id, retry } = ctx.query as Record<string, string | undefined>
    if (channel !== undefined && !shared.has(channel)) ctx.throw(404, 'channel not found')
    const sent = { data: message, id, event, retry: retry === undefined ? undefined : Number(retry) }
    ctx.body = await (channel === undefined ? shared.broadcast(sent) : shared.publish(channel, sent))
  })
  app.use(router.routes())
  const { url } = await serve(app)
  const join = async (channel?: string): Promise<LiveClient> => {
    const client = await connect(channel === undefined ? `${url}/sse` : `${url}/sse?channel_id=${channel}`)
    expect((await client.event()).event).to.equal('stream-position')
    return client
  }
  return { hub, url, app, join }
}

const post = (url: string): Promise<Response> => fetch(url, { method: 'POST' })

afterEach(async () => {
  for (const hub of hubs.splice(0)) await hub.close({ graceMs: 0 })
})

describe('what sanic_sse 0.3.1 does', () => {
  describe('Sse(app, url), or init_app later: a GET route where a client picks ?channel_id=', () => {
    it('is a route of any router; a client gets its channel', async () => {
      const { hub, join } = await sanic()
      const client = await join('foo')
      expect(client.headers['content-type']).to.equal('text/event-stream')
      expect([...hub.channels()]).to.deep.equal(['foo'])
      await hub.publish('bar', 'not for it')
      await hub.publish('foo', 'for it')
      expect(await client.take(1)).to.deep.equal(['for it'])
    })

    it('subscribes to broadcasts alone without a channel', async () => {
      const { hub, join } = await sanic()
      const client = await join()
      expect(hub.count()).to.equal(1)
      expect([...hub.channels()]).to.deep.equal([])
      await hub.publish('foo', 'not for it')
      await hub.broadcast('for it')
      expect(await client.take(1)).to.deep.equal(['for it'])
    })

    it('subscribes to several channels where theirs takes the first', async () => {
      const { hub, url } = await sanic()
      const client = await connect(`${url}/sse?channel_id=foo&channel_id=bar`)
      await client.event()
      await hub.publish('bar', '1')
      await hub.publish('foo', '2')
      expect(await client.take(2)).to.deep.equal(['1', '2'])
    })
  })

  describe('before_request_func refuses by raising', () => {
    it('any middleware in front refuses with an ordinary status, and no stream', async () => {
      const { hub, url } = await sanic((ctx, next) => {
        if (ctx.get('authorization') !== 'Bearer good') ctx.throw(401, 'who are you?')
        return next()
      })
      const refused = await connect(`${url}/sse?channel_id=foo`)
      expect(refused.status).to.equal(401)
      expect(await refused.ended).to.equal('clean')
      expect(refused.text).to.equal('who are you?')
      expect(hub.count()).to.equal(0)
      const client = await connect(`${url}/sse?channel_id=foo`, { headers: { authorization: 'Bearer good' } })
      expect(client.status).to.equal(200)
      await client.event()
      expect(hub.count('foo')).to.equal(1)
    })

    it('so does a throw in the function that subscriber() takes', async () => {
      const hub = new Hub()
      hubs.push(hub)
      const app = new Koa()
      app.use(sse())
      app.use(hub.subscriber((ctx: Context) => (ctx.query['channel_id'] === 'mine' ? 'mine' : ctx.throw(403))) as Middleware)
      const { url } = await serve(app)
      expect((await connect(`${url}/?channel_id=yours`)).status).to.equal(403)
      expect((await connect(`${url}/?channel_id=mine`)).status).to.equal(200)
      expect(hub.count()).to.equal(1)
    })
  })

  describe('app.sse_send(data, channel_id, event_id, event, retry)', () => {
    it('is hub.publish(channel, { data, id, event, retry }), by way of ctx.hub', async () => {
      const { url, join } = await sanic()
      const client = await join('foo')
      const before = client.text.length
      const response = await post(`${url}/send?channel_id=foo&message=one%0Atwo&event_id=i7&event=my_event&retry=50`)
      expect([response.status, await response.text()]).to.deep.equal([200, 'i7'])
      await client.event()
      expect(client.text.slice(before)).to.equal('id: i7\nevent: my_event\ndata: one\ndata: two\nretry: 50\n\n')
      expect(client.retry).to.equal(50)
    })
  })

  describe('channel_id=None reaches every client, with a channel or without', () => {
    it('is hub.broadcast(event)', async () => {
      const { url, join } = await sanic()
      const clients = [await join(), await join('foo'), await join('foo'), await join('bar')]
      expect((await post(`${url}/send?message=all`)).status).to.equal(200)
      for (const client of clients) expect(await client.take(1)).to.deep.equal(['all'])
    })
  })

  describe('a channel’s send reaches only its clients; many clients per channel; the last one’s leaving removes the channel', () => {
    it('does the same', async () => {
      const { hub, url, join } = await sanic()
      const [one, two, other, none] = [await join('foo'), await join('foo'), await join('bar'), await join()]
      await post(`${url}/send?channel_id=foo&message=foo`)
      await post(`${url}/send?message=all`)
      for (const client of [one, two]) expect(await client.take(2)).to.deep.equal(['foo', 'all'])
      for (const client of [other, none]) expect(await client.take(1)).to.deep.equal(['all'])
      one.fin()
      await until(() => hub.count('foo') === 1)
      expect(hub.has('foo')).to.equal(true)
      two.rst()
      await until(() => !hub.has('foo'))
      expect([...hub.channels()]).to.deep.equal(['bar'])
    })

    it('takes several channels per client', async () => {
      const { hub, url } = await sanic()
      const client = await connect(`${url}/sse?channel_id=a&channel_id=b&channel_id=c`)
      await client.event()
      for (const channel of ['a', 'x', 'c', 'b']) await hub.publish(channel, channel)
      expect(await client.take(3)).to.deep.equal(['a', 'c', 'b'])
    })
  })

  describe('documented KeyError on an unknown channel (dead since 0.3.0: it leaks an empty channel)', () => {
    it('is hub.has(channel) for the 404; nothing leaks', async () => {
      const { hub, url, join } = await sanic()
      expect((await post(`${url}/send?channel_id=foo&message=x`)).status).to.equal(404)
      expect([hub.has('foo'), hub.count(), [...hub.channels()]]).to.deep.equal([false, 0, []])
      const client = await join('foo')
      expect((await post(`${url}/send?channel_id=foo&message=x`)).status).to.equal(200)
      client.fin()
      await until(() => !hub.has('foo'))
      expect((await post(`${url}/send?channel_id=foo&message=x`)).status).to.equal(404)
      expect(await hub.publish('foo', 'succeeds all the same')).to.be.a('string')
      expect([...hub.channels()]).to.deep.equal([])
    })
  })

  describe('send validates at the call; un-awaited sends keep their order; send_nowait', () => {
    it('is the same with hub.publish()', async () => {
      const { hub, join } = await sanic()
      const client = await join('foo')
      expect(() => hub.publish('foo', { data: 'x', retry: 'one' as never })).to.throw(TypeError)
      expect(() => hub.publish('foo', { data: 'x', id: 'a\nb' })).to.throw(TypeError)
      expect(() => hub.publish('foo', { data: 'x', event: 'a\rb' })).to.throw(TypeError)
      for (let i = 0; i < 100; i++) void hub.publish('foo', `${i}`)
      expect(await client.take(100)).to.deep.equal(Array.from({ length: 100 }, (_, i) => `${i}`))
    })
  })

  describe('pings to all through their unbounded queues', () => {
    it('go out per stream, when that is idle, never queued', async () => {
      const { hub, join } = await sanic()
      const [idle, busy] = [await join('idle'), await join('busy')]
      const pings = (client: LiveClient): number => client.blocks.filter(block => 'comment' in block && block.comment === 'ping').length
      const beats = (client: LiveClient): number => pings(client) + client.events.filter(({ event }) => event === 'stream-position').length - 1
      const deadline = Date.now() + 5_000
      let sent = 0
      while (beats(idle) < 4 && Date.now() < deadline) {
        await hub.publish('busy', `${sent++}`)
        await new Promise(resolve => setTimeout(resolve, 2))
      }
      expect(beats(idle)).to.be.at.least(4)
      expect(beats(busy)).to.equal(0)
      await until(() => beats(busy) > 0)
    })
  })

  describe('on shutdown queued events go out, then streams end cleanly', () => {
    it('is hub.close(), within a deadline, with a farewell and a jittered retry', async () => {
      const { hub, join } = await sanic()
      const clients = [await join('foo'), await join('foo'), await join()]
      for (let i = 0; i < 50; i++) void hub.publish('foo', `${i}`)
      await hub.close({ event: { event: 'bye', data: 'see you' }, retry: 1_000 })
      for (const client of clients) {
        expect(await client.ended).to.equal('clean')
        expect(client.events.at(-1)).to.include({ event: 'bye', data: 'see you' })
        expect(client.retry).to.be.within(1_000, 2_000)
      }
      expect(clients[0]!.events.slice(1, -1).map(({ data }) => data)).to.deep.equal(Array.from({ length: 50 }, (_, i) => `${i}`))
    })
  })

  describe('process-local', () => {
    it('is the default; two hubs on one broker’s log would need RedisBroker (test/redis)', async () => {
      const [first, second] = [await sanic(), await sanic()]
      const client = await second.join('foo')
      await first.hub.publish('foo', 'elsewhere')
      await second.hub.publish('foo', 'here')
      expect(await client.take(1)).to.deep.equal(['here'])
    })
  })
})
