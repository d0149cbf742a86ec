import { once } from 'node:events'

/** An endless source that tells whether it was released. */
export const idle = (): { source: (signal: AbortSignal) => AsyncGenerator<string>; released: Promise<void> } => {
  let release!: () => void
  const released = new Promise<void>(resolve => (release = resolve))
  const source = async function* (signal: AbortSignal): AsyncGenerator<string> {
    try {
      yield 'first'
      if (!signal.aborted) await once(signal, 'abort')
    } finally {
      release()
    }
  }
  return { source, released }
}

/** A source that owes its first item for ever, and tells how often it was given back. */
export const stuck = (): { source: AsyncIterableIterator<string>; returned: () => number } => {
  let returned = 0
  const source: AsyncIterableIterator<string> = {
    next: () => new Promise(() => {}),
    return: () => Promise.resolve({ done: true, value: returned++ }),
    [Symbol.asyncIterator]: () => source,
  }
  return { source, returned: () => returned }
}
