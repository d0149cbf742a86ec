import { Frame } from './frame.ts'

// What waits is taken in one go, unless it is longer than this: then the progress of a slow reader shows, piece by piece.
const PIECE = 65_536

/** Text, a frame, or bytes: as they come out of a {@link Backlog}. */
export type Piece = string | Frame | Buffer

export const bytesOf = (piece: Piece): number => (piece instanceof Frame ? piece.bytes : Buffer.byteLength(piece))

/** What waits of one stream's bytes, joined as it comes. */
export class Backlog {
  /** Behind `#rest`. */
  #waits: string | Frame = ''
  #rest: Buffer | undefined
  #size = 0

  /**
   * How much it is: bytes, but text that came with another size counts by that. To count the bytes of every event costs more than
   * all else that is done with it.
   */
  get size(): number {
    return this.#size
  }

  get bytes(): number {
    return (this.#rest?.length ?? 0) + bytesOf(this.#waits)
  }

  addText(text: string, size: number): void {
    const waits = this.#waits
    this.#waits = (typeof waits === 'string' ? waits : waits.payload.toString()) + text
    this.#size += size
  }

  addFrame(frame: Frame): void {
    const waits = this.#waits
    if (waits === '') this.#waits = frame
    else this.#waits = typeof waits === 'string' ? waits + frame.payload.toString() : waits.join(frame)
    this.#size += frame.bytes
  }

  /** These cannot wait beside text in their order: all that waits becomes bytes. */
  addBytes(bytes: Buffer): void {
    const waits = this.#waits
    this.#rest = Buffer.concat([this.#rest ?? Buffer.alloc(0), typeof waits === 'string' ? Buffer.from(waits) : waits.payload, bytes])
    this.#size = this.#rest.length
    this.#waits = ''
  }

  /** Takes the first piece out. */
  next(): Piece {
    if (this.#rest === undefined) {
      if (this.#size <= PIECE) {
        const all = this.#waits
        this.clear()
        return all
      }
      this.addBytes(Buffer.alloc(0))
    }
    const rest = this.#rest!
    const piece = rest.subarray(0, PIECE)
    this.#rest = rest.length > PIECE ? rest.subarray(PIECE) : undefined
    this.#size -= piece.length
    return piece
  }

  clear(): void {
    this.#waits = ''
    this.#rest = undefined
    this.#size = 0
  }
}
