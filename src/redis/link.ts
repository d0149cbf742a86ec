import { within } from '../deferred.ts'
import { SseError } from '../errors.ts'
import { detached } from '../turn.ts'
import { Connection, isReply, loadRedis, rotated, type Load, type Server } from './connection.ts'
import { unavailable } from './message.ts'
import type { Route } from './route.ts'

const SHORTEST_PAUSE = 50
const LONGEST_PAUSE = 5_000

/** What {@link Link.get} rejects with after {@link Link.close}. */
export const closedError = (): SseError => new SseError('ERR_SSE_BROKER_CLOSED', 'The broker is closed')

/** How a {@link Link} is made. */
export interface LinkOptions {
  readonly server: Server
  /** Shared by the links to the same log. */
  readonly route: Route
  readonly load: Load | undefined
  /** Told of each connection that failed. */
  readonly onFailure: (error: unknown) => void
}

const make = (...args: ConstructorParameters<typeof Connection>): Connection => {
  try {
    return new Connection(...args)
  } catch (cause) {
    throw unavailable('ioredis refuses the option `redis`', cause)
  }
}

/**
 * A connection that is made anew when it is over, after a pause at random: 50 to 100 ms the first time, up to 5 s in the end, so that
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

  get closed(): boolean {
    return this.#closed
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
    this.#opening ??= detached(() => this.#open()).finally(() => (this.#opening = undefined))
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
    // One that was only cut is worth another try.
    this.#fail(connection, error, isReply(error))
  }

  /** The same with the one that is open now, if any. */
  recycle(error: unknown): void {
    const { current } = this
    if (current !== undefined) this.drop(current, error)
  }

  /** Ends the connection, and whatever waits for one. */
  close(): void {
    this.#closed = true
    this.#current?.kill(closedError())
    this.#next?.kill(closedError())
    this.#wake?.()
  }

  async #open(): Promise<Connection> {
    const { load, server, route } = this.#options
    const Redis = await loadRedis(load)
    for (;;) {
      await this.#pause()
      if (this.#closed) throw closedError()
      const connection = (this.#next = make(Redis, rotated(server, this.attempts++), route.next))
      try {
        await connection.open()
        if (this.#closed) continue
        void route.learn(connection)
        return (this.#current = connection)
      } catch (error) {
        connection.kill(error)
        this.#fail(connection, error, true)
      }
    }
  }

  #fail(connection: Connection, error: unknown, elsewhere: boolean): void {
    if (this.#closed) return
    this.#failures++
    const { route, onFailure } = this.#options
    // An answer, and no fault. The pause is for nodes that send us back and forth.
    if (route.follow(error, connection)) return
    if (elsewhere) route.turn(connection)
    onFailure(error)
  }

  async #pause(): Promise<void> {
    if (this.#failures === 0 || this.#closed) return
    const most = Math.min(LONGEST_PAUSE, SHORTEST_PAUSE * 2 ** this.#failures)
    const ms = SHORTEST_PAUSE + Math.random() * (most - SHORTEST_PAUSE)
    await within(ms, new Promise<void>(resolve => (this.#wake = resolve)))
    this.#wake = undefined
  }
}
