import { AsyncResource } from 'node:async_hooks'
import { deferred, type Deferred } from './deferred.ts'

/**
 * These as they were when this was loaded, or a test's fake clock would keep every stream waiting for what is no matter of time; and where it went
 * without calling back, all that come after it, too.
 */
export const nextTick: typeof process.nextTick = process.nextTick.bind(process)
export const setImmediate: typeof globalThis.setImmediate = globalThis.setImmediate
export const setRealTimeout: typeof setTimeout = setTimeout
const { queueMicrotask } = globalThis

/** Who gathers bytes during a turn of the event loop. */
export interface Gatherer {
  turnEnds(): void
}

// One callback for all: a hub's event reaches thousands at once.
let gathering: Gatherer[] = []

const letGo = (): void => {
  const all = gathering
  gathering = []
  for (const gatherer of all) gatherer.turnEnds()
}

/** Calls back after all microtasks of this turn: whatever a source has ready by then comes along. */
export const gather = (gatherer: Gatherer): void => {
  if (gathering.push(gatherer) === 1) nextTick(letGo)
}

/** Calls back when all microtasks are done that there are, and those that they bring. */
export const afterMicrotasks = (callback: () => void): void => queueMicrotask(() => nextTick(callback))

let turn = 0
let counting = false
let next: Deferred<void> | undefined

const turnOver = (): void => {
  turn++
  counting = false
  next?.resolve()
  next = undefined
}

/** The number of this turn. */
export const thisTurn = (): number => {
  if (!counting) {
    counting = true
    setImmediate(turnOver)
  }
  return turn
}

/** Resolves when the event loop has had its turn. */
export const nextTurn = (): Promise<void> => {
  thisTurn()
  next ??= deferred()
  return next.promise
}

const nobody = new AsyncResource('koa-sse')

/**
 * Begins what many requests share, in none of their async contexts (`AsyncLocalStorage`): others' callbacks would run in the one that came
 * first, and its store would stay in memory for as long as there is anybody.
 */
export const detached = <T>(begin: () => T): T => nobody.runInAsyncScope(begin)
