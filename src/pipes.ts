import type { SseEvent } from './event.ts'
import { Drain, type Sink, type Source } from './source.ts'

/** A stream, as its pipes see it. */
export interface PipesOwner extends Sink {
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
  /** Why a stream was not opened. */
  headFailure: { readonly error: unknown } | undefined

  constructor(owner: PipesOwner) {
    this.#owner = owner
  }

  add(source: Source<never>, map: ((item: never) => string | SseEvent) | undefined, end: boolean): Promise<void> {
    const piped = this.#run(new Drain(source, map, this.#owner), end)
    // Nobody has to look at it: the stream itself sees to a failure.
    const settled = (): void => void this.#heads?.delete(piped)
    piped.then(settled, settled)
    if (!this.#owner.wasOpened) (this.#heads ??= new Set()).add(piped)
    return piped
  }

  async #run(drain: Drain, end: boolean): Promise<void> {
    this.#drains.add(drain)
    try {
      await drain.run().finally(() => this.#drains.delete(drain))
      this.#owner.open()
    } catch (error) {
      if (this.#owner.wasOpened) this.#owner.failed(error)
      else this.headFailure = { error }
      throw error
    }
    if (end) this.#owner.close()
  }

  /** Those that were begun before the stream opened; they are waited for once. */
  takeHeads(): Iterable<Promise<void>> | undefined {
    const heads = this.#heads
    this.#heads = undefined
    return heads
  }

  stop(): void {
    for (const drain of this.#drains) drain.stop()
  }
}
