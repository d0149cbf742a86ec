import { setImmediate as turn } from 'node:timers/promises'
import { mock } from 'node:test'
import { expect } from 'chai'
import type { Middleware } from 'koa'
import { sse, type EventStream, type SseOptions } from 'koa-sse'
import { Beats } from '../src/heartbeat.ts'
import { clog } from './support/clog.ts'
import { connect, type LiveClient } from './support/client.ts'
import { koa, serve } from './support/serve.ts'

interface Timer {
  period: number
  timer: NodeJS.Timeout
}

/** The intervals that were made since, and not cleared. */
const watchIntervals = (): { made: Timer[]; running: () => Timer[] } => {
  const made: Timer[] = []
  const cleared = new Set<unknown>()
  const { setInterval, clearInterval } = globalThis
  mock.method(globalThis, 'setInterval', (callback: () => void, period: number) => {
    const timer = setInterval(callback, period)
    made.push({ period, timer })
    return timer
  })
  mock.method(globalThis, 'clearInterval', (timer: NodeJS.Timeout) => {
    cleared.add(timer)
    clearInterval(timer)
  })
  return { made, running: () => made.filter(({ timer }) => !cleared.has(timer)) }
}

/** The clock goes on by `ms`; what was begun before, and what it begins, comes to its end. */
const pass = async (ms: number, step = 1): Promise<void> => {
  for (let i = 0; i < 8; i++) await turn()
  for (let passed = 0; passed < ms; passed += step) mock.timers.tick(Math.min(step, ms - passed))
  // Bytes travel through the kernel, in a few turns of the event loop.
  for (let i = 0; i < 8; i++) await turn()
}

const readUntil = async (client: LiveClient, text: string): Promise<void> => {
  while (!client.text.includes(text)) await turn()
}

/** A server whose every stream opens and waits; resolves with one stream and its client. */
const stand = async (options: SseOptions): Promise<{ stream: EventStream; client: LiveClient; url: string; streams: EventStream[] }> => {
  const streams: EventStream[] = []
  const handler: Middleware = ctx => void streams.push(ctx.sse.open())
  const { url } = await serve(koa(sse({ stallTimeout: false, ...options }), handler))
  const client = await connect(url)
  while (client.text === '') await turn()
  return { stream: streams[0]!, client, url, streams }
}

const pings = (client: LiveClient): number => client.blocks.filter(block => 'comment' in block && block.comment !== '').length

