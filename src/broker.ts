import type { SseEvent } from './event.ts'

/** An event as a broker hands it on. */
export interface BrokerEntry {
  /** The broker's id. At most 128 characters of `[0-9A-Za-z._~-]`. */
  readonly id: string
  /** `null`: a broadcast. */
  readonly channel: string | null
  /** Its data is text already, or absent. */
  readonly event: SseEvent
}

/** What a {@link Broker} tells its hub. None of these throws. */
export interface BrokerSink {
  /** The next event of the log. */
  event(entry: BrokerEntry): void
  /** The log has moved to `id` without an event of anybody's: it is the newest id now. */
  position(id: string): void
  /** Continuity was lost (`'lost'`, `'trimmed'`): whatever came before counts no more, and the log begins anew at `position`. */
  gap(reason: string, position: string): void
  /** A fault that is worth telling. Not for every retry. */
  error(error: unknown): void
}

/** What a broker says of itself in `hub.stats()`. Brokers add figures of their own. */
export interface BrokerStats {
  /** True when what is published now will arrive. */
  readonly up: boolean
  readonly [figure: string]: unknown
}

/**
 * Puts events in one order, gives each its id, keeps them for a while, and hands them to the hub of every process.
 *
 * `test/support/broker-suite.ts` is this contract as tests.
 */
export interface Broker {
  /**
   * Begins. Called once, by the hub's constructor.
   *
   * Resolves when the position is known: `sink.position` has been called by then. Events of before may have followed it, in
   * order, to fill the hub's window; the first position is the floor that they stand on. A broker whose server is away keeps
   * trying; it does not reject.
   */
  start(sink: BrokerSink): Promise<void>
  /**
   * Publishes an event (`null`: to everybody) whose data is text already, or absent.
   *
   * Calls take effect in the order in which they are made, awaited or not, before `start` has resolved too. (A server that
   * refuses and accepts within one round trip can swap those of one process that nobody awaits.) The event comes to every hub's sink exactly once, this
   * one's included, before or after this resolves.
   *
   * @returns the id under which it is delivered.
   * @throws SseError, as a rejection: `ERR_SSE_BROKER_CLOSED`, `ERR_SSE_BROKER_UNAVAILABLE`, `ERR_SSE_BROKER_BUSY`.
   */
  publish(channel: string | null, event: SseEvent): Promise<string>
  /**
   * The events after the id `after`, oldest first, at most `limit` of them; fewer, where they are large. None: no event that the sink had been given before the
   * call comes after it. A client may be ahead of the process that it comes back to: this waits, then, until the sink has been
   * given all up to `after`.
   *
   * @returns undefined when it cannot be proved that nothing is missing between `after` and the first of them: an id that is unknown, forged, or no longer kept.
   * @throws SseError, as a rejection: `ERR_SSE_BROKER_CLOSED`; `ERR_SSE_BROKER_BUSY`, which the hub does not emit as 'error', since it asks again
   * for each of a crowd: the broker tells the sink, once.
   */
  read(after: string, limit: number): Promise<BrokerEntry[] | undefined>
  /** True: publishes may come before `start` has resolved, and the broker says how long they wait. Otherwise the hub holds them back. */
  readonly takesEarly?: boolean
  /**
   * Whether what stood at the place that `id` names is surely no longer kept: it tells a client why it was reset. Asked as soon as `read` has
   * proved nothing for it. Optional.
   */
  trimmed?(id: string): boolean
  /** Figures for `hub.stats()`. Optional: without it a broker counts as up. */
  stats?(): BrokerStats
  /** Ends. Nothing comes to the sink afterwards, and `publish` and `read` reject with `ERR_SSE_BROKER_CLOSED`. Safe to repeat. */
  close(): Promise<void>
}
