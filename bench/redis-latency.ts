import { fork, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { createServer, type ServerResponse } from 'node:http'
import { connect, type AddressInfo } from 'node:net'
import { fileURLToPath } from 'node:url'
import { Redis } from 'ioredis'
import Koa from 'koa'
import { Hub } from '../src/hub.ts'
import { sse } from '../src/middleware.ts'
import { RedisBroker } from '../src/redis/index.ts'

/** Who publishes, follows and serves: we, or XADD, XREAD BLOCK and node:http. */
export type Kind = 'koa-sse' | 'plain'

const FILE = fileURLToPath(import.meta.url)
const KEY = 'latency'
const PADDING = 'x'.repeat(180)
const EVENTS = 3_000
const WARM_UP = 300
// Between two bursts.
const PAUSE = 2

const wait = async (ms: number): Promise<void> => new Promise(resolve => setTimeout(resolve, ms))
// On Linux it is one clock for all processes (CLOCK_MONOTONIC).
const stamp = (): string => `${process.hrtime.bigint()} ${PADDING}`

const publisher = async (kind: Kind, redis: string, burst: number): Promise<void> => {
  const hub = kind === 'koa-sse' ? new Hub({ broker: new RedisBroker({ redis }) }) : undefined
  const plain = new Redis(redis)
  const publish = async (): Promise<unknown> =>
    hub === undefined ? plain.xadd(KEY, 'MAXLEN', '~', 10_000, '*', 'd', JSON.stringify({ data: stamp() })) : hub.publish('a', stamp())
  for (let i = 0; i < EVENTS + WARM_UP; i += burst) {
    await Promise.all(Array.from({ length: burst }, publish))
    await wait(PAUSE)
  }
  await hub?.close()
  plain.disconnect()
}

const koaListener = (redis: string): ((...args: Parameters<ReturnType<Koa['callback']>>) => void) => {
  const hub = new Hub({ broker: new RedisBroker({ redis }) })
  const callback = new Koa().use(sse()).use(hub.subscriber('a')).callback()
  return (req, res) => void callback(req, res)
}

const plainListener = (redis: string): ((req: unknown, res: ServerResponse) => void) => {
  const clients = new Set<ServerResponse>()
  const follow = async (): Promise<void> => {
    const follower = new Redis(redis)
    for (let last = '$'; ;) {
      const reply = await follower.xread('COUNT', 1_000, 'BLOCK', 5_000, 'STREAMS', KEY, last)
      for (const [id, fields] of reply?.[0]?.[1] ?? []) {
        const { data } = JSON.parse(fields[1]!) as { data: string }
        for (const res of clients) res.write(`id: ${id}\ndata: ${data}\n\n`)
        last = id
      }
    }
  }
  void follow()
  return (_, res) => {
    clients.add(res.writeHead(200, { 'Content-Type': 'text/event-stream' }))
    res.write(': hello\n\n')
  }
}

const server = async (kind: Kind, redis: string): Promise<void> => {
  const http = createServer(kind === 'koa-sse' ? koaListener(redis) : plainListener(redis))
  await new Promise<void>(resolve => http.listen(0, '127.0.0.1', resolve))
  process.send!((http.address() as AddressInfo).port)
}

/** Milliseconds from before a publish in one process to the client of another, sorted; `burst` of them every 2 ms. */
export const latencies = async (kind: Kind, redis: string, burst: number): Promise<number[]> => {
  const start = (role: string): ChildProcess => fork(FILE, [role, kind, redis, `${burst}`], { execArgv: process.execArgv })
  const serving = start('server')
  const [port] = (await once(serving, 'message')) as [number]
  const socket = connect(port, '127.0.0.1')
  socket.setEncoding('utf8').write('GET / HTTP/1.1\r\nHost: localhost\r\n\r\n')
  // The head, and a first comment or position: it is subscribed.
  for (let text = ''; !/\r\n\r\n[^]*\n\n/.test(text);) text += String((await once(socket, 'data'))[0])
  const all: number[] = []
  let rest = ''
  socket.on('data', (chunk: string) => {
    const now = process.hrtime.bigint()
    const lines = (rest + chunk).split('\n')
    rest = lines.pop()!
    for (const line of lines) {
      const sent = /^data: (\d+) x/.exec(line)?.[1]
      if (sent !== undefined) all.push(Number(now - BigInt(sent)) / 1e6)
    }
  })
  await once(start('publisher'), 'exit')
  while (all.length < EVENTS + WARM_UP) await wait(10)
  socket.destroy()
  serving.kill()
  return all.slice(WARM_UP).toSorted((a, b) => a - b)
}

if (process.argv[1] === FILE) {
  const [, , role, kind, redis, burst] = process.argv as [string, string, string, Kind, string, string]
  if (role === 'server') {
    await server(kind, redis)
  } else {
    await publisher(kind, redis, Number(burst))
    process.exit()
  }
}
