import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { expect } from 'chai'
import { connect } from '../support/client.ts'
import { freePort, hasRedis, needsRedis, RedisServer } from '../support/redis.ts'

const EXAMPLE = fileURLToPath(new URL('../../example/many-processes.ts', import.meta.url))

describe('example/many-processes', function () {
  this.timeout(30_000)
  needsRedis()
  let redis: RedisServer
  const children: ChildProcess[] = []
  before(async () => {
    if (hasRedis) redis = await RedisServer.start()
  })
  after(async () => {
    for (const child of children) child.kill('SIGKILL')
    await redis?.stop()
  })

  const start = async (): Promise<{ child: ChildProcess; url: string; output: () => string }> => {
    const port = await freePort()
    const env = { ...process.env, PORT: `${port}`, REDIS_URL: redis.url }
    const args = ['--import', 'tsx', '--conditions', '@koa-sse/source', EXAMPLE]
    const child = spawn(process.execPath, args, { env, stdio: ['ignore', 'pipe', 'pipe'] })
    children.push(child)
    let output = ''
    child.stderr.on('data', chunk => (output += String(chunk)))
    await once(child.stdout, 'data')
    return { child, url: `http://127.0.0.1:${port}`, output: () => output }
  }

  const say = async (url: string, text: string): Promise<string> => {
    const headers = { 'Content-Type': 'application/json' }
    const response = await fetch(`${url}/say`, { method: 'POST', headers, body: JSON.stringify({ text }) })
    return ((await response.json()) as { id: string }).id
  }

  it('shows on a page of one process what is sent to the other, and goes on in the other when it ends', async () => {
    const [one, two] = await Promise.all([start(), start()])
    expect(await (await fetch(`${one.url}/`)).text()).to.include("new EventSource('/events')")
    const page = await connect(`${one.url}/events`)
    expect((await page.event()).event).to.equal('stream-position')
    const id = await say(two.url, 'hello')
    const said = await page.event()
    expect(said).to.include({ event: 'said', id })
    expect(JSON.parse(said.data)).to.deep.equal({ pid: two.child.pid, text: 'hello' })

    // The page's process is deployed anew; the page comes back to the other one.
    const exit = once(one.child, 'exit')
    one.child.kill('SIGTERM')
    expect((await page.event()).event).to.equal('farewell')
    expect(await page.ended).to.equal('clean')
    expect(page.retry).to.be.within(2_000, 4_000)
    await say(two.url, 'missed')
    const back = await connect(`${two.url}/events`, { headers: { 'Last-Event-ID': id } })
    await say(two.url, 'live')
    expect((await back.take(2)).map(data => (JSON.parse(data) as { text: string }).text)).to.deep.equal(['missed', 'live'])
    expect((await exit)[0]).to.equal(0)
    expect((await fetch(`${two.url}/health`)).status).to.equal(200)
    expect([one.output(), two.output()]).to.deep.equal(['', ''])
  })
})
