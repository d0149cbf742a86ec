// koa-sse without its hub: `ctx.sse.send` to each client of a channel.
import Koa from 'koa'
import { Channels } from './by-hand.js'
import { library } from './library.js'

export const start = () => {
  const channels = new Channels()
  const app = new Koa()
  let sequence = 0
  app.use(library.sse())
  app.use(ctx => {
    const channel = ctx.path.slice(8)
    ctx.sse.open()
    channels.add(channel, ctx.sse)
    ctx.res.on('close', () => channels.remove(channel, ctx.sse))
  })
  const publish = (channel, data) => {
    const event = { id: `1-${++sequence}`, data }
    for (const stream of channels.of(channel)) void stream.send(event)
  }
  return { listener: app.callback(), publish }
}
