import { EventEmitter, once } from 'node:events'
import type { Pace } from '../../example/model.ts'

/** Writers of the examples that find so many words at once, and the others when they are told to go on. */
export const paced = (words: number): { found: Pace; goOn: () => void } => {
  const gate = new EventEmitter()
  const found: Pace = signal => (words-- > 0 ? Promise.resolve() : once(gate, 'open', { signal }))
  const goOn = (): void => {
    words = Infinity
    gate.emit('open')
  }
  return { found, goOn }
}
