import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import type { Http2ServerRequest, Http2ServerResponse } from 'node:http2'

// What differs between HTTP/1 and HTTP/2, and nothing else.

/** A request of either protocol. */
export type Request = IncomingMessage | Http2ServerRequest

/** A response of either protocol. */
export type Response = ServerResponse | Http2ServerResponse

const INTERNAL_ERROR = 2 // RFC 9113, section 7

/** True when the client has left: nothing that is written can reach it any more. */
export const gone = (req: Request, res: Response): boolean => {
  if ('stream' in res) return res.stream === undefined || res.stream.destroyed || res.stream.closed
  // Not res.socket: a pipelined response has none until its turn comes, one that has ended none any more.
  return res.destroyed || req.socket.destroyed || req.socket.readableEnded
}

/** Calls `left` when the client leaves, which a pipelined response is not told of before its turn. Returns the way to stop it. */
const watchPipelined = (socket: Socket, left: () => void): (() => void) => {
  // One listener for all that wait: there may be dozens, and Node warns of more than ten.
  let waiting = pipelined.get(socket)
  if (waiting === undefined) {
    const all = new Set<() => void>()
    const tell = (): void => {
      for (const each of all) each()
    }
    waiting = { all, tell }
    pipelined.set(socket, waiting)
    socket.on('end', tell).on('close', tell)
  }
  const { all, tell } = waiting
  all.add(left)
  return () => {
    all.delete(left)
    if (all.size > 0) return
    socket.removeListener('end', tell).removeListener('close', tell)
    pipelined.delete(socket)
  }
}

const pipelined = new WeakMap<Socket, { all: Set<() => void>; tell: () => void }>()

/**
 * Calls `left` when the client goes (again perhaps, in other ways) and `over` once, when the response is over, whoever ended it.
 * Returns the function that stops it.
 */
export const watch = (req: Request, res: Response, left: () => void, over: () => void): (() => void) => {
  const closed = (): void => {
    stop()
    over()
  }
  let unwatch: () => void
  if ('stream' in res) {
    // HTTP/2 has one socket for many streams, and tells each of them.
    unwatch = () => {}
  } else if (res.socket === null) {
    unwatch = watchPipelined(req.socket, () => {
      left()
      closed()
    })
  } else {
    // While a write waits for the client, a FIN raises no `close`: only the socket's `end` tells.
    req.socket.on('end', left)
    unwatch = () => req.socket.removeListener('end', left)
  }
  const stop = (): void => {
    res.removeListener('close', closed)
    unwatch()
  }
  res.on('close', closed)
  return stop
}

/** Reads and drops a body that nobody reads. Unread, it pauses an HTTP/1 socket, and a client that leaves is never noticed. */
export const unblock = (req: Request): void => {
  if (req.headers['content-length'] === undefined && req.headers['transfer-encoding'] === undefined) return
  // Not at once: a source that is about to be read may be made of this body.
  setImmediate(() => {
    if (req.readableFlowing === null && req.listenerCount('readable') === 0) req.resume()
  })
}

// A browser drops what it has read but not handed on when a stream breaks: Chromium lost most last events without this, none with 10 ms.
const CUT_DELAY = 20

/** Ends the response so that the client can tell that it was not finished, after all that has been written so far. */
export const cut = (res: Response): void => {
  setTimeout(() => {
    if ('stream' in res) res.stream?.write('', () => res.stream?.close(INTERNAL_ERROR))
    else if (res.socket === null) res.destroy()
    else res.socket.destroySoon()
  }, CUT_DELAY).unref()
}

/** Ends the response at once, whatever still waits to be written. */
export const destroy = (res: Response): void => {
  if ('stream' in res) res.stream?.close(INTERNAL_ERROR)
  else res.destroy()
}

/** Closes the connection of a client that asked for it, when the response is over (RFC 9112, section 9.6): `keep-alive` keeps Node from it. */
export const closeAfter = (req: Request, res: Response): void => {
  res.once('finish', () => req.socket.destroySoon())
}
