import type { Socket } from 'node:net'
import { Router } from '@koa/router'
import { expect } from 'chai'
import type { Middleware } from 'koa'
import type { BrowserContext, Page } from 'playwright-core'
import { gallery } from '../example/gallery.ts'
import { writeOn } from '../example/model.ts'
import { shutdown } from '../example/shutdown.ts'
import { Hub } from '../src/hub.ts'
import { sse } from '../src/middleware.ts'
import { inChromium, PATIENCE } from './support/chromium.ts'
import { paced } from './support/paced.ts'
import { koa, serve, until } from './support/serve.ts'

const PAGE = `<!doctype html><link rel="icon" href="data:," /><script>
  const seen = []
  const source = new EventSource('/events')
  for (const type of ['message', 'stream-position', 'stream-reset'])
    source.addEventListener(type, ({ data, lastEventId }) => seen.push({ type, data, id: lastEventId }))
</script>`

interface Seen {
  type: string
  data: string
  id: string
}

describe('the hub in Chromium (pending where none is installed)', function () {
  this.timeout(30_000)
  const browser = inChromium()
  let context: BrowserContext
  let faults: string[]

  beforeEach(async () => {
    context = await browser().newContext()
    context.setDefaultTimeout(PATIENCE)
    faults = []
  })

  afterEach(async () => {
    await context?.close()
    expect(faults).to.deep.equal([])
  })

  const open = async (url: string): Promise<Page> => {
    const page = await context.newPage()
    page.on('pageerror', error => faults.push(error.message))
    await page.goto(url)
    return page
  }

  describe('with an EventSource of its own', () => {
    /** A page that keeps what its EventSource sees, and the server's side of that EventSource's connections. */
    const start = async (hub: Hub): Promise<{ page: Page; sockets: Socket[]; ids: (string | undefined)[]; seen: () => Promise<Seen[]> }> => {
      const sockets: Socket[] = []
      const ids: (string | undefined)[] = []
      const router = new Router()
        .get('/', ctx => {
          ctx.body = PAGE
        })
        .get(
          '/events',
          async (ctx, next) => {
            sockets.push(ctx.req.socket)
            ids.push(ctx.get('Last-Event-ID') || undefined)
            await next()
          },
          sse({ retry: 50 }),
          hub.subscriber('all'),
        )
      const { url } = await serve(koa(router.routes() as Middleware))
      const page = await open(url)
      return { page, sockets, ids, seen: () => page.evaluate('seen') }
    }

    /** Resolves when the page has seen an event with this data. */
    const saw = async (page: Page, data: string): Promise<void> => {
      await page.waitForFunction(`seen.some(event => event.data === ${JSON.stringify(data)})`, undefined, { polling: 10 })
    }

    it('resumes by itself when the server cuts its connection: nothing is lost, nothing comes twice, and all in order', async () => {
      const hub = new Hub()
      const { page, sockets, ids, seen } = await start(hub)
      await until(() => hub.count() === 1)
      let sent = 0
      const published: string[] = []
      const publish = (count: number): Promise<string[]> => {
        const all = Array.from({ length: count }, () => hub.publish('all', `event ${sent++}`))
        return Promise.all(all).then(each => (published.push(...each), each))
      }
      for (let round = 0; round < 8; round++) {
        await publish(20)
        // What is in the connection when it is cut is lost there, in the middle of an event or not.
        if (round % 2 === 1) await saw(page, `event ${sent - 1}`)
        const connections = sockets.length
        sockets.at(-1)!.destroy()
        await publish(20)
        await hub.publish('another', 'not for this page')
        await until(() => sockets.length > connections)
        // Some while it catches up.
        await publish(20)
      }
      await saw(page, `event ${sent - 1}`)

      const events = (await seen()).filter(event => event.type !== 'stream-position')
      expect(events.map(event => event.data)).to.deep.equal(Array.from({ length: sent }, (_, i) => `event ${i}`))
      expect(events.map(event => event.id)).to.deep.equal(published)
      expect(events.every(event => event.type === 'message')).to.equal(true)
      expect(sockets.length).to.equal(9)
      // The first time it has none; then it is the browser that remembers.
      expect(ids[0]).to.equal(undefined)
      expect(ids.slice(1).every(id => id !== undefined)).to.equal(true)
      expect(hub.stats().resets).to.deep.equal({})
    })

    it('resumes too when it was cut before its first event: it knows its position', async () => {
      const hub = new Hub()
      const { page, sockets, ids, seen } = await start(hub)
      await page.waitForFunction('seen.length === 1', undefined, { polling: 10 })
      sockets[0]!.destroy()
      await hub.publish('all', 'missed')
      await saw(page, 'missed')
      const [position, event, ...more] = await seen()
      expect(position).to.include({ type: 'stream-position', data: '', id: ids[1] })
      expect(event).to.include({ type: 'message', data: 'missed' })
      expect(more).to.deep.equal([])
    })

    it('does so too where its position is an id alone, and sees nothing of that', async () => {
      const hub = new Hub({ positionEvent: false })
      const { page, sockets, ids, seen } = await start(hub)
      await until(() => hub.count() === 1)
      const { position } = hub
      // A clean end comes after all that was written.
      hub.disconnect(() => true)
      await hub.publish('all', 'missed')
      await saw(page, 'missed')
      expect(ids).to.deep.equal([undefined, position])
      expect((await seen()).map(event => event.data)).to.deep.equal(['missed'])
      expect(sockets).to.have.lengthOf(2)
    })

    it('sees stream-reset when the window is gone, and then what is live', async () => {
      const hub = new Hub({ history: { events: 5 } })
      const { page, sockets, seen } = await start(hub)
      await until(() => hub.count() === 1)
      await hub.publish('all', 'before')
      await saw(page, 'before')
      sockets[0]!.destroy()
      for (let i = 0; i < 10; i++) await hub.publish('all', `missed ${i}`)
      const { position } = hub
      await saw(page, '{"reason":"trimmed"}')
      await hub.publish('all', 'after')
      await saw(page, 'after')
      const events = (await seen()).slice(1)
      expect(events.map(event => [event.type, event.data])).to.deep.equal([
        ['message', 'before'],
        ['stream-reset', '{"reason":"trimmed"}'],
        ['message', 'after'],
      ])
      expect(events[1]!.id).to.equal(position)

      // From there on it resumes as ever.
      sockets[1]!.destroy()
      await hub.publish('all', 'at last')
      await saw(page, 'at last')
      expect((await seen()).at(-1)).to.include({ type: 'message', data: 'at last' })
      expect(hub.stats().resets).to.deep.equal({ trimmed: 1 })
    })
  })

  describe('in the gallery', () => {
    const state = (page: Page, card: string, pattern: RegExp): Promise<void> =>
      page.locator(`#${card} .status`).filter({ hasText: pattern }).waitFor()
    const notes = (page: Page): Promise<string[]> => page.locator('#board .notes li').allInnerTexts()
    const note = (page: Page, text: string): Promise<void> => page.locator('#board .notes li', { hasText: text }).waitFor()
    const write = async (page: Page, text: string): Promise<void> => {
      await page.fill('#board [name=text]', text)
      await page.click('#board [name=post]')
      await note(page, text)
    }

    /** The same without the form, which takes a while to fill in. */
    const writeAll = (page: Page, texts: string[]): Promise<void> =>
      page.evaluate(async texts => {
        const headers = { 'Content-Type': 'application/json' }
        for (const text of texts) await fetch('/board', { method: 'POST', headers, body: JSON.stringify({ by: 'Ada', text }) })
      }, texts)
    /** Cuts a page off; what it returns lets it come back, when it wants to. */
    const cut = async (page: Page): Promise<() => void> => {
      let comeBack!: () => void
      const back = new Promise<void>(resolve => (comeBack = resolve))
      await page.route('**/board/events*', async route => {
        await back
        await route.continue()
      })
      await page.click('#board [name=cut]')
      await page.waitForSelector('#board[data-state=connecting]')
      return comeBack
    }

    const twoTabs = async (): Promise<[Page, Page]> => {
      const { url } = await serve(gallery().app)
      const [one, two] = [await open(url), await open(`${url}/?card=board`)]
      await one.click('#board [name=join]')
      await state(one, 'board', /^open$/)
      await state(two, 'board', /^open$/)
      return [one, two]
    }

    it('shows a board in two tabs: one is cut off, misses notes, and gets them on its return', async () => {
      const [one, two] = await twoTabs()
      await write(one, 'first')
      await note(two, 'first')
      await writeAll(two, ['second'])
      await note(one, 'second')

      const comeBack = await cut(two)
      await writeAll(one, ['third', 'fourth', 'fifth'])
      await note(one, 'fifth')
      expect(await notes(two)).to.have.length(2)

      comeBack()
      await note(two, 'fifth')
      await state(two, 'board', /^open$/)
      expect(await two.locator('#board .missed').count()).to.equal(3)
      await writeAll(one, ['sixth'])
      await note(two, 'sixth')
      const texts = (await notes(two)).map(text => text.split(/\s/)[1])
      expect(texts).to.deep.equal(['first', 'second', 'third', 'fourth', 'fifth', 'sixth'])
      expect((await notes(one)).map(text => text.split(/\s/)[1])).to.deep.equal(texts)
    })

    it('reads the board anew when it has missed more than is kept', async () => {
      const [one, two] = await twoTabs()
      await write(one, 'first')
      await note(two, 'first')
      const comeBack = await cut(two)
      await writeAll(
        one,
        Array.from({ length: 30 }, (_, i) => `missed ${i}`),
      )
      await note(one, 'missed 29')
      expect(await notes(two)).to.have.length(1)

      comeBack()
      await two.locator('#board .notes .reset').waitFor()
      await two.locator('#board .wire .bad', { hasText: '{"reason":"trimmed"}' }).waitFor()
      await state(two, 'board', /^open$/)
      await writeAll(one, ['last'])
      await note(two, 'last')
      const all = (await notes(two)).filter(text => !text.startsWith('stream-reset'))
      expect(all).to.have.length(32)
      expect(all.map(text => text.replace(/^\w+\s*/, ''))).to.deep.equal((await notes(one)).map(text => text.replace(/^\w+\s*/, '')))
    })

    it('shows an answer whole when the page was reloaded in the middle, while it was written once', async () => {
      const { found, goOn } = paced(40)
      const { url } = await serve(gallery(found).app)
      const page = await open(url)
      await page.click('#resumable [name=start]')
      const answer = page.locator('#resumable .answer')
      const middle = writeOn('What if I reload?').slice(0, 40).join('')
      await answer.filter({ hasText: middle }).waitFor()
      await Promise.all([page.waitForEvent('load'), page.click('#resumable [name=reload]')])
      await state(page, 'resumable', /^open$/)
      await answer.filter({ hasText: middle }).waitFor()
      await page.locator('#resumable .released').filter({ hasText: /0×$/ }).waitFor()
      expect(await answer.textContent()).to.equal(middle)

      goOn()
      await state(page, 'resumable', /^finished$/)
      expect(await answer.textContent()).to.equal(writeOn('What if I reload?').join(''))
      await page.locator('#resumable .released').filter({ hasText: /1×$/ }).waitFor()

      // Afterwards, too, and in another tab.
      const other = await open(page.url().replace('#', '?card=resumable#'))
      await state(other, 'resumable', /^finished$/)
      expect(await answer.textContent()).to.equal(await other.locator('#resumable .answer').textContent())
    })

    it('says farewell when the server is shut down, and comes back by itself when it is there again', async () => {
      const first = gallery()
      const { server, port, url } = await serve(first.app)
      const page = await open(url)
      await page.click('#board [name=join]')
      await state(page, 'board', /^open$/)
      await write(page, 'of the first life')
      await state(page, 'shutdown', /^running$/)

      await shutdown(server, first.hubs, first.streams)
      await page.locator('#shutdown .wire li', { hasText: 'The server restarts.' }).waitFor()
      await page.locator('#board .wire li', { hasText: 'The server restarts.' }).waitFor()
      const second = gallery()
      const again = second.app.listen(port, '127.0.0.1')
      try {
        await state(page, 'shutdown', /^restarted$/)
        await page
          .locator('#clock .status')
          .filter({ hasText: /^open$/ })
          .waitFor()
        // The notes are gone with their process, and the page knows: its position is of another life.
        await page.locator('#board .wire .bad', { hasText: '{"reason":"unknown"}' }).waitFor()
        await page.locator('#board .notes .reset').waitFor()
        expect(await notes(page)).to.have.length(1)
      } finally {
        await shutdown(again, second.hubs, second.streams)
      }
    })

    it('says so when there is no such answer, and takes another question', async () => {
      const { url } = await serve(gallery().app)
      const page = await open(`${url}/?card=resumable#answer=4711`)
      await state(page, 'resumable', /^no such answer$/)
      expect(page.url()).to.equal(`${url}/?card=resumable`)
      await page.click('#resumable [name=start]')
      await page.locator('#resumable .answer').filter({ hasText: 'You asked' }).waitFor()
    })

    it('sends to the channels that are listened to', async () => {
      const { url } = await serve(gallery().app)
      const page = await open(`${url}/?card=channels`)
      const send = async (to: string, data: string): Promise<void> => {
        await page.selectOption('#channels [name=to]', to)
        await page.fill('#channels [name=data]', data)
        await page.click('#channels [name=send]')
      }
      const messages = page.locator('#channels .notes li')
      await send('news', 'nobody listens')
      await page.locator('#channels .bad', { hasText: 'channel not found' }).waitFor()
      await page.click('#channels [name=listen]')
      await state(page, 'channels', /^open$/)
      await send('news', 'a headline')
      await messages.filter({ hasText: 'a headline' }).waitFor()
      await page.check('#channels [value=sport]', { force: true })
      await page.locator('#channels .wire li', { hasText: 'stream-position' }).nth(1).waitFor()
      await send('sport', 'a goal')
      await messages.filter({ hasText: 'a goal' }).waitFor()
      await send('', 'to all')
      await messages.filter({ hasText: 'to all' }).waitFor()
      expect((await messages.allInnerTexts()).map(text => text.replace(/\s+/g, ' '))).to.deep.equal([
        'news a headline',
        'sport a goal',
        'everyone to all',
      ])
    })
  })
})
