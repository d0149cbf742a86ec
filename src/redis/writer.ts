import { randomBytes } from 'node:crypto'
import { detached, setImmediate } from '../turn.ts'
import { isReply, type Connection } from './connection.ts'
import { cursorOf, type Cursor } from './cursor.ts'
import { encodeFields, messageTag, type Content, type MessageId } from './entry.ts'
import { closedError, type Link } from './link.ts'
import { busy, isPassing, unavailable, type Message } from './message.ts'
import { Outbox } from './outbox.ts'

// A reply that takes longer: the link is dead, or Redis is.
const REPLY_TIMEOUT = 5_000
// How long WAIT may take, when `strict`.
const REPLICA_TIMEOUT = 2_000
// How long close() lets what is under way arrive.
const FAREWELL = 500
// Commands of a burst that are sent in one go. Then everybody else has a turn: 100 000 of them take seconds.
const CHUNK = 500

/** How a {@link Writer} is made. */
export interface WriterOptions {
  readonly link: Link
  readonly key: string
  readonly retention: number
  readonly publishTimeout: number
  readonly maxPending: number
  readonly strict: boolean
  readonly onFailure: (error: unknown) => void
}

/**
 * Adds to the log, first in, first out. What is not acknowledged when a connection ends is sent again, in order and under the same
 * message id, until its time is over; readers drop the copies.
 */
export class Writer {
  readonly #options: WriterOptions
  readonly #publisher = [...randomBytes(12)].map(byte => (byte % 36).toString(36)).join('')
  #count = 0
  readonly #outbox = new Outbox()
  #connection: Connection | undefined
  /** It has taken an event. Before, a server that begins to accept in the middle of many would put later ones before those it refused. */
  #accepts = false
  #opened = false
  #running = false
  #flushing = false
  /** What is under way may arrive still, as long as the link is open. */
  #closed = false
  /** When the connection last said something while something was under way. */
  #heard = 0
  #underWay = 0
  #timer: NodeJS.Timeout | undefined
  #lastError: unknown
  #failed: unknown
  /** The newest time of the log that anybody here has seen: what is kept is counted from it. */
  newest = 0

  constructor(options: WriterOptions) {
    this.#options = options
  }

  /** Messages that are not in the log yet, for all that is known. */
  get pending(): number {
    return this.#outbox.pending
  }

