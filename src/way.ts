import { ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import type { PassThrough } from 'node:stream'
import type { Piece } from './backlog.ts'
import { Frame } from './frame.ts'
import { cut, cutAtEnd, type Response } from './http.ts'
import { nextTick } from './turn.ts'

/** Where a stream's bytes go. Whoever takes them may throw. */
export interface Way {
  /** False: there is no room for more. Who asked will be told when there is. */
  write(piece: Piece): boolean
  /** All has been written. `'end'` ends the response as a whole, `'cut'` so that it looks unfinished. */
  end(how: 'end' | 'cut'): void
}

/** Through the body, to whoever reads it: who does so tells of room. */
export class ThroughBody implements Way {
  readonly #body: PassThrough
  readonly #res: Response

  constructor(body: PassThrough, res: Response) {
    this.#body = body
    this.#res = res
  }

  write(piece: Piece): boolean {
    return this.#body.push(bytesFor(piece))
  }

  end(how: 'end' | 'cut'): void {
    // Whoever reads the body, a compressor perhaps, ends the response after the last byte; but a body that was destroyed tells nobody of its end.
    if (how === 'cut') (this.#body.destroyed ? cut : cutAtEnd)(this.#res)
    this.#body.push(null)
  }
}

/** Past the body, straight into the response. */
export class PastBody implements Way {
  readonly #res: Response
  /** The response, if its chunks may be framed here: HTTP/2 knows none. */
  readonly #chunked: ServerResponse | undefined
  readonly #owner: { unblock(): void }
  #onDrain: (() => void) | undefined

  constructor(res: Response, owner: { unblock(): void }) {
    this.#res = res
    this.#chunked = 'stream' in res ? undefined : res
    this.#owner = owner
  }

  write(piece: Piece): boolean {
    const full = this.#put(piece)
    full?.once('drain', (this.#onDrain ??= () => this.#owner.unblock()))
    return full === undefined
  }

  /** Returns who is full now. */
  #put(piece: Piece): Response | Socket | undefined {
    if (this.#chunked !== undefined && !Buffer.isBuffer(piece)) {
      const socket = chunkSocket(this.#chunked)
      if (socket !== undefined) return socket.write(chunkOf(piece)) ? undefined : socket
    }
    // Of the two protocols' responses, TypeScript finds no common write().
    const res = this.#res as ServerResponse
    return res.write(bytesFor(piece)) ? undefined : res
  }

  end(how: 'end' | 'cut'): void {
    if (how === 'cut') cut(this.#res)
    else this.#res.end()
  }
}

/** A copy of a frame's bytes: they are others' too, and what wraps the body or the response may change in place what it is given. */
const bytesFor = (piece: Piece): string | Buffer => (piece instanceof Frame ? Buffer.from(piece.payload) : piece)

/** A frame's bytes go to all sockets as they are: Node's own way costs each client three more writes and a second pass through the event loop's queues. */
const chunkOf = (what: string | Frame): string | Buffer =>
  typeof what === 'string' ? `${Buffer.byteLength(what).toString(16)}\r\n${what}\r\n` : what.chunk

/**
 * The socket, if chunks may go to it past the response: nothing of the response's own is queued that would have to come first (what the
 * socket itself has queued does come first), nobody has replaced `res.write` to see what is written, and the head says that chunks follow. If the
 * head has not left yet, it leaves now, in one write with the first chunk.
 *
 * To be asked before each chunk: what was written the response's own way stays there for a while where it is corked, by somebody or,
 * from Node 26 on, by itself until the end of the turn.
 */
const chunkSocket = (res: ServerResponse): Socket | undefined => {
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
