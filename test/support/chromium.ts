import { existsSync } from 'node:fs'
import { chromium, type Browser } from 'playwright-core'

const CHROMIUM = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'].find(path => existsSync(path))
const ARGS = [
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
]

/** Less than a test's timeout, in milliseconds: what is waited for in vain names itself. */
export const PATIENCE = 20_000

/** Gives the tests of this `describe` one Chromium; they are pending where none is installed. */
export const inChromium = (): (() => Browser) => {
  let browser: Browser
  before(async function () {
    if (CHROMIUM === undefined) return this.skip()
    browser = await chromium.launch({ executablePath: CHROMIUM, args: ARGS })
  })
  after(() => browser?.close())
  return () => browser
}
