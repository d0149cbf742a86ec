import { expect } from 'chai'
import type { Page } from 'playwright-core'
import { gallery } from '../example/gallery.ts'
import { inChromium, PATIENCE } from './support/chromium.ts'
import { paced } from './support/paced.ts'
import { serve } from './support/serve.ts'

describe('the gallery in Chromium (pending where none is installed)', function () {
  this.timeout(30_000)
  const browser = inChromium()
  let page: Page
  let faults: string[]
  let stop: () => void

  beforeEach(async () => {
    // In the middle of the answer, whatever the test takes.
    const { server, url } = await serve(gallery(paced(15).found).app)
    stop = () => {
      server.close()
      server.closeAllConnections()
    }
    page = await browser().newPage()
    page.setDefaultTimeout(PATIENCE)
    faults = []
    page.on('pageerror', error => faults.push(error.message))
    await page.goto(url)
  })

  afterEach(async () => {
    await page?.close()
    expect(faults).to.deep.equal([])
  })

  const text = async (selector: string): Promise<string> => (await page.textContent(selector)) ?? ''

  /** Resolves when the element's text matches. */
  const shows = (selector: string, pattern: RegExp): Promise<void> => page.locator(selector).filter({ hasText: pattern }).waitFor()

  it('shows the ticks of the clock as they arrive, and lets go of it', async () => {
    await shows('#clock time', /^\d\d:\d\d:\d\d$/)
    const first = await text('#clock time')
    await page.locator('#clock .wire li').nth(2).waitFor()
    expect(await text('#clock time')).to.not.equal(first)
    await shows('[data-count=open]', /^1$/)
    await page.click('#clock button[name=toggle]')
    await shows('#clock .status', /^disconnected$/)
    await shows('[data-count=open]', /^0$/)
    await shows('#clock .released', /released 1×$/)
  })

  it('fills the progress bar, and does not start the job anew', async () => {
    // All states: the page may be through with the job before anybody looks.
    await page.evaluate(`states = []; new MutationObserver(([{ target }]) => states.push(target.textContent))
      .observe(document.querySelector('#progress .status'), { childList: true })`)
    await page.click('#progress button[name=start]')
    await shows('#progress strong', /^100 %$/)
    await shows('#progress .status', /^finished$/)
    expect(await page.evaluate('states')).to.include('open')
    expect(await page.locator('#progress progress').evaluate(bar => (bar as unknown as { value: number }).value)).to.equal(100)
    await shows('[data-count=open]', /^1$/)
  })

  it('shows tokens, and on Stop the server releases the generator', async () => {
    await shows('#tokens .released', /released 0×$/)
    await page.click('#tokens button[name=start]')
    await shows('#tokens .answer', /^You asked: “Who counts the words\?”\s+I am no model/)
    await shows('[data-count=open]', /^2$/)
    await page.click('#tokens button[name=stop]')
    await shows('#tokens .status', /^stopped$/)
    await shows('#tokens .released', /released 1×$/)
    await shows('[data-count=released]', /^1$/)
    await shows('[data-count=open]', /^1$/)
    expect(await text('#tokens .answer')).to.not.match(/cleanly/)
  })

  it('shows the 401, and streams with a token', async () => {
    await page.click('#auth button[name=none]')
    await shows('#auth .status', /^401 Unauthorized$/)
    await page.click('#auth button[name=header]')
    await shows('#auth .answer', /Hello, Ada/)
    await page.click('#auth button[name=query]')
    await shows('#auth .answer', /Hello, Grace/)
    await shows('#auth .released', /released 1×$/)
  })

  it('says so where the server is away, and keeps what was to be sent', async () => {
    await page.click('#board button[name=join]')
    await shows('#board .status', /^open$/)
    stop()
    await shows('#board .status', /^reconnecting$/)
    await page.fill('#board input', 'not lost')
    await page.click('#board button[name=post]')
    await shows('#board .wire', /server is away/)
    expect(await page.inputValue('#board input')).to.equal('not lost')
    await page.click('#progress button[name=start]')
    await shows('#progress .status', /^reconnecting$/)
    await page.click('#resumable button[name=start]')
    await shows('#resumable .status', /server is away/)
  })

  it("shows the server's code", async () => {
    await page.click('#clock .code')
    await shows('dialog[open] pre', /from 'koa-sse'/)
  })
})
