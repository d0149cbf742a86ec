import { PassThrough, type TransformCallback } from 'node:stream'

/** What a {@link Body} tells. */
export interface BodyOwner {
  /** Somebody reads. */
  bodyRead(): void
  /** Somebody writes; `callback` asks for more. */
  bodyWritten(chunk: Buffer, callback: () => void): void
  /** Somebody has ended it; `callback` is to be called with the last byte. */
  bodyEnded(callback: () => void): void
  /** Somebody has destroyed it. */
  on(what: 'destroyed', error: Error | null): void
}

/** The body that a handler and outer middleware see. What others write to it goes the way of all bytes; what comes out is its owner's. */
export class Body extends PassThrough {
  #owner: BodyOwner | undefined

  constructor(owner: BodyOwner) {
    // What nobody takes yet waits with the owner, not here.
    super({ readableHighWaterMark: 1 })
    this.#owner = owner
  }

  override _read(size: number): void {
    this.#owner?.bodyRead()
    super._read(size)
  }

  override _transform(chunk: Buffer, _encoding: BufferEncoding, callback: TransformCallback): void {
    this.#owner?.bodyWritten(chunk, callback)
  }

  override _flush(callback: TransformCallback): void {
    this.#owner?.bodyEnded(callback)
  }

  // The error stops here: a body's 'error' event that comes before Koa listens would end the process.
  override _destroy(error: Error | null, callback: (error: Error | null) => void): void {
    this.#owner?.on('destroyed', error)
    this.#owner = undefined
    callback(null)
  }
}
