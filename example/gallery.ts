import { readFile } from 'node:fs/promises'
import { Router } from '@koa/router'
import Koa from 'koa'
import { Hub, sse, type SseMiddleware } from 'koa-sse'
import { auth } from './auth.ts'
import { board } from './board.ts'
import { channels } from './channels.ts'
import { clock } from './clock.ts'
import { Counts } from './counts.ts'
import { pace, type Pace } from './model.ts'
import { progress } from './progress.ts'
import { resumable } from './resumable.ts'
import { tokens } from './tokens.ts'

export interface Gallery {
  readonly app: Koa
  readonly hubs: Hub[]
  readonly streams: SseMiddleware
}

const PAGE = ['page.css', 'page.js']
const SOURCES = ['auth.ts', 'board.ts', 'channels.ts', 'clock.ts', 'progress.ts', 'resumable.ts', 'shutdown.ts', 'tokens.ts']

const file = (name: string): Promise<string> => readFile(new URL(name, import.meta.url), 'utf8')

/** The page, and the examples' code for it to show. */
const pages = (): Router =>
  new Router()
    .get('/', async ctx => {
      ctx.type = 'html'
      ctx.body = await file('page.html')
    })
    .get('/page/:name', async ctx => {
      const name = PAGE.find(each => each === ctx.params['name'])
      if (name === undefined) return
      ctx.type = name
      ctx.body = await file(name)
    })
    .get('/source/:name', async ctx => {
      const name = SOURCES.find(source => source === ctx.params['name'])
      if (name !== undefined) ctx.body = await file(name)
    })

/** All examples in one app. One `sse()` serves them all, so that one `close()` ends every stream. `found`: how fast its writers are. */
export const gallery = (found: Pace = pace): Gallery => {
  const app = new Koa()
  const streams = sse({ retry: 1_000 })
  const counts = new Counts()
  const hub = new Hub()
  // Small, so that the page can show what becomes of a client that has missed more than is kept.
  const boardHub = new Hub({ history: { events: 20 } })
  const examples = [
    clock(streams, counts.released('clock')),
    progress(streams),
    tokens(streams, counts.released('tokens'), found),
    auth(streams, counts.released('auth')),
    resumable(hub, streams, counts.released('resumable'), found),
    channels(hub, streams),
    board(boardHub, streams),
  ]
  // In front of `watch`: the page's own stream is not counted.
  app.use(pages().routes()).use(counts.routes(streams).routes()).use(counts.watch)
  for (const example of examples) app.use(example.routes())
  return { app, hubs: [hub, boardHub], streams }
}
