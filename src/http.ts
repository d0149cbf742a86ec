import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import type { Http2ServerRequest, Http2ServerResponse } from 'node:http2'
import type { Duplex } from 'node:stream'
import { setImmediate, setRealTimeout } from './turn.ts'

// What differs between HTTP/1 and HTTP/2, and nothing else.

/** A request of either protocol. */
export type Request = IncomingMessage | Http2ServerRequest

/** A response of either protocol. */
export type Response = ServerResponse | Http2ServerResponse

// RFC 9113, section 7
const NO_ERROR = 0
const INTERNAL_ERROR = 2

/** True when the client has left: nothing that is written can reach it any more. */
export const gone = (req: Request, res: Response): boolean => {
  if ('stream' in res) return res.stream === undefined || res.stream.destroyed || res.stream.closed
  // Not res.socket: a pipelined response has none until its turn comes, one that has ended none any more.
  return res.destroyed || req.socket.destroyed || req.socket.readableEnded
}

/** True for the very error that the connection broke with by itself, and not because somebody destroyed it with his own. */
export const brokeWith = (req: Request, res: Response, error: unknown): boolean => {
  const errored = 'stream' in res ? res.stream?.errored : req.socket.errored
  // Anything may have been thrown, so only the connection's own is looked at.
  return errored != null && error === errored && 'syscall' in errored
}

/** Bytes that the kernel has taken of a response, and of those before it on its connection. With HTTP/2, those of all its streams. */
export const sent = (req: Request, res: Response): number => {
  const socket: Partial<Socket> | undefined = 'stream' in res ? res.stream?.session?.socket : req.socket
  return socket?.bytesWritten === undefined ? 0 : socket.bytesWritten - socket.writableLength!
}

/** Who is told of a response's end. */
export interface Watcher {
  /** The client goes; again perhaps, in other ways. */
  readonly left: () => void
  /** The response is over, whoever ended it. */
  readonly over: () => void
}

// Responses that wait for their turn on a pipelining client's socket, which are told of nothing before it.
const pipelined = new WeakMap<Socket, { all: Set<Watcher>; tell: () => void }>()

const watchPipelined = (socket: Socket, watcher: Watcher): void => {
  // One listener for all that wait: there may be dozens, and Node warns of more than ten.
  let waiting = pipelined.get(socket)
  if (waiting === undefined) {
    const all = new Set<Watcher>()
    const tell = (): void => {
      for (const { left, over } of all) {
        left()
        over()
      }
    }
    waiting = { all, tell }
    pipelined.set(socket, waiting)
    socket.on('end', tell).on('close', tell)
  }
  waiting.all.add(watcher)
}

const unwatchPipelined = (socket: Socket, watcher: Watcher): void => {
  const waiting = pipelined.get(socket)
  if (waiting?.all.delete(watcher) !== true || waiting.all.size > 0) return
  socket.removeListener('end', waiting.tell).removeListener('close', waiting.tell)
  pipelined.delete(socket)
}

/** Tells `watcher`, until {@link unwatch}. */
export const watch = (req: Request, res: Response, watcher: Watcher): void => {
  res.on('close', watcher.over)
  // HTTP/2 has one socket for many streams, and tells each of them; of a reset without an error turns before `close`.
  if ('stream' in res) req.on('aborted', watcher.left)
  else if (res.socket === null) watchPipelined(req.socket, watcher)
  // While a write waits for the client, a FIN raises no `close`: only the socket's `end` tells.
  else req.socket.on('end', watcher.left)
}

/** Undoes {@link watch}. */
export const unwatch = (req: Request, res: Response, watcher: Watcher): void => {
  res.removeListener('close', watcher.over)
  if ('stream' in res) req.removeListener('aborted', watcher.left)
  else {
    req.socket.removeListener('end', watcher.left)
    unwatchPipelined(req.socket, watcher)
  }
}

/** Reads and drops a body that nobody reads. Unread, it pauses an HTTP/1 socket, and a client that leaves is never noticed. */
export const unblock = (req: Request): void => {
  if (req.headers['content-length'] === undefined && req.headers['transfer-encoding'] === undefined) return
  // Not at once: a source that is about to be read may be made of this body.
  setImmediate(() => {
    if (req.readableFlowing === null && req.listenerCount('readable') === 0) req.resume()
  })
}

/** Ends a connection when all has been written. It is any Duplex, if an app has given the server such a one ('connection' event). */
const endSoon = (connection: Socket | (Duplex & { destroySoon?: undefined })): void => {
  if (connection.destroySoon === undefined) connection.end(() => connection.destroy())
  else connection.destroySoon()
}

/** Destroys an HTTP/1 response's connection, if need be when its turn comes on that: from Node 24 on, Node forgets, and the client would wait for ever. */
const destroyConnection = (res: ServerResponse): void => {
  if (res.socket === null && !res.destroyed) res.once('socket', (socket: Socket) => socket.destroy())
  res.destroy()
}

// A browser drops what it has read but not handed on when a stream breaks: Chromium lost most last events without this, none with 10 ms.
const CUT_DELAY = 20

/** Ends the response so that the client can tell that it was not finished, after all that has been written so far. */
export const cut = (res: Response): void => {
  setRealTimeout(() => {
    if ('stream' in res) {
      const { stream } = res
      // A write would bring a head along.
      if (stream?.headersSent) stream.write('', () => stream.close(INTERNAL_ERROR))
      else stream?.close(INTERNAL_ERROR)
    } else if (res.socket === null) destroyConnection(res)
    else endSoon(res.socket)
  }, CUT_DELAY).unref()
}

/** The same when somebody else ends it. */
export const cutAtEnd = (res: Response): void => {
  res.end = () => {
    cut(res)
    return res as never
  }
}

/** Ends the response at once, whatever still waits to be written. */
export const destroy = (res: Response): void => {
  if (!('stream' in res)) destroyConnection(res)
  // One that its client has reset without an error is closed, but not over while bytes wait: they would for as long as the connection lives.
  else if (res.stream?.closed && res.stream.rstCode === NO_ERROR) res.stream.destroy()
  else res.stream?.close(INTERNAL_ERROR)
}

/** Closes an HTTP/1 connection when the response is over: `keep-alive` keeps Node from it. HTTP/2 has one for many. */
export const closeAfter = (req: Request, res: Response): void => {
  if (!('stream' in res)) res.once('finish', () => endSoon(req.socket))
}
