// As Node's own pool has it: a slab of 8 KB, for what takes half of it at most.
const SLAB = 8_192

/**
 * Memory for small frames that are kept as long as each other. In Node's own pool, which the whole process shares, each would hold on to a
 * slab of 8 KB, most of it others' and long dead.
 */
export class Slabs {
  #slab = Buffer.alloc(0)
  #used = 0

  take(size: number): Buffer {
    if (size > SLAB / 2) return Buffer.allocUnsafe(size)
    if (this.#used + size > this.#slab.length) {
      this.#slab = Buffer.allocUnsafeSlow(SLAB)
      this.#used = 0
    }
    return this.#slab.subarray(this.#used, (this.#used += size))
  }
}

/**
 * Bytes that may go to many streams, and that are made ready for the wire once for all of them.
 *
 * Frames that follow each other are joined when they are written, and the same neighbours give the same joined frame, so that a
 * burst is put together once, too.
 */
export class Frame {
  /** Of the payload. */
  readonly bytes: number
  #parts: [Frame, Frame] | undefined
  #chunk: Buffer | undefined
  #start = 0

  /** `slabs`: where it lives, if it is to live long. */
  constructor(content: string | [Frame, Frame], slabs?: Slabs) {
    if (typeof content === 'string') {
      this.bytes = Buffer.byteLength(content)
      this.#allocate(slabs).write(content, this.#start)
    } else {
      this.bytes = content[0].bytes + content[1].bytes
      this.#parts = content
    }
  }

  /** As one chunk of HTTP/1.1's chunked coding (RFC 9112, section 7.1). */
  get chunk(): Buffer {
    if (this.#parts !== undefined) {
      const payloads: Buffer[] = []
      // No recursion: a row of small frames is a deep tree, all of its depth on this side.
      let left: [Frame, Frame] | undefined = this.#parts
      while (left !== undefined) {
        payloads.push(left[1].payload)
        if (left[0].#parts === undefined) payloads.push(left[0].payload)
        left = left[0].#parts
      }
      this.#parts = undefined
      const chunk = this.#allocate()
      let end = this.#start + this.bytes
      for (const payload of payloads) payload.copy(chunk, (end -= payload.length))
    }
    return this.#chunk!
  }

  get payload(): Buffer {
    const { chunk } = this
    return chunk.subarray(this.#start, this.#start + this.bytes)
  }

  /** This frame and the next one. */
  join(next: Frame): Frame {
    if (lastJoin?.a !== this || lastJoin.b !== next) lastJoin = { a: this, b: next, joined: new Frame([this, next]) }
    return lastJoin.joined
  }

  /** A chunk that lacks its payload. */
  #allocate(slabs?: Slabs): Buffer {
    const head = `${this.bytes.toString(16)}\r\n`
    this.#start = head.length
    const size = head.length + this.bytes + 2
    const chunk = slabs === undefined ? Buffer.allocUnsafe(size) : slabs.take(size)
    chunk.write(head, 'latin1')
    chunk.write('\r\n', head.length + this.bytes, 'latin1')
    return (this.#chunk = chunk)
  }
}

// All of a channel's streams join the same two frames, one stream after the other.
let lastJoin: { a: Frame; b: Frame; joined: Frame } | undefined
