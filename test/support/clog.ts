import { setImmediate as turn } from 'node:timers/promises'
import type { EventStream } from 'koa-sse'

/** More than the socket buffers of both ends swallow, at once or later. */
export const HUGE: string = 'x'.repeat(16_777_216)

/** Makes bytes wait on the server until the client reads: sends an event that no kernel has room for. Resolves with what tells that it was read. */
export const clog = async (stream: EventStream): Promise<{ read: Promise<boolean> }> => {
  const read = stream.send(HUGE)
  // For the kernel to take what it does take.
  for (let i = 0; i < 20; i++) await turn()
  return { read }
}
