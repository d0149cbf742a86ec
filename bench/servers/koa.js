// Koa without a library: Readable.from for a stream, a PassThrough for a client of a channel.
import { PassThrough, Readable } from 'node:stream'
import Koa from 'koa'
import { frames } from '../payload.js'
import { Channels, HEAD, Kept } from './by-hand.js'

export const start = () => {
  const channels = new Channels()
  const kept = new Kept(0)
  const app = new Koa()
  // Every disconnect is an error to Koa's pipeline.
  app.silent = true
  app.use(ctx => {
    ctx.set(HEAD)
    if (ctx.path.startsWith('/stream/')) {
      ctx.body = Readable.from(frames(Number(ctx.path.slice(8))))
      return
    }
    const channel = ctx.path.slice(8)
    const body = new PassThrough()
    ctx.body = body
    body.write(':\n\n')
    channels.add(channel, body)
    body.on('close', () => channels.remove(channel, body))
  })
  const publish = (channel, data) => {
    // A PassThrough makes a buffer of each string.
    const frame = Buffer.from(kept.frame(data))
    for (const body of channels.of(channel)) body.write(frame)
  }
  return { listener: app.callback(), publish }
}
