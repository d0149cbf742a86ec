import { setImmediate as turn } from 'node:timers/promises'

/** What an action throws, or rejects with: to who awaits it that is the same. Undefined: nothing. */
export const failure = async (action: () => unknown): Promise<unknown> => {
  try {
    await action()
  } catch (error) {
    return error
  }
  return undefined
}

/** Whether a promise is not settled within a few turns of the event loop. */
export const isPending = async (promise: Promise<unknown>): Promise<boolean> => {
  const pending = Symbol('pending')
  const later = async (): Promise<symbol> => {
    for (let i = 0; i < 5; i++) await turn()
    return pending
  }
  return (await Promise.race([promise, later()])) === pending
}

/** A promise, and what resolves it. */
export const signalled = (): { promise: Promise<void>; go: () => void } => {
  let go = (): void => {}
  const promise = new Promise<void>(resolve => (go = resolve))
  return { promise, go }
}
