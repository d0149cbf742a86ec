/** A promise, and the way to resolve it. (Promise.withResolvers is not there in Node 20.) */
export interface Deferred<T> {
  readonly promise: Promise<T>
  resolve(value: T): void
}

export const deferred = <T>(): Deferred<T> => {
  let resolve!: (value: T) => void
  const promise = new Promise<T>(done => (resolve = done))
  return { promise, resolve }
}

/** Waits for the promise, but no longer than `ms`. */
export const within = async (ms: number, promise: Promise<unknown>): Promise<void> => {
  let timer: NodeJS.Timeout | undefined
  const over = new Promise<void>(resolve => (timer = setTimeout(resolve, ms)))
  await Promise.race([promise, over]).finally(() => clearTimeout(timer))
}
