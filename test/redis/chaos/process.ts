import { fork, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import type { Proxy } from '../../support/redis.ts'
import type { Acks, Figures, Order, Word } from './node.ts'

/** A node, seen from outside. */
export class Node {
  readonly child: ChildProcess
  port: number | undefined
  readonly proxy: Proxy
  rejected = 0
  readonly stopped: Promise<void>
  #asked = 0

  constructor(name: string, proxy: Proxy, naive: boolean, onAcks: (acks: Acks) => void) {
    this.proxy = proxy
    const file = fileURLToPath(new URL('node.ts', import.meta.url))
    this.child = fork(file, [name, `${proxy.port}`, naive ? 'naive' : ''], {
      execArgv: ['--import', 'tsx'],
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    })
    this.stopped = new Promise(resolve => {
      this.child.on('message', (word: Word) => {
        if ('port' in word) this.port = word.port
        else if ('acks' in word) onAcks(word.acks)
        else if ('stopped' in word) {
          this.rejected = word.rejected
          resolve()
        }
      })
      this.child.on('exit', () => {
        this.port = undefined
        resolve()
      })
    })
  }

  get alive(): boolean {
    return this.child.exitCode === null && this.child.signalCode === null
  }

  tell(order: Order): void {
    if (this.child.connected) this.child.send(order)
  }

  async ready(): Promise<this> {
    while (this.port === undefined && this.alive) await new Promise(resolve => setTimeout(resolve, 10))
    return this
  }

  /** Gaps that it has reported, and whether it is up. */
  async stats(): Promise<Figures> {
    return (await this.#ask(ask => ({ stats: ask }))) ?? { gaps: Infinity, up: true }
  }

  /** Tells every client of every node. Resolves with the id once that is acknowledged. */
  async broadcast(data: string): Promise<string> {
    const id = await this.#ask<string>(ask => ({ broadcast: ask, data }))
    if (id === undefined) throw new Error(`A node ended before it had told ${data}`)
    return id
  }

  async kill(): Promise<void> {
    if (!this.alive) return
    const exit = once(this.child, 'exit')
    this.child.kill('SIGKILL')
    await exit
  }

  /** Undefined: it ended first. */
  async #ask<T extends Figures | string>(order: (ask: number) => Order): Promise<T | undefined> {
    const ask = ++this.#asked
    return new Promise(resolve => {
      const end = (answer: T | undefined): void => {
        this.child.off('message', hear)
        this.child.off('exit', gone)
        resolve(answer)
      }
      const hear = (word: Word): void => {
        if ('to' in word && word.to === ask) end(word.answer as T)
      }
      const gone = (): void => end(undefined)
      this.child.on('message', hear)
      this.child.on('exit', gone)
      if (this.alive) this.tell(order(ask))
      else gone()
    })
  }
}
