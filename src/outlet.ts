import type { PassThrough } from 'node:stream'
import { Backlog, bytesOf, type Piece } from './backlog.ts'
import { Body, type BodyOwner } from './body.ts'
import { deferred, type Deferred } from './deferred.ts'
import { toError } from './errors.ts'
import type { Frame } from './frame.ts'
import { cut, type Response } from './http.ts'
import { gather, setImmediate, thisTurn, type Gatherer } from './turn.ts'
import { PastBody, ThroughBody, type Way } from './way.ts'

/**
 * What an {@link Outlet} tells: there is room again after `writeFrame` left none; more bytes would wait than may wait; somebody
 * else ended or destroyed the body, with an error perhaps; the response threw at a write, and bytes are lost.
 */
export type OutletEvents = (what: 'room' | 'overflowed' | 'ended' | 'destroyed' | 'threw', error?: Error | null) => void

// A kernel that takes all it is given never makes anybody wait. After so many writes of one outlet the event loop gets its turn,
// or one source with a client that reads fast would keep everybody else waiting.
const WRITES_PER_TURN = 16

/**
 * The way of one stream's bytes: they are gathered during a turn of the event loop, leave in one write, and wait here while
 * the client reads too slowly.
 *
 * They wait, too, until it is known where to: through the body, as soon as anybody reads that, or past it straight into the
 * response, where Koa would have piped the one into the other ({@link goDirect}).
 */
