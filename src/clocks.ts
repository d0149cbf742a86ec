import type { StreamSettings } from './exchange.ts'
import { Beats, TICKS } from './heartbeat.ts'
import type { Outlet } from './outlet.ts'
import { setImmediate } from './turn.ts'

/** What {@link Clocks} tell. */
export interface ClocksOwner {
  /** Nothing has been written for a heartbeat's time. */
  quiet(): void
  /** Bytes wait, or the stream has ended, and the client has read nothing for `stallTimeout`. */
  stalled(): void
  /** `maxAge` has been reached. */
  expired(): void
  /** True when the client has something to read. */
  readonly begun: boolean
  /** Bytes that have left for the client, whoever wrote them, as far as that is known. */
  readonly sent: number
}

/** What an open stream does by the clock. */
export class Clocks {
  readonly #outlet: Outlet
  readonly #settings: StreamSettings
  readonly #owner: ClocksOwner
  readonly #age: NodeJS.Timeout | undefined
  #quietTicks = 0
  #written = 0
  #stallTicks = -1
  #taken = 0
  #sent = 0
  #ended = false
  #over = false

  static readonly #heartbeats = new Beats<Clocks>(clocks => clocks.#checkQuiet())
  static readonly #stalls = new Beats<Clocks>(clocks => clocks.#checkStall())

  constructor(outlet: Outlet, settings: StreamSettings, owner: ClocksOwner) {
    this.#outlet = outlet
    this.#settings = settings
    this.#owner = owner
    const { heartbeat, stallTimeout, maxAge } = settings
    if (heartbeat !== false) Clocks.#heartbeats.join(this, heartbeat)
    if (stallTimeout !== false) Clocks.#stalls.join(this, stallTimeout)
    if (maxAge !== false) this.#age = setTimeout(() => owner.expired(), maxAge * (0.8 + 0.2 * Math.random())).unref()
  }

  /** The stream has ended. It is watched still, until its response is over. */
  ended(): void {
    this.#ended = true
    clearTimeout(this.#age)
    const { heartbeat } = this.#settings
    if (heartbeat !== false) Clocks.#heartbeats.leave(this, heartbeat)
  }

  /** The response is over. */
  over(): void {
    this.#over = true
    const { stallTimeout } = this.#settings
    if (stallTimeout !== false) Clocks.#stalls.leave(this, stallTimeout)
  }

  #checkQuiet(): void {
    const { bytesWritten, waiting } = this.#outlet
    if (bytesWritten !== this.#written || waiting > 0) {
      this.#written = bytesWritten
      this.#quietTicks = 0
    } else if (++this.#quietTicks >= TICKS) this.#owner.quiet()
  }

  #checkStall(): void {
    if (!this.#isStuck() || ++this.#stallTicks < TICKS) return
    // Where this process slept or was busy, it has yet to hear of what the client has read meanwhile.
    setImmediate(() => {
      if (!this.#over && this.#isStuck()) this.#owner.stalled()
    })
  }

  /** Nothing has moved since it was asked last, and something should have. */
  #isStuck(): boolean {
    const { waiting, taken } = this.#outlet
    let stuck = false
    if (waiting === 0 && !this.#ended) this.#stallTicks = -1
    else {
      // What wraps the body may have more to write than it has read, and take its time.
      const { begun, sent } = this.#owner
      stuck = begun && taken <= this.#taken && sent <= this.#sent
      if (!stuck) this.#stallTicks = 0
      this.#sent = Math.max(this.#sent, sent)
    }
    this.#taken = Math.max(this.#taken, taken)
    return stuck
  }
}
