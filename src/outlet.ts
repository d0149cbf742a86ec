import type { ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import { PassThrough, type TransformCallback } from 'node:stream'
import { deferred, type Deferred } from './deferred.ts'
import { Frame } from './frame.ts'
import { cut, type Response } from './http.ts'
import { chunkSocket, claimChunks, writeChunk, writeResponse, type Draining } from './response-sink.ts'

// An event is written in one go, unless it is longer than this: then the progress of a slow reader shows, piece by piece.
const PIECE = 65_536

/**
 * What an {@link Outlet} tells: there is room again after `writeFrame` left none; more bytes would wait than may wait; somebody
 * else ended or destroyed the body, with an error perhaps.
 */
export type OutletEvents = (what: 'room' | 'overflowed' | 'ended' | 'destroyed', error?: Error | null) => void

// A kernel that takes all it is given never makes anybody wait. After so many writes of one outlet the event loop gets its turn,
// or one source with a client that reads fast would keep everybody else waiting.
const WRITES_PER_TURN = 16

let turn = 0
let turnEnds = false

/** The turn of the event loop that it is. */
const thisTurn = (): number => {
  if (!turnEnds) {
    turnEnds = true
    setImmediate(() => {
      turn++
      turnEnds = false
    })
  }
  return turn
}

// Those that gather bytes in this turn. One callback for all: a hub's event reaches thousands at once.
let gathering: Outlet[] = []

const flushGathered = (): void => {
  const outlets = gathering
  gathering = []
  for (const outlet of outlets) Outlet.flush(outlet)
}

/** The body that a handler and outer middleware see. What others write to it goes the way of all bytes; what comes out is the outlet's. */
class Body extends PassThrough {
  #outlet: Outlet | undefined

  constructor(outlet: Outlet) {
    // What nobody takes yet waits in the outlet, not here.
    super({ readableHighWaterMark: 1 })
    this.#outlet = outlet
  }

  override _read(size: number): void {
    this.#outlet?.bodyRead()
    super._read(size)
  }

  override _transform(chunk: Buffer, _encoding: BufferEncoding, callback: TransformCallback): void {
    if (this.#outlet === undefined) callback()
    else this.#outlet.writeForeign(chunk, callback)
  }

  override _flush(callback: TransformCallback): void {
    if (this.#outlet === undefined) callback()
    else this.#outlet.bodyEnded(callback)
  }

  // The error stops here: a body's 'error' event that comes before Koa listens would end the process.
  override _destroy(error: Error | null, callback: (error: Error | null) => void): void {
    this.#outlet?.on('destroyed', error)
    this.#outlet = undefined
    callback(null)
  }
}

/**
 * The way of one stream's bytes: they are gathered during a turn of the event loop, leave in one write, and wait here while
 * the client reads too slowly.
 *
 * They wait, too, until it is known where to: through the body, as soon as anybody reads that, or past it straight into the
 * response, where Koa would have piped the one into the other ({@link goDirect}).
 */
export class Outlet {
  // What every write touches stands first, close together.
  /** `undefined`: not known yet. `null`: over. */
  #sink: PassThrough | Response | null | undefined
  /** Chunks may go to it. */
  #socket: Socket | undefined
  /** Waits behind `#rest`, in place of `#text`. */
  #frame: Frame | undefined
  /** Waits behind `#rest`. */
  #text = ''
  /** What is left of bytes that are written piece by piece. */
  #rest: Buffer | undefined
  /**
   * How much the three are: bytes, but text that came while there was room counts by its length. To count the bytes of every event
   * costs more than all else that is done with it.
   */
  #pending = 0
  /** Bytes that have left here, or were dropped. */
  #past = 0
  #scheduled = false
  /** Who has to drain before more is written. */
  #blockedBy: PassThrough | Draining | 'turn' | undefined
  #turn = 0
  #writes = 0
  readonly #highWaterMark: number
  #ending: 'end' | 'cut' | undefined
  #room: Deferred<void> | undefined
  /** A feed waits for room. */
  #full = false
  readonly on: OutletEvents
  readonly body: PassThrough
  readonly #res: Response
  readonly #maxBuffer: number
  /** The response, if its chunks may be framed here. */
  #chunks: ServerResponse | undefined
  #onDrain: (() => void) | undefined
  #onFinish: (() => void) | undefined

  constructor(res: Response, on: OutletEvents, highWaterMark: number, maxBuffer: number) {
    this.on = on
    this.body = new Body(this)
    this.#res = res
    this.#highWaterMark = highWaterMark
    this.#maxBuffer = maxBuffer
  }

  /** True when it is not known yet where the bytes go. */
  get undecided(): boolean {
    return this.#sink === undefined
  }

  /** Bytes that were taken in. */
  get bytesWritten(): number {
    return this.#past + this.#here
  }

  /** True while less than `highWaterMark` waits here. */
  get hasRoom(): boolean {
    return this.#pending < this.#highWaterMark
  }

  /** Bytes that the kernel has taken. */
  get taken(): number {
    return this.#past - this.#queued
  }

  /** About as many bytes has the kernel not taken yet. */
  get waiting(): number {
    return this.#pending + this.#queued
  }

  /** Somebody reads the body: from now on bytes go through it, and there is room for more now. */
  bodyRead(): void {
    if (this.#sink === undefined) this.#sink = this.body
    if (this.#sink === this.body && this.#blockedBy !== 'turn') this.#unblock()
  }

  /** From now on bytes go past the body, into the response. */
  goDirect(): void {
    this.#sink = this.#res
    if (claimChunks(this.#res)) this.#chunks = this.#res
    this.#flush()
  }

  /** Takes `text`, or says that it `overflowed`. A promise means: there is no room for more until it resolves. */
  write(text: string): Promise<void> | undefined {
    const size = this.hasRoom ? text.length : Buffer.byteLength(text)
    if (!this.hasRoom && this.waiting + size > this.#maxBuffer) {
      this.on('overflowed')
      return
    }
    this.#addText(text)
    this.#gathered(size)
    return this.#roomLater()
  }

  /** Takes text of the library's own, in any case. False means: there is no room for more until `room`. */
  writeText(text: string): boolean {
    this.#addText(text)
    this.#gathered(text.length)
    return this.askRoom()
  }

  /** The same with bytes that many streams share. */
  writeFrame(frame: Frame): boolean {
    if (this.#text !== '') this.#text += frame.payload.toString()
    else this.#frame = this.#frame === undefined ? frame : this.#frame.join(frame)
    this.#gathered(frame.bytes)
    return this.askRoom()
  }

  /** False means: there is no room until `room`. */
  askRoom(): boolean {
    this.#full = !this.hasRoom
    return this.hasRoom
  }

  /** Takes what somebody else wrote to the body. */
  writeForeign(chunk: Buffer, callback: () => void): void {
    this.#putBehind(chunk)
    this.#gathered(0)
    const room = this.#roomLater()
    if (room === undefined) callback()
    else void room.then(callback)
  }

  /** Somebody ended the body; `callback` is called with the last byte. */
  bodyEnded(callback: () => void): void {
    this.#onFinish = callback
    this.on('ended')
  }

  /** Ends the response when all that was taken has been written: `'end'` as a whole, `'cut'` so that it looks unfinished. */
  end(how: 'end' | 'cut'): void {
    this.#ending = how
    this.#flush()
    this.#wake()
  }

  /** Drops what waits; nothing is taken any more. */
  abandon(): void {
    this.#sink = null
    this.#past += this.#here
    this.#text = ''
    this.#rest = this.#frame = undefined
    this.#pending = 0
    this.#stopDraining()
    this.#wake()
    this.body.destroy()
  }

  static readonly #turnEnded = (outlet: Outlet): void => outlet.#unblock()

  /** Writes what `outlet` has gathered. */
  static flush(outlet: Outlet): void {
    outlet.#scheduled = false
    outlet.#flush()
  }

  #addText(text: string): void {
    if (this.#frame !== undefined) this.#text = this.#frame.payload.toString()
    this.#frame = undefined
    this.#text += text
  }

  /** Bytes that Node holds for it. */
  get #queued(): number {
    return this.body.writableLength + this.body.readableLength + this.#res.writableLength
  }

  /** Bytes of what waits here. */
  get #here(): number {
    return (this.#rest?.length ?? 0) + (this.#frame?.bytes ?? Buffer.byteLength(this.#text))
  }

  #gathered(more: number): void {
    this.#pending += more
    if (this.#pending >= this.#highWaterMark) this.#flush()
    else if (!this.#scheduled) {
      this.#scheduled = true
      // After all microtasks of this turn: whatever a source has ready comes along.
      if (gathering.push(this) === 1) process.nextTick(flushGathered)
    }
  }

  /** Moves what waits, and then `more`, into `#rest`: kinds of bytes that cannot wait side by side in their order. */
  #putBehind(more: Buffer = Buffer.alloc(0)): void {
    this.#rest = Buffer.concat([this.#rest ?? Buffer.alloc(0), this.#frame?.payload ?? Buffer.from(this.#text), more])
    this.#pending = this.#rest.length
    this.#frame = undefined
    this.#text = ''
  }

  #flush(): void {
    if (!this.#sink) return
    while (this.#pending > 0 && this.#blockedBy === undefined) this.#put(this.#next())
    if (this.hasRoom) this.#wake()
    if (this.#ending !== undefined && this.#pending === 0) this.#finish()
  }

  #next(): string | Buffer | Frame {
    if (this.#rest === undefined) {
      if (this.#pending <= PIECE) {
        const all = this.#frame ?? this.#text
        this.#frame = undefined
        this.#text = ''
        this.#pending = 0
        return all
      }
      this.#putBehind()
    }
    const rest = this.#rest!
    const piece = rest.subarray(0, PIECE)
    this.#rest = rest.length > PIECE ? rest.subarray(PIECE) : undefined
    this.#pending -= piece.length
    return piece
  }

  #put(what: string | Buffer | Frame): void {
    this.#past += what instanceof Frame ? what.bytes : Buffer.byteLength(what)
    if (this.#sink === this.body) {
      if (!this.body.push(what instanceof Frame ? what.payload : what)) this.#blockedBy = this.body
    } else {
      const full = this.#write(what)
      this.#blockedBy = full
      full?.once('drain', (this.#onDrain ??= () => this.#unblock()))
    }
    const now = thisTurn()
    if (this.#turn !== now) this.#writes = 0
    this.#turn = now
    if (++this.#writes >= WRITES_PER_TURN && this.#blockedBy === undefined) this.#waitForTurn()
  }

  /** Past the body, into the response. Returns who is full now. */
  #write(what: string | Buffer | Frame): Draining | undefined {
    if (this.#chunks !== undefined && !Buffer.isBuffer(what)) {
      this.#socket ??= chunkSocket(this.#chunks)
      if (this.#socket !== undefined) return writeChunk(this.#socket, what) ? undefined : this.#socket
    }
    try {
      return writeResponse(this.#res, what) ? undefined : this.#res
    } catch (error) {
      // Of somebody's replacement. It is this stream's failure, and not that of whoever gave it an event among others.
      this.on('destroyed', error instanceof Error ? error : new Error(`res.write threw ${String(error)}`))
      return undefined
    }
  }

  #waitForTurn(): void {
    this.#blockedBy = 'turn'
    setImmediate(Outlet.#turnEnded, this)
  }

  #stopDraining(): void {
    const by = this.#blockedBy
    // The socket may live on.
    if (this.#onDrain !== undefined && by !== undefined && by !== 'turn') by.removeListener('drain', this.#onDrain)
  }

  #unblock(): void {
    if (this.#writes >= WRITES_PER_TURN && this.#turn === thisTurn()) return this.#waitForTurn()
    this.#blockedBy = undefined
    this.#flush()
  }

  #finish(): void {
    const res = this.#res
    const direct = this.#sink === res
    this.#sink = null
    if (this.#ending === 'cut') {
      if (direct) return cut(res)
      // Whoever reads the body, a compressor perhaps, ends the response after the last byte; and there it is cut.
      res.end = () => {
        cut(res)
        return res as never
      }
    }
    if (direct) res.end()
    // Ends what comes out of the body, too.
    if (this.#onFinish !== undefined) this.#onFinish()
    else if (!direct) this.body.push(null)
  }

  #roomLater(): Promise<void> | undefined {
    if (this.hasRoom) return
    this.#room ??= deferred()
    return this.#room.promise
  }

  /** There is room, for now; or nobody needs any, any more. */
  #wake(): void {
    const room = this.#room
    this.#room = undefined
    room?.resolve()
    if (!this.#full) return
    this.#full = false
    this.on('room')
  }
}