  /** Names the next message. One counter for all kinds: two of them would give two messages one name. */
  nextId(): MessageId {
    return { publisher: this.#publisher, count: ++this.#count }
  }

  /** From now on messages are sent: the reader knows where the log stands. */
  open(): void {
    this.#opened = true
    this.#wake()
  }

  /** Resolves with the cursor of the entry that is delivered. */
  async write(content: Content): Promise<string> {
    const counted = !('heartbeat' in content || 'fork' in content)
    if (this.#closed) throw closedError()
    if (this.#failed !== undefined) throw this.#failed
    const { pending } = this.#outbox
    if (counted && pending >= this.#options.maxPending) throw busy(`${pending} events`, this.#lastError)
    const id = this.nextId()
    const fields = encodeFields(id, content)
    return new Promise((resolve, reject) => {
      const deadline = performance.now() + this.#options.publishTimeout
      const message: Message = { id, fields, deadline, counted, sent: 0, acknowledged: undefined, seen: undefined, settled: false, resolve, reject }
      this.#outbox.add(message)
      this.#arm()
      this.#wake()
    })
  }

  isOwn({ publisher }: MessageId): boolean {
    return publisher === this.#publisher
  }

  /** Nothing will ever be sent. */
  fail(error: unknown): void {
    this.#failed ??= error
    this.#outbox.rejectAll(error as Error)
  }

  /** Tells why Redis is not there: what waits may never have had a connection of its own. */
  unreachable(error: unknown): void {
    this.#lastError = error
  }

  /** Tells of an entry that has come through the log, and is not a copy. */
  saw(id: MessageId, cursor: Cursor): void {
    if (!this.isOwn(id)) return
    const message = this.#outbox.find(id.count)
    if (message === undefined) return
    message.seen = cursor
    // It is in the log, whether or not the reply comes. Whether replicas have it is another matter.
    if (!this.#options.strict) this.#outbox.resolve(message, cursor)
  }

  /** What was acknowledged will not come through the log any more. */
  lost(): void {
    if (this.#options.strict) return
    for (const message of this.#outbox) if (message.acknowledged !== undefined) this.#outbox.resolve(message, message.acknowledged)
  }

  /** Lets what is under way arrive, for a while, though the connection may still have to be made; rejects the rest. */
  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    if (this.#running) await this.#outbox.idle(FAREWELL)
    clearTimeout(this.#timer)
    this.#options.link.close()
    this.#outbox.rejectAll(closedError())
  }

  /** One timer for all: the first in the queue is the first whose time is over. */
  #arm(): void {
    if (this.#timer !== undefined || this.#options.link.closed) return
    const now = performance.now()
    const [first] = this.#outbox
    if (first === undefined) return
    const reply = this.#underWay > 0 ? this.#heard + REPLY_TIMEOUT : Infinity
    const ms = Math.max(1, Math.min(first.deadline, reply, now + REPLY_TIMEOUT) - now)
    // Where this process slept or was busy, it has yet to hear what Redis has said meanwhile.
    this.#timer = setTimeout(() => setImmediate(() => this.#tick()), ms)
  }

  #tick(): void {
    this.#timer = undefined
    const now = performance.now()
    for (const message of this.#outbox) {
      if (message.deadline > now) break
      if (message.acknowledged !== undefined && !this.#options.strict) this.#outbox.resolve(message, message.acknowledged)
      else this.#outbox.reject(message, unavailable(`Redis did not take the event within ${this.#options.publishTimeout} ms`, this.#lastError))
    }
    if (this.#underWay > 0 && now - this.#heard >= REPLY_TIMEOUT) {
      this.#options.link.recycle(new Error(`Redis did not answer within ${REPLY_TIMEOUT} ms`))
    }
    this.#arm()
  }

  // --- the connection

  #wake(): void {
    if (!this.#opened || this.#options.link.closed) return
    if (this.#connection?.over === false) {
      if (this.#flushing) return
      this.#flushing = true
      // Whatever is published in the same turn leaves in one write.
      queueMicrotask(() => {
        this.#flushing = false
        this.#flush()
      })
    } else if (!this.#running) {
      this.#running = true
      void detached(() => this.#run())
    }
  }

  /** Goes on as long as there is something to send; a connection that is lost when there is nothing is made anew with the next. */
  async #run(): Promise<void> {
    try {
      while (!this.#options.link.closed && !this.#outbox.isEmpty) {
        const connection = await this.#options.link.get()
        this.#connection = connection
        this.#outbox.rewind()
        this.#accepts = false
        this.#underWay = 0
        this.#flush()
        await connection.ended
        this.#options.link.drop(connection, connection.error)
        this.#connection = undefined
      }
    } catch (error) {
      // Closed, or no ioredis.
      this.fail(error)
    } finally {
      this.#running = false
      this.#connection = undefined
    }
  }

  #flush(): void {
    const connection = this.#connection
    if (connection === undefined || connection.over) return
    const { stream } = connection.redis
    // All of a burst in few writes: Redis then reads it in few, at a third of the cost.
    stream.cork()
    const batch: Message[] = []
    while (this.#accepts || this.#underWay === 0) {
      if (batch.length === CHUNK) {
        setImmediate(() => this.#wake())
        break
      }
      const message = this.#outbox.next()
      if (message === undefined) break
      // A replica's word is for the connection that wrote.
      if (message.acknowledged !== undefined && !this.#options.strict) continue
      batch.push(message)
      this.#send(connection, message)
    }
    if (this.#options.strict && batch.length > 0) this.#waitForReplica(connection, batch)
    stream.uncork()
  }

  #send(connection: Connection, message: Message): void {
    message.sent++
    if (this.#underWay++ === 0) this.#heard = performance.now()
    const { key, retention } = this.#options
    // Beyond the safe numbers it is no time.
    const trim =
      this.newest > retention && Number.isSafeInteger(this.newest) ? (['MINID', '~', `${Math.floor(this.newest - retention)}-0`] as const) : []
    const reply = connection.call('XADD', key, ...trim, '*', ...message.fields) as Promise<string>
    reply.then(
      id => {
        this.#hear(connection)
        this.#options.link.proven()
        this.#lastError = undefined
        if (connection === this.#connection && !this.#accepts) {
          this.#accepts = true
          this.#wake()
        }
        this.#acknowledge(message, id)
      },
      (error: unknown) => this.#refused(connection, message, error),
    )
  }

  #acknowledge(message: Message, redisId: string): void {
    const cursor = cursorOf(redisId, messageTag(message.id))
    this.newest = Math.max(this.newest, cursor.ms)
    message.acknowledged = cursor
    if (this.#options.strict) return
    // Sent twice, it may be there twice, and the first is the one that counts: the reader will see it.
    if (message.sent === 1) this.#outbox.resolve(message, cursor)
  }

  #refused(connection: Connection, message: Message, error: unknown): void {
    this.#lastError = error
    if (!isReply(error)) return
    this.#hear(connection)
    if (isPassing(error)) this.#options.link.drop(connection, error)
    else {
      // Nobody else is told why.
      if (!message.counted) this.#options.onFailure(error)
      this.#outbox.reject(message, unavailable('Redis refused the event', error))
      this.#wake()
    }
  }

  #waitForReplica(connection: Connection, batch: Message[]): void {
    void (connection.call('WAIT', 1, REPLICA_TIMEOUT) as Promise<number>).then(
      replicas => {
        for (const message of batch) {
          if (message.acknowledged === undefined) continue
          if (replicas > 0) this.#outbox.resolve(message, message.seen ?? message.acknowledged)
          else this.#outbox.reject(message, unavailable(`No replica had the event within ${REPLICA_TIMEOUT} ms`, undefined))
        }
      },
      (error: unknown) => {
        if (isReply(error)) this.#options.onFailure(error)
      },
    )
  }

  #hear(connection: Connection): void {
    if (connection !== this.#connection) return
    this.#underWay--
    this.#heard = performance.now()
  }
}
