import type { ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import type { Frame } from './frame.ts'
import type { Response } from './http.ts'

/** Whoever emits 'drain' when it has room again. */
export type Draining = Response | Socket

/**
 * Makes the response one whose chunks {@link writeTo} may frame itself. False for HTTP/2 and HTTP/1.0, which know none.
 */
export const claimChunks = (res: Response): res is ServerResponse => {
  if ('stream' in res || res.req.httpVersion !== '1.1') return false
  // What Node would do by itself; so it is sure.
  res.setHeader('Transfer-Encoding', 'chunked')
  return true
}

/**
 * The socket, if a chunk may go to it past the response: the head has left for it, nothing of the response's own is queued that would
 * have to come first (what the socket itself has queued does come first), and nobody has replaced `res.write` to see what is written.
 */
const open = (res: ServerResponse): Socket | undefined => {
  const { socket } = res
  return socket !== null && res.headersSent && res.writableLength === socket.writableLength && !Object.hasOwn(res, 'write') ? socket : undefined
}

/**
 * Writes text, or a frame, to the response. `chunks`: what {@link claimChunks} said. A frame's chunk goes to all sockets as it is: Node's own
 * way costs each client three more writes and a second pass through the event loop's queues.
 *
 * @returns who is full now, and will 'drain'.
 */
export const writeTo = (res: Response, chunks: boolean, what: string | Buffer | Frame): Draining | undefined => {
  const payload = typeof what === 'string' || Buffer.isBuffer(what) ? what : undefined
  if (chunks) {
    const socket = open(res as ServerResponse)
    if (socket !== undefined) {
      if (payload === undefined) return socket.write((what as Frame).chunk) ? undefined : socket
      if (typeof payload === 'string') return socket.write(`${Buffer.byteLength(payload).toString(16)}\r\n${payload}\r\n`) ? undefined : socket
    }
  }
  // Of the two protocols' responses, TypeScript finds no common write().
  return (res as ServerResponse).write(payload ?? (what as Frame).payload) ? undefined : res
}
