import type { AddressInfo } from 'node:net'
import { bodyParser } from '@koa/bodyparser'
import { Router } from '@koa/router'
import Koa from 'koa'
import { Hub, sse } from 'koa-sse'
import { RedisBroker } from 'koa-sse/redis'
import { shutdownOnSignal } from './shutdown.ts'

// Start it twice behind one Redis, with PORT=3001 and with PORT=3002: a page of one shows what is sent to the other.
const PAGE = `<!doctype html><meta charset="utf-8"><title>koa-sse: many processes</title>
<form><input name="text" placeholder="Say something" autofocus></form><ol></ol>
<script>
  const list = document.querySelector('ol')
  const show = text => list.append(Object.assign(document.createElement('li'), { textContent: text }))
  const source = new EventSource('/events')
  source.addEventListener('said', ({ data }) => show(Object.values(JSON.parse(data)).join(': ')))
  // What was missed is gone: an app would load its state again.
  source.addEventListener('stream-reset', () => list.replaceChildren())
  document.querySelector('form').onsubmit = event => {
    event.preventDefault()
    const text = event.target.text.value
    event.target.reset()
    fetch('/say', { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify({ text }) })
  }
</script>`

const hub = new Hub({ broker: new RedisBroker({ redis: process.env['REDIS_URL'] ?? 'redis://localhost:6379' }) })
// Not for every retry while Redis is away.
hub.on('error', error => console.error(String(error)))

const streams = sse({ retry: 1_000 })
const router = new Router()
  .get('/', ctx => {
    ctx.type = 'html'
    ctx.body = PAGE
  })
  .get('/events', streams, hub.subscriber('talk'))
  .post('/say', bodyParser(), async ctx => {
    const { text } = ctx.request.body as { text?: unknown }
    if (typeof text !== 'string') return ctx.throw(400, 'text must be a string')
    ctx.body = { id: await hub.publish('talk', { event: 'said', data: { pid: process.pid, text } }) }
  })
  .get('/health', ctx => {
    const { broker } = hub.stats()
    ctx.status = broker.up ? 200 : 503
    ctx.body = broker
  })

const server = new Koa().use(router.routes()).listen(Number(process.env['PORT'] ?? 3000), '127.0.0.1', () => {
  const { port } = server.address() as AddressInfo
  console.log(`process ${process.pid}: http://127.0.0.1:${port}`)
})
shutdownOnSignal(server, [hub], streams)
