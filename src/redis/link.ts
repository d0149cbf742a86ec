import { SseError } from '../errors.ts'
import { Connection, loadRedis, type Load, type Server } from './connection.ts'

const SHORTEST_PAUSE = 50
const LONGEST_PAUSE = 5_000

/** What {@link Link.get} rejects with after {@link Link.close}. */
export const closedError = (): SseError => new SseError('ERR_SSE_BROKER_CLOSED', 'The broker is closed')

/** How a {@link Link} is made. */
export interface LinkOptions {
  readonly server: Server
  readonly load: Load | undefined
  /** Told of each connection that failed. */
  readonly onFailure: (error: unknown) => void
  /** In [0, 1). */
  readonly random?: () => number
}

/**
 * A connection that is made anew when it is over, after a pause at random: up to 50 ms the first time, up to 5 s in the end, so that
 * a hundred processes do not come back at once.
 */
export class Link {
  readonly #options: LinkOptions
  #current: Connection | undefined
  /** The one that is being opened. */
  #next: Connection | undefined
  #opening: Promise<Connection> | undefined
  /** Since it last was of use. */
  #failures = 0
  #closed = false
  /** Connections attempted. */
  attempts = 0
  #wake: (() => void) | undefined

  constructor(options: LinkOptions) {
    this.#options = options
  }

  /** The connection that is open now, if any. */
  get current(): Connection | undefined {
    return this.#current?.over === false ? this.#current : undefined
  }

  /** The connection, as soon as there is one. Rejects when the link is closed, and when ioredis is not installed. */
  async get(): Promise<Connection> {
    const { current } = this
    if (this.#closed) throw closedError()
    if (current !== undefined) return current
    this.#opening ??= this.#open().finally(() => (this.#opening = undefined))
    return this.#opening
  }

  /** The connection did what it is there for. To be open is not enough: a server can accept, and refuse everything. */
  proven(): void {
    this.#failures = 0
  }

  /** Gives a connection up, and pauses before the next. */
  drop(connection: Connection, error: unknown): void {
    connection.kill(error)
    if (this.#current !== connection) return
    this.#current = undefined
    this.#fail(error)
  }

  /** Ends the connection, and whatever waits for one. */
  close(): void {
    this.#closed = true
    this.#current?.kill(closedError())
    this.#next?.kill(closedError())
    this.#wake?.()
  }

  async #open(): Promise<Connection> {
    const Redis = await loadRedis(this.#options.load)
    for (;;) {
      await this.#pause()
      if (this.#closed) throw closedError()
      this.attempts++
      const connection = (this.#next = new Connection(Redis, this.#options.server))
      try {
        await connection.open()
        if (!this.#closed) return (this.#current = connection)
      } catch (error) {
        connection.kill(error)
        this.#fail(error)
      }
    }
  }

  #fail(error: unknown): void {
    if (this.#closed) return
    this.#failures++
    this.#options.onFailure(error)
  }

  async #pause(): Promise<void> {
    if (this.#failures === 0 || this.#closed) return
    const most = Math.min(LONGEST_PAUSE, SHORTEST_PAUSE * 2 ** this.#failures)
    const ms = SHORTEST_PAUSE + (this.#options.random ?? Math.random)() * (most - SHORTEST_PAUSE)
    await new Promise<void>(resolve => {
      const timer = setTimeout(resolve, ms)
      this.#wake = () => {
        clearTimeout(timer)
        resolve()
      }
    })
    this.#wake = undefined
  }
}