describe('heartbeat', () => {
  beforeEach(() => mock.timers.enable({ apis: ['setInterval'] }))

  afterEach(() => {
    mock.restoreAll()
    mock.timers.reset()
  })

  it('comes between 1 and 1.25 periods after the last byte, wherever in the beat that was', async () => {
    for (const offset of [0, 1, 100, 249, 250, 251, 499, 620, 999]) {
      const { stream, client, url } = await stand({ heartbeat: 1_000 })
      // Somebody else began the beat.
      await connect(url)
      await pass(offset)
      await stream.send('last')
      await readUntil(client, 'last')
      const before = pings(client)
      await pass(999)
      expect(pings(client), `too soon, ${offset}`).to.equal(before)
      await pass(251)
      expect(pings(client), `too late, ${offset}`).to.equal(before + 1)
      stream.close()
    }
  })

  it('comes again and again, never sooner than a period after the one before', async () => {
    const { client } = await stand({ heartbeat: 1_000 })
    const times: number[] = []
    for (let now = 1; now <= 12_500; now++) {
      mock.timers.tick(1)
      if (now % 50 !== 0) continue
      await pass(0)
      while (times.length < pings(client)) times.push(now)
    }
    expect(times.length).to.be.within(10, 12)
    for (let i = 1; i < times.length; i++) expect(times[i]! - times[i - 1]!).to.be.within(1_000 - 50, 1_250 + 50)
  })

  it('comes every 15 seconds by default, and says ping', async () => {
    const { client } = await stand({})
    await pass(14_999, 1_000)
    expect(client.text).to.equal(':\n\n')
    await pass(3_751, 10)
    expect(client.text).to.equal(':\n\n: ping\n\n')
  })

  it('is put off by events and by comments', async () => {
    const { stream, client } = await stand({ heartbeat: 1_000 })
    for (let i = 0; i < 10; i++) {
      await pass(900)
      await (i % 2 === 0 ? stream.send('event') : stream.comment(''))
    }
    await pass(900)
    expect(pings(client)).to.equal(0)
    await pass(350)
    expect(pings(client)).to.equal(1)
  })

  it('is put off by bytes that somebody writes to the body by hand', async () => {
    const { stream, client } = await stand({ heartbeat: 1_000 })
    for (let i = 0; i < 10; i++) {
      await pass(900)
      stream.body.write(`data: ${i}\n\n`)
      await readUntil(client, `data: ${i}\n\n`)
    }
    expect(pings(client)).to.equal(0)
  })

  it('is skipped while bytes wait', async () => {
    const { stream, client } = await stand({ heartbeat: 1_000 })
    client.pause()
    const { read } = await clog(stream)
    const before = stream.bytesWritten
    await pass(10_000, 10)
    expect(stream.bytesWritten).to.equal(before)
    client.resume()
    await read
    await stream.send('flushed')
    await readUntil(client, 'flushed')
    expect(pings(client)).to.equal(0)
    await pass(1_250)
    expect(pings(client)).to.equal(1)
  })

  it('comes no sooner than a period after bytes that have waited have left', async () => {
    const { stream, client } = await stand({ heartbeat: 1_000 })
    client.pause()
    await clog(stream)
    const sent = stream.bytesWritten
    await pass(5_000, 10)
    client.resume()
    while (client.text.length < sent) await turn()
    await pass(990)
    expect(pings(client)).to.equal(0)
    await pass(260)
    expect(pings(client)).to.equal(1)
  })

  it('counts as bytes written, but not as an event', async () => {
    const { stream } = await stand({ heartbeat: 1_000 })
    const before = stream.bytesWritten
    await pass(1_250)
    expect(stream.bytesWritten).to.equal(before + ': ping\n\n'.length)
    expect(stream.eventsSent).to.equal(0)
  })

  it('never comes when it is false', async () => {
    const { made } = watchIntervals()
    const { client } = await stand({ heartbeat: false })
    await pass(1_000_000, 10_000)
    expect(client.text).to.equal(':\n\n')
    expect(made).to.deep.equal([])
  })

  it('comes for a piped source that is idle', async () => {
    async function* idle(): AsyncGenerator<string> {
      yield 'one'
      await new Promise(() => {})
    }
    const { url } = await serve(koa(sse({ heartbeat: 1_000 }), ctx => ctx.sse.pipe(idle())))
    const client = await connect(url)
    await client.event()
    await pass(1_250)
    expect(pings(client)).to.equal(1)
  })

  describe('heartbeatText', () => {
    it('is what the comment says', async () => {
      const { client } = await stand({ heartbeat: 1_000, heartbeatText: 'still here' })
      await pass(1_250)
      expect(client.text).to.equal(':\n\n: still here\n\n')
    })

    it('may be of several lines, and forges nothing', async () => {
      const { client } = await stand({ heartbeat: 1_000, heartbeatText: 'a\n\ndata: forged\r\rdata: forged\r\n\r\nb', newline: '\r\n' })
      await pass(1_250)
      expect(client.text).to.equal(':\r\n\r\n: a\r\n: \r\n: data: forged\r\n: \r\n: data: forged\r\n: \r\n: b\r\n\r\n')
      expect(client.events).to.deep.equal([])
    })

    it('may be empty', async () => {
      const { client } = await stand({ heartbeat: 1_000, heartbeatText: '' })
      await pass(1_250)
      expect(client.text).to.equal(':\n\n: \n\n')
    })
  })

  describe('timers', () => {
    it('are shared by all streams of a period, whatever middleware they came through', async () => {
      const { running } = watchIntervals()
      const one = sse({ heartbeat: 1_000, stallTimeout: false })
      const two = sse({ heartbeat: 1_000, stallTimeout: false, heartbeatText: 'other' })
      const three = sse({ heartbeat: 2_000, stallTimeout: false })
      const of: Record<string, Middleware> = { '/one': one, '/two': two, '/three': three }
      const { url } = await serve(
        koa(
          (ctx, next) => of[ctx.path]!(ctx, next),
          ctx => void ctx.sse.open(),
        ),
      )
      for (let i = 0; i < 5; i++) {
        await connect(`${url}/one`)
        await connect(`${url}/two`)
      }
      expect(running()).to.have.length(1)
      await connect(`${url}/three`)
      expect(running()).to.have.length(2)
    })

    it('go with the last stream', async () => {
      const { running } = watchIntervals()
      const { url, streams, client } = await stand({ heartbeat: 1_000 })
      await connect(url)
      await connect(url)
      streams[2]!.close()
      streams[1]!.close()
      expect(running()).to.have.length(1)
      client.destroy()
      await streams[0]!.closed
      expect(running()).to.deep.equal([])
      await connect(url)
      expect(running()).to.have.length(1)
      streams[3]!.close()
      expect(running()).to.deep.equal([])
    })

    it('go with a stream that stalls are looked for in, when its response is over', async () => {
      const { running } = watchIntervals()
      const { stream, client } = await stand({ heartbeat: false, stallTimeout: 1_000 })
      expect(running()).to.have.length(1)
      stream.close()
      await client.ended
      for (let i = 0; i < 8; i++) await turn()
      expect(running()).to.deep.equal([])
    })

    it('are not there before the stream opens, nor for HEAD', async () => {
      const { made } = watchIntervals()
      const { url } = await serve(
        koa(sse({ heartbeat: 1_000 }), ctx => {
          if (ctx.method === 'HEAD') ctx.sse.open()
          else ctx.body = 'plain'
        }),
      )
      const plain = await connect(url)
      await plain.ended
      const head = await connect(url, { method: 'HEAD' })
      await head.ended
      expect(plain.text).to.equal('plain')
      expect(made).to.deep.equal([])
    })

    it('of one client are not those of another that leaves', async () => {
      const { url, client } = await stand({ heartbeat: 1_000 })
      const leaving = await connect(url)
      const staying = await connect(url)
      leaving.destroy()
      await pass(0)
      await pass(1_250)
      expect(pings(client)).to.equal(1)
      expect(pings(staying)).to.equal(1)
    })
  })
})

