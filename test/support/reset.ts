import type { Socket } from 'node:net'

/** Leaves with a RST. Node 20 never lets go of a socket that is reset while it shuts down, and the process spins when it should exit. */
export const reset = (socket: Socket): void => {
  if (socket.destroyed || socket.writableEnded) socket.destroy()
  else socket.resetAndDestroy()
}
