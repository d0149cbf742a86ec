// What one writes oneself where there is no library.

export const HEAD = { 'Content-Type': 'text/event-stream', 'Cache-Control': 'no-cache', Connection: 'keep-alive' }

/** Who listens where. */
export class Channels {
  #members = new Map()

  add(channel, member) {
    const members = this.#members.get(channel)
    if (members === undefined) this.#members.set(channel, new Set([member]))
    else members.add(member)
  }

  remove(channel, member) {
    const members = this.#members.get(channel)
    members?.delete(member)
    if (members?.size === 0) this.#members.delete(channel)
  }

  of(channel) {
    return this.#members.get(channel) ?? []
  }
}

/** Frames with ids, the last of them kept for who returns. */
export class Kept {
  #sequence = 0
  #frames = []
  #limit

  constructor(limit) {
    this.#limit = limit
  }

  get lastId() {
    return `1-${this.#sequence}`
  }

  frame(data) {
    this.#sequence++
    const frame = `id: ${this.lastId}\ndata: ${data}\n\n`
    if (this.#limit > 0 && this.#frames.push(frame) > this.#limit) this.#frames.shift()
    return frame
  }

  after(id) {
    return id === undefined ? [] : this.#frames.slice(this.#frames.length - this.#sequence + Number(id.split('-')[1]))
  }
}
