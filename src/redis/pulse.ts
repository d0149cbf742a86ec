// So many periods may pass without our own heartbeat coming back.
const LATE = 3

/** How a {@link Pulse} is made. */
export interface PulseOptions {
  /** Milliseconds between two heartbeats. */
  readonly period: number
  /** Sends one, and settles when it is written, or never will be. */
  readonly beat: () => Promise<unknown>
  /** None has come back in three periods. Once each. */
  readonly onLate: (error: Error) => void
  /** Called once per period; never rejects. */
  readonly housekeep: () => Promise<void>
}

/**
 * Health, measured: a heartbeat goes through the writer, and must come back through the reader. A link that is well on both sides
 * says little, since the two may be linked to different servers.
 */
export class Pulse {
  readonly #options: PulseOptions
  #timer: NodeJS.Timeout | undefined
  /** When the oldest left that has not come back. */
  #sent: number | undefined
  #writing = false
  #heard: number | undefined
  /** Periods since, by ticks: those that this process slept through had no heartbeat. */
  #silent = 0
  /** Milliseconds that the last one took. */
  lag: number | undefined

  constructor(options: PulseOptions) {
    this.#options = options
  }

  /** Whether one has come back lately. */
  get up(): boolean {
    return this.#heard !== undefined && performance.now() - this.#heard < LATE * this.#options.period
  }

  start(): void {
    this.#timer = setInterval(() => this.#tick(), this.#options.period)
    this.#beat()
  }

  stop(): void {
    clearInterval(this.#timer)
  }

  /** One of ours has come back. */
  heard(): void {
    const now = performance.now()
    this.#heard = now
    this.#silent = 0
    if (this.#sent !== undefined) this.lag = now - this.#sent
    this.#sent = undefined
  }

  /** What is under way will not come back. */
  lost(): void {
    this.#sent = undefined
  }

  #tick(): void {
    if (++this.#silent > LATE) {
      this.#silent = 0
      this.#options.onLate(new Error(`No heartbeat has come back through Redis for ${Math.round(LATE * this.#options.period)} ms`))
    }
    this.#beat()
    void this.#options.housekeep()
  }

  #beat(): void {
    // One to be written at a time: while Redis is away they would pile up.
    if (this.#writing) return
    this.#writing = true
    this.#sent ??= performance.now()
    this.#options
      .beat()
      .catch(() => (this.#sent = undefined))
      .finally(() => (this.#writing = false))
  }
}
