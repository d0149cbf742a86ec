import { fork, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { connect as dial, type Socket } from 'node:net'
import { fileURLToPath } from 'node:url'
import { expect } from 'chai'
import { until } from './support/serve.ts'
import { reset } from './support/reset.ts'

// A process of its own: what it prints, what keeps it alive and what it remembers is nobody else's.
const SERVER = `
import { once } from 'node:events'
import { createServer } from 'node:http'
import { randomBytes } from 'node:crypto'
import { constants } from 'node:zlib'

// Unref'd timers keep nothing alive, and are leaked all the same.
const timers = new Set()
for (const [set, clear, again] of [['setTimeout', 'clearTimeout', false], ['setInterval', 'clearInterval', true]]) {
  const start = globalThis[set]
  const stop = globalThis[clear]
  globalThis[set] = (callback, ...rest) => {
    const timer = start((...args) => {
      if (!again) timers.delete(timer)
      callback(...args)
    }, ...rest)
    timers.add(timer)
    return timer
  }
  globalThis[clear] = timer => {
    timers.delete(timer)
    stop(timer)
  }
}

const { sse } = await import('koa-sse')
const { default: Koa } = await import(process.env.KOA)
const app = new Koa()
app.on('error', error => console.error('app error:', error))

if (process.env.COMPRESS) {
  const { default: compress } = await import('koa-compress')
  app.use(compress({ threshold: 0 }))
  app.use((ctx, next) => {
    ctx.set('Cache-Control', 'no-cache')
    ctx.compress = { gzip: { flush: constants.Z_SYNC_FLUSH } }
    return next()
  })
}

const streams = sse({ maxAge: 3_600_000 })
app.use(streams)

// Each its own: whoever holds one holds the source that waits for it.
const never = () => new Promise(() => {})
// A compressor cannot shrink it much.
const noise = Array.from({ length: 64 }, () => randomBytes(768).toString('base64'))

const refs = []
let arrived = 0
const handlers = {
  '/idle': ctx => void ctx.sse.open(),
  '/watching': ctx => {
    ctx.sse.closed.then(() => {})
    ctx.sse.signal.addEventListener('abort', () => {})
    ctx.sse.open()
  },
  '/tick': ctx => ctx.sse.pipe(async function* () {
    for (let n = 0; ; n++) {
      yield { id: String(n), data: 'tick' }
      await new Promise(setImmediate)
    }
  }),
  '/stuck': ctx => ctx.sse.pipe((async function* () {
    yield 'one'
    await never()
  })()),
  '/flood': ctx => ctx.sse.pipe((function* () {
    for (let n = 0; ; n++) yield noise[n % noise.length]
  })()),
  '/huge': async ctx => {
    await ctx.sse.send(noise.join('').repeat(64))
    ctx.sse.close()
  },
  '/closing': ctx => {
    void ctx.sse.send(noise.join('').repeat(64))
    ctx.sse.close()
  },
  '/sends': async ctx => {
    while (await ctx.sse.send('x')) await new Promise(setImmediate)
  },
  '/first': ctx => ctx.sse.pipe((async function* () {
    await never()
    yield 'never'
  })(), { head: 'first-event' }),
  '/late': async ctx => {
    await new Promise(resolve => setTimeout(resolve, 150))
    void ctx.sse.send('nobody reads this')
    await ctx.sse.pipe(['nor this'])
  },
  '/waits': async ctx => {
    if (!ctx.sse.signal.aborted) await once(ctx.sse.signal, 'abort')
  },
  '/aborts': async ctx => {
    ctx.sse.open()
    await once(new EventTarget(), 'never', { signal: ctx.sse.signal })
  },
  '/body': async ctx => {
    ctx.body = ctx.sse.open().body
    await ctx.sse.pipe(['a', 'b', 'c'], { end: false })
  },
}
app.use(ctx => {
  arrived++
  ctx.req.socket.path = ctx.method + ' ' + ctx.path
  refs.push(new WeakRef(ctx.sse))
  return handlers[ctx.path]?.(ctx)
})

const server = createServer(app.callback())
const connections = new Set()
server.on('connection', socket => {
  connections.add(socket)
  socket.on('close', () => connections.delete(socket))
})
const listeners = () => [process, server, app].map(emitter => emitter.eventNames().map(name => [String(name), emitter.listenerCount(name)]))
// Modules are read as they are needed.
const resources = () => process.getActiveResourcesInfo().filter(name => name !== 'FSReqCallback').toSorted()

const answers = {
  count: () => ({ arrived, connections: connections.size, open: streams.size, timers: timers.size, left: [...connections].map(({ path }) => path).join() }),
  state: () => ({ listeners: listeners(), resources: resources() }),
  memory: async () => {
    // WeakRefs hold on until the end of the turn in which they were made or read.
    for (let n = 0; n < 5; n++) {
      await new Promise(setImmediate)
      gc()
    }
    const { heapUsed, arrayBuffers } = process.memoryUsage()
    const alive = refs.filter(ref => ref.deref() !== undefined).length
    refs.length = 0
    return { alive, bytes: heapUsed + arrayBuffers }
  },
  quit: () => {
    server.close()
    process.disconnect()
  },
}
process.on('message', async question => {
  const answer = await answers[question]()
  if (process.connected) process.send(answer)
})
server.listen(0, '127.0.0.1', () => process.send(server.address().port))
`

interface Count {
  arrived: number
  connections: number
  open: number
  timers: number
  /** What the connections were last asked for. */
  left: string
}

class Server {
  readonly process: ChildProcess
  readonly port: number
  printed = ''
  readonly #gone: Promise<never>

  private constructor(child: ChildProcess, port: number) {
    this.process = child
    this.port = port
    this.#gone = once(child, 'exit').then(() => {
      throw new Error(`the server has ended: ${this.printed}`)
    })
    this.#gone.catch(() => {})
  }

  static async start(env: Record<string, string>): Promise<Server> {
    const child = fork('-', [], {
      cwd: fileURLToPath(new URL('..', import.meta.url)),
      env: { ...process.env, ...env },
      execArgv: ['--import', 'tsx', '--conditions', '@koa-sse/source', '--expose-gc', '--input-type', 'module', '-e', SERVER],
      stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
    })
    let printed = ''
    for (const output of [child.stdout!, child.stderr!]) output.setEncoding('utf8').on('data', (text: string) => (printed += text))
    const port = await Promise.race([once(child, 'message').then(([first]) => first as number), once(child, 'exit').then(() => undefined)])
    if (port === undefined) throw new Error(`the server did not start: ${printed}`)
    const server = new Server(child, port)
    server.printed = printed
    for (const output of [child.stdout!, child.stderr!]) output.on('data', (text: string) => (server.printed += text))
    return server
  }

  async ask<T>(question: 'count' | 'state' | 'memory'): Promise<T> {
    const answer = once(this.process, 'message')
    this.process.send(question)
    const [value] = (await Promise.race([answer, this.#gone])) as [T]
    return value
  }

  /** Resolves when all that was open is over, or when it takes too long. */
  async quiet(): Promise<Count> {
    for (const deadline = Date.now() + 8_000; ;) {
      const count = await this.ask<Count>('count')
      if (count.connections + count.open + count.timers === 0 || Date.now() > deadline) return count
      await pass(10)
    }
  }

  /** Resolves with the exit code when nothing keeps the process alive. */
  async quit(): Promise<number | null> {
    const exit = once(this.process, 'exit')
    this.process.send('quit')
    const timer = setTimeout(() => this.process.kill('SIGKILL'), 3_000)
    const [code] = (await exit) as [number | null]
    clearTimeout(timer)
    return code
  }
}

const pass = (ms: number): Promise<void> => new Promise(resolve => setTimeout(resolve, ms))

/** When a client leaves, seen from its side. */
const moments: Record<string, (socket: Socket) => Promise<unknown>> = {
  'at once': async () => {},
  'with the first bytes, if any come': socket => Promise.race([once(socket, 'data'), pass(50)]),
  'in the middle, reading no more': async socket => {
    await Promise.race([once(socket, 'data'), pass(50)])
    socket.pause()
    await pass(60)
  },
}

const manners: Record<string, (socket: Socket) => unknown> = {
  'a FIN': socket => socket.end(),
  'a RST': socket => reset(socket),
  'a FIN, and then a RST for what comes': socket => socket.destroy(),
}

const requests: Record<string, (path: string) => string> = {
  GET: path => `GET ${path} HTTP/1.1\r\nHost: test\r\nAccept-Encoding: gzip\r\n\r\n`,
  HEAD: path => `HEAD ${path} HTTP/1.1\r\nHost: test\r\n\r\n`,
  'a POST': path => `POST ${path} HTTP/1.1\r\nHost: test\r\nAccept-Encoding: gzip\r\nContent-Length: 100000\r\n\r\n${'x'.repeat(100_000)}`,
  'half a POST': path => `POST ${path} HTTP/1.1\r\nHost: test\r\nAccept-Encoding: gzip\r\nContent-Length: 100000\r\n\r\n${'x'.repeat(50_000)}`,
  'an HTTP/1.0 GET': path => `GET ${path} HTTP/1.0\r\n\r\n`,
}

const bodiless = Object.fromEntries(Object.entries(requests).filter(([kind]) => !kind.includes('POST')))

const open = new Set<Socket>()

/** Asks, and leaves. Whether the server notices is for the server to tell: until then the socket stays as it is, half open perhaps. */
const visit = async (
  port: number,
  request: string,
  moment: (socket: Socket) => Promise<unknown>,
  leave: (socket: Socket) => unknown,
): Promise<void> => {
  const socket = dial({ port, host: '127.0.0.1', allowHalfOpen: true })
  open.add(socket)
  socket.on('error', () => {})
  socket.on('close', () => open.delete(socket))
  socket.resume()
  await once(socket, 'connect')
  socket.write(request)
  await moment(socket)
  leave(socket)
}

const PATHS = '/idle /watching /tick /stuck /flood /huge /closing /sends /first /late /waits /aborts /body'.split(' ')

describe('clients that leave, in every manner, are nobody’s news', function () {
  this.timeout(20_000)
  const servers: Server[] = []
  afterEach(() => {
    for (const { process } of servers) process.kill('SIGKILL')
    for (const socket of open) socket.destroy()
    servers.length = 0
    open.clear()
  })

  const begin = async (env: Record<string, string>): Promise<Server> => {
    const server = await Server.start(env)
    servers.push(server)
    return server
  }

  for (const [version, name] of Object.entries({ 'the newest Koa': 'koa', 'Koa 3.0': 'koa30', 'Koa 2.16': 'koa2' })) {
    for (const compress of ['', 'yes']) {
      it(`on ${version}${compress && ', behind koa-compress'}: nothing is printed, nothing is left`, async () => {
        const server = await begin({ KOA: name, COMPRESS: compress })
        // The first few load what is loaded once.
        await visit(server.port, requests['GET']!('/idle'), moments['with the first bytes, if any come']!, manners['a FIN']!)
        await server.quiet()
        const before = await server.ask<object>('state')

        const visits: Promise<void>[] = []
        let n = 0
        for (const path of PATHS) {
          for (const moment of Object.values(moments)) {
            for (const leave of Object.values(manners)) {
              // Every combination of these three, and each kind of request in turn. Whoever only waits may still want the body: it is left unread.
              const kinds = Object.values(path === '/waits' ? bodiless : requests)
              const request = n % 2 === 0 ? kinds[0]! : kinds[(n >> 1) % kinds.length]!
              n++
              visits.push(visit(server.port, request(path), moment, leave))
            }
          }
        }
        expect(visits.length).to.be.above(100)
        await Promise.all(visits)

        expect(await server.quiet()).to.include({ left: '', connections: 0, open: 0, timers: 0 })
        const { arrived } = await server.ask<Count>('count')
        expect(arrived).to.be.above(70)
        expect(await server.ask('state')).to.deep.equal(before)
        expect(server.printed).to.equal('')
        expect(await server.quit()).to.equal(0)
        expect(server.printed).to.equal('')
      })
    }
  }

  it('a thousand of them leave nothing in memory', async () => {
    const server = await begin({ KOA: 'koa', COMPRESS: '' })
    const paths = ['/idle', '/watching', '/stuck', '/flood', '/sends', '/body']
    const wave = async (count: number): Promise<void> => {
      for (let begun = 0; begun < count; begun += 100) {
        const visits = Array.from({ length: 100 }, (_, n) => {
          const leave = Object.values(manners)[n % 3]!
          return visit(server.port, requests['GET']!(paths[n % paths.length]!), moments['with the first bytes, if any come']!, leave)
        })
        await Promise.all(visits)
      }
      await server.quiet()
    }
    interface Memory {
      alive: number
      bytes: number
    }
    await wave(300)
    const before = await server.ask<Memory>('memory')
    await wave(1_000)
    const after = await server.ask<Memory>('memory')
    // A registry of V8's own may hold on to the last one.
    expect(after.alive).to.be.below(5)
    // A stream and its request take more than 5 KB each.
    expect(after.bytes - before.bytes).to.be.below(2_500_000)
    expect(server.printed).to.equal('')
    expect(await server.quit()).to.equal(0)
  })

  it('one that nobody expects to leave is no reason to stay: an open stream alone keeps no process alive', async () => {
    const server = await begin({ KOA: 'koa', COMPRESS: '' })
    const socket = dial(server.port, '127.0.0.1')
    open.add(socket)
    socket.write(requests['GET']!('/watching'))
    await once(socket, 'data')
    expect((await server.ask<Count>('count')).open).to.equal(1)
    const exited = server.quit()
    // Its timers are unref'd; the connection is the last thing that holds it.
    await until(() => !server.process.connected)
    socket.destroy()
    expect(await exited).to.equal(0)
    expect(server.printed).to.equal('')
  })
})
