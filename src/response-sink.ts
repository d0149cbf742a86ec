import { ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import type { Frame } from './frame.ts'
import type { Response } from './http.ts'
import { nextTick } from './turn.ts'

/** Whoever emits 'drain' when it has room again. */
export type Draining = Response | Socket

/** False for HTTP/2, which knows no chunks. */
export const mayChunk = (res: Response): res is ServerResponse => !('stream' in res)

/**
 * The socket, if chunks may go to it past the response: nothing of the response's own is queued that would have to come first (what the
 * socket itself has queued does come first), nobody has replaced `res.write` to see what is written, and the head says that chunks follow. If the
 * head has not left yet, it leaves now, in one write with the first chunk.
 *
 * To be asked before each chunk: what was written the response's own way stays there for a while where it is corked, by somebody or,
 * from Node 26 on, by itself until the end of the turn.
 */
export const chunkSocket = (res: ServerResponse): Socket | undefined => {
  const { socket } = res
  if (socket === null || res.write !== write || IS_REPLACED) return
  if (!res.headersSent) {
    socket.cork()
    nextTick(uncork, socket)
    res.flushHeaders()
  }
  return res.chunkedEncoding && res.writableLength === socket.writableLength ? socket : undefined
}

const uncork = (socket: Socket): void => socket.uncork()

// A replacement may stand on the response, in a subclass, or in its place in Node.
// oxlint-disable-next-line typescript/unbound-method -- only to compare
const { write } = ServerResponse.prototype
// By whoever was loaded before us: Node's own stands on the prototype of this prototype.
const IS_REPLACED = Object.hasOwn(ServerResponse.prototype, 'write')

/**
 * Writes text or a frame as a chunk. A frame's bytes go to all sockets as they are: Node's own way costs each client three more
 * writes and a second pass through the event loop's queues. False: the socket is full, and will 'drain'.
 */
export const writeChunk = (socket: Socket, what: string | Frame): boolean =>
  socket.write(typeof what === 'string' ? `${Buffer.byteLength(what).toString(16)}\r\n${what}\r\n` : what.chunk)

/** Writes anything the response's own way. False: it is full, and will 'drain'. */
export const writeResponse = (res: Response, what: string | Buffer | Frame): boolean =>
  // Of the two protocols' responses, TypeScript finds no common write().
  (res as ServerResponse).write(typeof what === 'string' || Buffer.isBuffer(what) ? what : what.payload)
