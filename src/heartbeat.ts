import { detached } from './turn.ts'

/** Who sees something at one tick, and so many ticks later still, knows that between 1 and 1.25 periods have passed since it began. */
export const TICKS = 4

interface Beat<T> {
  readonly members: Set<T>
  readonly timer: NodeJS.Timeout
}

/** Ticks four times a period for every member, with one unref'd timer for all that share the period. It saves each a timer, and the reading of clocks. */
export class Beats<T> {
  readonly #tick: (member: T) => void
  readonly #beats = new Map<number, Beat<T>>()

  /** `tick` must not throw. */
  constructor(tick: (member: T) => void) {
    this.#tick = tick
  }

  join(member: T, period: number): void {
    let beat = this.#beats.get(period)
    if (beat === undefined) {
      const members = new Set<T>()
      const tickAll = (): void => {
        for (const each of members) this.#tick(each)
      }
      beat = { members, timer: detached(() => setInterval(tickAll, Math.ceil(period / 4)).unref()) }
      this.#beats.set(period, beat)
    }
    beat.members.add(member)
  }

  /** Undoes {@link join}; the last one to leave takes the timer along. Safe to repeat. */
  leave(member: T, period: number): void {
    const beat = this.#beats.get(period)
    if (beat === undefined) return
    beat.members.delete(member)
    if (beat.members.size > 0) return
    clearInterval(beat.timer)
    this.#beats.delete(period)
  }
}
