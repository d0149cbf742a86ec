// The same fault is told once in so many milliseconds, however often it comes.
const QUIET = 30_000
const MOST = 100

/** Lets the first error of a kind through, and not one for every retry. */
export class ErrorGate {
  #tell: ((error: unknown) => void) | undefined
  readonly #told = new Map<string, number>()

  open(tell: (error: unknown) => void): void {
    this.#tell = tell
  }

  close(): void {
    this.#tell = undefined
  }

  tell(error: unknown): void {
    const now = performance.now()
    const kind = String(error)
    const last = this.#told.get(kind)
    if (last !== undefined && now - last < QUIET) return
    if (this.#told.size >= MOST) this.#told.clear()
    this.#told.set(kind, now)
    this.#tell?.(error)
  }
}
