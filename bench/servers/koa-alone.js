// What Koa costs by itself: a small body, and a response that is held open past it.
import Koa from 'koa'
import { HEAD } from './by-hand.js'

export const start = () => {
  const app = new Koa()
  app.silent = true
  app.use(ctx => {
    if (ctx.path === '/small') {
      ctx.body = 'a small body'
      return
    }
    ctx.respond = false
    ctx.res.writeHead(200, HEAD)
    ctx.res.write(':\n\n')
  })
  return { listener: app.callback() }
}
