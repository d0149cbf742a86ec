import { reset } from './reset.ts'
import { spawn, spawnSync, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Redis } from 'ioredis'

/** Whether there is a redis-server to start. */
export const hasRedis: boolean = spawnSync('redis-server', ['--version']).status === 0

/** Makes the tests of a suite pending where there is no redis-server. */
export const needsRedis = (): void => {
  before(function () {
    if (!hasRedis) this.skip()
  })
}

/** Gives each test of this `describe` a redis-server of its own; they are pending where there is none. */
export const eachRedis = (): (() => RedisServer) => {
  needsRedis()
  let server: RedisServer
  beforeEach(async () => {
    if (hasRedis) server = await RedisServer.start()
  })
  afterEach(async () => server?.stop())
  return () => server
}

// Below those that kernels hand out by themselves: one that is found free stays so until its server has it. Each run of the tests begins
// somewhere else, and gives none twice.
const FIRST_PORT = 12_000
const PORTS = 20_000
let nextPort = process.pid * 101

/** A port that nobody listens on. */
export const freePort = async (): Promise<number> => {
  for (;;) {
    const port = FIRST_PORT + (nextPort++ % PORTS)
    const server = createServer()
    const free = await new Promise<boolean>(resolve => {
      server.once('error', () => resolve(false))
      server.listen(port, '127.0.0.1', () => resolve(true))
    })
    if (!free) continue
    await new Promise(resolve => server.close(resolve))
    return port
  }
}

const servers = new Set<RedisServer>()
process.on('exit', () => {
  for (const server of servers) server.killNow()
})

/** A redis-server of the test's own, on a port of its own, in a folder of its own. */
export class RedisServer {
  readonly port: number
  readonly #folder: string
  readonly #args: string[]
  #process: ChildProcess | undefined
  #admin: Redis | undefined

  private constructor(port: number, args: string[]) {
    this.port = port
    this.#folder = mkdtempSync(join(tmpdir(), 'koa-sse-redis-'))
    this.#args = args
    servers.add(this)
  }

  /** Starts one. `persistent`: every write is on the disk before it is acknowledged. */
  static async start({ persistent = false, args = [] }: { persistent?: boolean; args?: string[] } = {}): Promise<RedisServer> {
    const disk = persistent ? ['--appendonly', 'yes', '--appendfsync', 'always'] : ['--appendonly', 'no']
    const server = new RedisServer(await freePort(), [...disk, ...args])
    await server.up()
    return server
  }

  /** One that is not running yet. */
  static async planned(): Promise<RedisServer> {
    return new RedisServer(await freePort(), ['--appendonly', 'no'])
  }

  get options(): { host: string; port: number } {
    return { host: '127.0.0.1', port: this.port }
  }

  get url(): string {
    return `redis://127.0.0.1:${this.port}`
  }