export class Outlet implements BodyOwner, Gatherer {
  // What every write touches stands first, close together.
  /** `undefined`: not known yet. `null`: over. */
  #way: Way | null | undefined
  readonly #backlog = new Backlog()
  /** Bytes that have left here, or were dropped. */
  #past = 0
  #scheduled = false
  /** What has to come before more is written: room on the way, or the event loop's next turn. */
  #blockedBy: 'way' | 'turn' | undefined
  #turn = 0
  #writes = 0
  readonly #highWaterMark: number
  #ending: 'end' | 'cut' | undefined
  /** Bytes that were written to the body before the end, and that the body has not let go yet. */
  #owed = 0
  /** A piece is on its way. Who sees it may end the stream, and must not overtake it. */
  #putting = false
  #room: Deferred<void> | undefined
  /** A feed waits for room. */
  #full = false
  readonly on: OutletEvents
  readonly body: PassThrough
  readonly #res: Response
  readonly #maxBuffer: number
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
    return this.#way === undefined
  }

  /** True when Koa is not going to end the response. */
  get isDirect(): boolean {
    return this.#way instanceof PastBody
  }

  /** Bytes that were taken in. */
  get bytesWritten(): number {
    return this.#past + this.#backlog.bytes
  }

  /** True while less than `highWaterMark` waits here. */
  get hasRoom(): boolean {
    return this.#backlog.size < this.#highWaterMark
  }

  /** Bytes that the kernel has taken. */
  get taken(): number {
    return this.#past - this.#queued
  }

  /** About as many bytes has the kernel not taken yet. */
  get waiting(): number {
    return this.#backlog.size + this.#queued
  }

  /** From now on bytes go past the body, into the response. */
  goDirect(): void {
    this.#go(new PastBody(this.#res, this))
  }

  /** Takes `text`, or says that it `overflowed`. A promise means: there is no room for more until it resolves. */
  write(text: string): Promise<void> | undefined {
    const size = this.#sizeOf(text)
    if (!this.hasRoom && this.waiting + size > this.#maxBuffer) {
      this.on('overflowed')
      return
    }
    return this.#add(text, size)
  }

  /** The same with text that was asked for when there was room: it is taken in any case. */
  take(text: string): Promise<void> | undefined {
    return this.#add(text, this.#sizeOf(text))
  }

  /** Takes text of the library's own, in any case. False means: there is no room for more until `room`. */
  writeText(text: string): boolean {
    this.#backlog.addText(text, text.length)
    this.#gathered()
    return this.askRoom()
  }

  /** The same with bytes that many streams share. */
  writeFrame(frame: Frame): boolean {
    this.#backlog.addFrame(frame)
    this.#gathered()
    return this.askRoom()
  }

  /** False means: there is no room until `room`. */
  askRoom(): boolean {
    this.#full = !this.hasRoom
    return this.hasRoom
  }

  /** Ends the response when all that was taken has been written: `'end'` as a whole, `'cut'` so that it looks unfinished. */
  end(how: 'end' | 'cut'): void {
    this.#ending = how
    this.#owed = this.body.writableLength
    this.#flush()
    this.#wake()
  }

  /** Drops what waits; nothing is taken any more. */
  abandon(): void {
    this.#way = null
    this.#past += this.#backlog.bytes
    this.#backlog.clear()
    this.#wake()
    this.body.destroy()
  }

  // Of a BodyOwner.

  /** From now on bytes go through it, and there is room for more now. */
  bodyRead(): void {
    if (this.#way === undefined) this.#go(new ThroughBody(this.body, this.#res))
    else if (!this.isDirect && this.#blockedBy === 'way') this.unblock()
  }

  bodyWritten(chunk: Buffer, callback: () => void): void {
    // After the end nobody asks for more.
    if (this.#ending !== undefined && this.#owed === 0) return
    this.#backlog.addBytes(chunk)
    this.#gathered()
    const room = this.#roomLater()
    if (room === undefined) this.#letGo(chunk, callback)
    else void room.then(() => this.#letGo(chunk, callback))
  }

  #letGo(chunk: Buffer, callback: () => void): void {
    this.#owed = Math.max(0, this.#owed - chunk.length)
    callback()
    if (this.#ending !== undefined) this.#flush()
  }

  bodyEnded(callback: () => void): void {
    this.#onFinish = callback
    this.on('ended')
  }

  // Of a Gatherer.

  turnEnds(): void {
    this.#scheduled = false
    this.#flush()
  }

  /** Bytes that Node holds. */
  get #queued(): number {
    return this.body.writableLength + this.body.readableLength + this.#res.writableLength
  }

  /** As it counts in the backlog. */
  #sizeOf(text: string): number {
    return this.hasRoom ? text.length : Buffer.byteLength(text)
  }

  #add(text: string, size: number): Promise<void> | undefined {
    this.#backlog.addText(text, size)
    this.#gathered()
    return this.#roomLater()
  }

  #go(way: Way): void {
    this.#way = way
    // Set since the stream opened, it would cut that short.
    if (!this.#res.headersSent) this.#res.removeHeader('Content-Length')
    this.#flush()
  }

  #gathered(): void {
    if (!this.hasRoom) this.#flush()
    else if (!this.#scheduled) {
      this.#scheduled = true
      gather(this)
    }
  }

  #flush(): void {
    if (!this.#way || this.#putting) return
    if (this.isDirect && this.#res.writableEnded) {
      // By somebody else.
      this.on('destroyed')
      return this.abandon()
    }
    while (this.#backlog.size > 0 && this.#blockedBy === undefined) this.#put(this.#way, this.#backlog.next())
    if (this.hasRoom) this.#wake()
    // Not over meanwhile.
    if (this.#way && this.#ending !== undefined && this.#backlog.size === 0 && this.#owed === 0) this.#finish(this.#way, this.#ending)
  }

  #put(way: Way, piece: Piece): void {
    this.#past += bytesOf(piece)
    this.#putting = true
    try {
      if (!way.write(piece)) this.#blockedBy = 'way'
    } catch (error) {
      this.#threw(error)
    }
    this.#putting = false
    const now = thisTurn()
    if (this.#turn !== now) this.#writes = 0
    this.#turn = now
    if (++this.#writes >= WRITES_PER_TURN && this.#blockedBy === undefined) this.#waitForTurn()
  }

  /**
   * What wraps the body, or somebody's replacement for a part of the response, did. It is this stream's failure, and not that of whoever gave
   * it an event among others. Bytes are lost, so none may follow: the client would go on from a later id.
   */
  #threw(error: unknown): void {
    this.on('threw', toError(error))
    this.abandon()
    cut(this.#res)
  }

  #waitForTurn(): void {
    this.#blockedBy = 'turn'
    setImmediate(() => this.unblock())
  }

  // Of a Way's owner.

  unblock(): void {
    if (this.#writes >= WRITES_PER_TURN && this.#turn === thisTurn()) return this.#waitForTurn()
    this.#blockedBy = undefined
    this.#flush()
  }

  #finish(way: Way, how: 'end' | 'cut'): void {
    this.#way = null
    try {
      way.end(how)
    } catch (error) {
      return this.#threw(error)
    }
    this.#onFinish?.()
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
