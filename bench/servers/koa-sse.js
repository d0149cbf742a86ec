import Koa from 'koa'
import { payloads } from '../payload.js'
import { library } from './library.js'

export const start = ({ hub: needed }) => {
  const { Hub, sse } = library
  if (needed && Hub === undefined) return { missing: 'hub missing' }
  const hub = Hub && new Hub()
  const subscribe = hub?.subscriber(ctx => ctx.path.slice(8))
  const app = new Koa()
  app.use(sse())
  app.use((ctx, next) => (ctx.path.startsWith('/stream/') ? ctx.sse.pipe(payloads(Number(ctx.path.slice(8)))) : subscribe(ctx, next)))
  return { listener: app.callback(), publish: (channel, data) => hub.publish(channel, data) }
}
