// The least that a stream costs in Koa: a PassThrough for its body, the headers, and head and first bytes in one write, all by hand.
import { PassThrough } from 'node:stream'
import Koa from 'koa'
import { HEAD } from './by-hand.js'

const FIRST = ':\n\n'

export const start = () => {
  const app = new Koa()
  app.use(ctx => {
    const { res } = ctx
    ctx.set({ ...HEAD, 'X-Accel-Buffering': 'no' })
    ctx.status = 200
    ctx.body = new PassThrough()
    ctx.respond = false
    process.nextTick(() => {
      res.socket.cork()
      res.flushHeaders()
      res.socket.write(`${FIRST.length.toString(16)}\r\n${FIRST}\r\n`)
      res.socket.uncork()
    })
  })
  return { listener: app.callback() }
}
