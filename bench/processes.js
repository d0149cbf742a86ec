import { fork } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'

const PATIENCE = 60_000

const file = name => fileURLToPath(new URL(name, import.meta.url))

/** A child process that does what it is asked for over IPC. */
class Worker {
  #child
  #calls = new Map()
  #next = 0
  #gone
  onAck

  constructor(name, args, execArgv) {
    this.#child = fork(file(name), args, { execArgv })
    this.#child.on('message', message => this.#onMessage(message))
    this.#gone = once(this.#child, 'exit')
    this.#child.on('exit', (code, signal) => {
      for (const { reject } of this.#calls.values()) reject(new Error(`${name} ${args.join(' ')} exited: ${signal ?? code}`))
    })
  }

  #onMessage({ id, ack, result, error }) {
    if (ack !== undefined) return this.onAck?.(ack)
    const call = this.#calls.get(id)
    this.#calls.delete(id)
    if (error === undefined) call.resolve(result)
    else call.reject(new Error(error))
  }

  call(command, args = {}) {
    const id = this.#next++
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`${command} took longer than ${PATIENCE / 1000} s`)), PATIENCE)
      const settled = settle => value => {
        clearTimeout(timer)
        settle(value)
      }
      this.#calls.set(id, { resolve: settled(resolve), reject: settled(reject) })
      this.#child.send({ id, command, args })
    })
  }

  tell(command, args) {
    this.#child.send({ command, args })
  }

  async stop() {
    if (this.#child.connected) this.#child.disconnect()
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), 5000)
    await this.#gone
    clearTimeout(timer)
  }
}

/** One implementation's server and the client that loads it, for one run. */
export class Session {
  #server
  #client
  #port

  constructor(implementation, execArgv) {
    // `koa-sse@/some/dist` is koa-sse as it was built there.
    const [name, dist] = implementation.split('@')
    this.#server = new Worker('server.js', [name, ...(dist === undefined ? [] : [dist])], ['--expose-gc', ...execArgv])
    this.#client = new Worker('load.js', [], [])
    // Publishers wait for what the clients have read: no row may measure an ever-growing queue.
    this.#client.onAck = events => this.#server.tell('ack', { events })
  }

  /** Answers with what is missing, if anything is. */
  async start(options) {
    const { port, missing } = await this.#server.call('start', options)
    this.#port = port
    return missing
  }

  open(count, path, headers = {}) {
    return this.#client.call('open', { port: this.#port, count, path, headers })
  }

  /** Resolves when so many events have come to each connection, and no more than that. */
  expect({ each, total, ackEvery, latency }) {
    return this.#client.call('expect', { each, total, ackEvery, latency })
  }

  /** Resolves with what the last `publish` returned. */
  publish(args) {
    return this.#server.call('publish', args)
  }

  /** Leaves all streams, and waits until the server has seen it. */
  async leave() {
    await this.#client.call('leave')
    await this.#server.call('alone')
  }

  /** Looks into all that the first connection received. */
  verify(order) {
    return this.#client.call('verify', { order })
  }

  /**
   * CPU time that the server spends meanwhile, how much of it in user space, and how long it took: `{ cpu, user, ms }`, in µs, µs and ms. What
   * came before leaves no garbage, unless it is not `collected`.
   */
  async measure(work, { collected = true } = {}) {
    await this.#server.call('begin', { collected })
    await work()
    return this.#server.call('end')
  }

  /** RSS of the server after garbage collection, in bytes. */
  memory() {
    return this.#server.call('memory')
  }

  async stop() {
    await Promise.all([this.#client.stop(), this.#server.stop()])
  }
}
