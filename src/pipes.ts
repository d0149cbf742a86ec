import { toError } from './errors.ts'
import type { SseEvent } from './event.ts'
import type { Answer, Exchange } from './exchange.ts'
import { Drain, type Sink, type Source } from './source.ts'

/** A stream, as its pipes see it. */
export interface PipesOwner extends Sink {
  readonly exchange: Exchange<never>
  readonly wasOpened: boolean
  open(): void
  failed(error: unknown): void
  close(): void
}

/** The sources that are piped into a stream. */
export class Pipes {
  readonly #owner: PipesOwner
  readonly #drains = new Set<Drain>()
  #heads: Set<Promise<void>> | undefined
  /** What was to be answered when the first of them began to wait. */
  #before: Answer | undefined
  #failure: { readonly error: unknown } | undefined

  constructor(owner: PipesOwner) {
    this.#owner = owner
  }

  /** Throws where no stream may open any more. */
  add(source: Source<never>, map: ((item: never) => string | SseEvent) | undefined, end: boolean): Promise<void> {
    const over = this.#owner.wasOpened ? undefined : this.#owner.exchange.wait(() => this.#refuse())
    const piped = this.#run(new Drain(source, map, this.#owner), end)
    // Nobody has to look at it: the stream itself sees to a failure.
    const settled = (): void => {
      over?.()
      this.#heads?.delete(piped)
    }
    piped.then(settled, settled)
    if (!this.#owner.wasOpened) {
      this.#before ??= this.#owner.exchange.answer
      this.#heads ??= new Set()
      this.#heads.add(piped)
    }
    return piped
  }

  async #run(drain: Drain, end: boolean): Promise<void> {
    this.#drains.add(drain)
    try {
      await drain.run().finally(() => this.#drains.delete(drain))
      if (drain.isStopped) return
      this.#owner.open()
    } catch (error) {
      if (this.#owner.wasOpened) this.#owner.failed(error)
      else this.#fail(error)
      throw error
    }
    if (end) this.#owner.close()
  }

  /** No stream may open any more: the client, and a server that closes, would wait for an item that cannot be sent. */
  #refuse(): void {
    try {
      this.#owner.open()
    } catch (error) {
      this.#fail(error)
    }
  }

  /** The stream does not open, and this is the response's failure: nobody goes on. */
  #fail(error: unknown): void {
    this.#failure = { error }
    this.stop()
  }

  /** Those that were begun before the stream opened; they are waited for once. */
  takeHeads(): Iterable<Promise<void>> | undefined {
    const heads = this.#heads
    this.#heads = undefined
    return heads
  }

  /** Throws why the stream was not opened, unless somebody has answered otherwise. */
  throwFailure(): void {
    if (this.#owner.wasOpened || this.#failure === undefined) return
    const { body, status, isDecided } = this.#owner.exchange.answer
    if (body !== this.#before?.body || status !== this.#before?.status || isDecided !== this.#before?.isDecided) return
    const { error } = this.#failure
    // Koa takes nothing for no error.
    throw error ?? toError(error)
  }

  stop(): void {
    for (const drain of this.#drains) drain.stop()
  }
}