  /** Starts it, again with what it had on the disk. */
  async up({ ready = true }: { ready?: boolean } = {}): Promise<void> {
    const args = ['--port', `${this.port}`, '--bind', '127.0.0.1', '--save', '', '--dir', this.#folder, '--daemonize', 'no', ...this.#args]
    const child = spawn('redis-server', args, { stdio: ['ignore', 'pipe', 'ignore'] })
    this.#process = child
    let text = ''
    await new Promise<void>((resolve, reject) => {
      child.once('exit', () => reject(new Error(`redis-server ended: ${text}`)))
      child.stdout.on('data', (chunk: Buffer) => {
        text += chunk.toString()
        // It listens while it loads what is on the disk.
        if (text.includes(ready ? 'Ready to accept connections' : 'Server initialized')) resolve()
      })
    })
  }

  /** SIGKILL. */
  async kill(): Promise<void> {
    this.#admin?.disconnect()
    this.#admin = undefined
    const child = this.#process
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return
    const exit = once(child, 'exit')
    child.kill('SIGCONT')
    child.kill('SIGKILL')
    await exit
  }

  /** For the end of the process that started it. */
  killNow(): void {
    this.#process?.kill('SIGKILL')
    rmSync(this.#folder, { recursive: true, force: true })
  }

  /** SIGKILL, and up again: with what is on the disk, or with nothing. */
  async restart({ data }: { data: boolean }): Promise<void> {
    await this.kill()
    if (!data) for (const name of readdirSync(this.#folder)) rmSync(join(this.#folder, name), { recursive: true })
    await this.up()
  }

  /** SIGSTOP: it is there, and does not answer. */
  pause(): void {
    this.#process?.kill('SIGSTOP')
  }

  resume(): void {
    this.#process?.kill('SIGCONT')
  }

  async command(name: string, ...args: (string | number)[]): Promise<unknown> {
    if (this.#admin === undefined) {
      this.#admin = new Redis({ ...this.options, retryStrategy: () => null })
      this.#admin.on('error', () => {})
    }
    return this.#admin.call(name, ...args)
  }

  /** Cuts every connection but the one that says so. */
  async cutAll(): Promise<void> {
    await this.command('CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'yes')
  }

  /** A figure of INFO. */
  async info(section: string, name: string): Promise<string> {
    const text = (await this.command('INFO', section)) as string
    return new RegExp(`^${name}:(.*?)\\r?$`, 'm').exec(text)?.[1] ?? ''
  }

  async stop(): Promise<void> {
    await this.kill()
    rmSync(this.#folder, { recursive: true, force: true })
    servers.delete(this)
  }
}

/** A TCP proxy that can do what networks do. */
export class Proxy {
  readonly port: number
  readonly #server: Server
  readonly #pairs = new Set<[Socket, Socket]>()
  #frozen = false
  /** Connections that came. */
  accepted = 0
  /** Looks at what goes to the client, and drops it by returning false. */
  onReply: ((chunk: Buffer) => boolean) | undefined
  /** Looks at what goes to the server. */
  onRequest: ((chunk: Buffer) => void) | undefined

  /** Where new connections go. */
  target: number

  private constructor(server: Server, target: number) {
    this.#server = server
    this.target = target
    this.port = (server.address() as AddressInfo).port
    server.on('connection', client => {
      this.accepted++
      const upstream = connect(this.target, '127.0.0.1')
      const pair: [Socket, Socket] = [client, upstream]
      this.#pairs.add(pair)
      for (const [from, to] of [pair, [upstream, client] as const]) {
        from.on('error', () => {})
        from.on('close', () => {
          // A link that is half open tells neither end.
          if (this.#frozen) return
          to.destroy()
          this.#pairs.delete(pair)
        })
      }
      client.on('data', chunk => {
        this.onRequest?.(chunk)
        upstream.write(chunk)
      })
      upstream.on('data', chunk => {
        if (this.onReply?.(chunk) !== false) client.write(chunk)
      })
      if (this.#frozen) for (const socket of pair) socket.pause()
    })
  }

  static async start(target: number): Promise<Proxy> {
    const server = createServer()
    await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
    return new Proxy(server, target)
  }

  get options(): { host: string; port: number } {
    return { host: '127.0.0.1', port: this.port }
  }

  /** Nothing passes on the `index`-th of the connections that are open, and nobody is told. */
  freezeOne(index: number): void {
    for (const socket of [...this.#pairs][index] ?? []) socket.pause()
  }

  /** From now on nothing passes, and nobody is told: half open. */
  freeze(): void {
    this.#frozen = true
    for (const pair of this.#pairs) for (const socket of pair) socket.pause()
  }

  /** Everything passes again, what was held back included. */
  thaw(): void {
    this.#frozen = false
    for (const pair of this.#pairs) {
      const [a, b] = pair
      if (a.destroyed || b.destroyed) {
        for (const socket of pair) socket.destroy()
        this.#pairs.delete(pair)
      } else {
        for (const socket of pair) socket.resume()
      }
    }
  }

  /** Cuts the `index`-th of the connections that are open. */
  cutOne(index: number): void {
    for (const socket of [...this.#pairs][index] ?? []) reset(socket)
  }

  /** Cuts what is open. */
  cut(): void {
    for (const pair of this.#pairs) for (const socket of pair) reset(socket)
    this.#pairs.clear()
  }

  async stop(): Promise<void> {
    this.#frozen = false
    this.cut()
    await new Promise(resolve => this.#server.close(resolve))
  }
}