describe('Beats', () => {
  beforeEach(() => mock.timers.enable({ apis: ['setInterval'] }))

  afterEach(() => {
    mock.restoreAll()
    mock.timers.reset()
  })

  it('tick four times a period for every member', () => {
    const ticks: string[] = []
    const beats = new Beats<string>(member => ticks.push(member))
    beats.join('a', 1_000)
    beats.join('b', 1_000)
    mock.timers.tick(249)
    expect(ticks).to.deep.equal([])
    mock.timers.tick(1)
    expect(ticks).to.deep.equal(['a', 'b'])
    mock.timers.tick(750)
    expect(ticks).to.have.length(8)
  })

  it('share one timer per period', () => {
    const { running } = watchIntervals()
    const beats = new Beats<object>(() => {})
    for (let i = 0; i < 100; i++) beats.join({}, 1_000)
    expect(running()).to.have.length(1)
    beats.join({}, 1_001)
    expect(running()).to.have.length(2)
  })

  it('do not tick for who has left', () => {
    const ticks: string[] = []
    const beats = new Beats<string>(member => ticks.push(member))
    beats.join('a', 1_000)
    beats.join('b', 1_000)
    beats.leave('a', 1_000)
    beats.leave('a', 1_000)
    mock.timers.tick(250)
    expect(ticks).to.deep.equal(['b'])
  })

  it('keep nothing when the last one has left', () => {
    const { running } = watchIntervals()
    const beats = new Beats<string>(() => {})
    beats.join('a', 1_000)
    beats.join('b', 1_000)
    beats.leave('a', 1_000)
    expect(running()).to.have.length(1)
    beats.leave('b', 1_000)
    expect(running()).to.deep.equal([])
    beats.leave('b', 1_000)
    beats.join('a', 1_000)
    expect(running()).to.have.length(1)
  })

  it('let who is told a tick leave', () => {
    const ticks: string[] = []
    const beats = new Beats<string>(member => {
      ticks.push(member)
      beats.leave(member, 1_000)
    })
    for (const member of ['a', 'b', 'c']) beats.join(member, 1_000)
    mock.timers.tick(1_000)
    expect(ticks).to.deep.equal(['a', 'b', 'c'])
  })

  it('keep no process alive', () => {
    mock.timers.reset()
    const { made, running } = watchIntervals()
    const beats = new Beats<string>(() => {})
    beats.join('a', 60_000)
    expect(made.map(({ timer }) => timer.hasRef())).to.deep.equal([false])
    beats.leave('a', 60_000)
    expect(running()).to.deep.equal([])
  })
})
