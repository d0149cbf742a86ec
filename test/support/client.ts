import { once } from 'node:events'
import { request, type IncomingHttpHeaders, type IncomingMessage, type RequestOptions } from 'node:http'
import type { Socket } from 'node:net'
import { reset } from './reset.ts'
import { createParser, type EventSourceMessage } from 'eventsource-parser'

export interface ConnectOptions extends RequestOptions {
  /** What is sent as the request's body. */
  body?: string | Buffer
  /** Send the head, but never the end of the body. */
  unfinished?: boolean
}

/** What a live client has read: an event, or a comment. */
export type Block = EventSourceMessage | { comment: string }

const clients = new Set<LiveClient>()

/** Reads a stream block by block, by a parser that is not ours, while it is open. */
export class LiveClient {
  readonly response: IncomingMessage
  readonly socket: Socket
  /** Everything that has come so far. */
  text = ''
  retry: number | undefined
  readonly blocks: Block[] = []
  /** Resolves when the response is over: 'clean', or 'cut' when it was broken off. */
  readonly ended: Promise<'clean' | 'cut'>
  #read = 0
  #wake = (): void => {}
  #over: 'clean' | 'cut' | undefined

  constructor(response: IncomingMessage) {
    this.response = response
    this.socket = response.socket
    const parser = createParser({
      onEvent: event => this.blocks.push(event),
      onComment: comment => this.blocks.push({ comment }),
      onRetry: retry => (this.retry = retry),
    })
    response.setEncoding('utf8')
    response.on('data', (chunk: string) => {
      this.text += chunk
      parser.feed(chunk)
      this.#wake()
    })
    this.ended = new Promise(resolve => {
      response.on('error', () => {})
      response.on('close', () => {
        this.#over = response.complete ? 'clean' : 'cut'
        resolve(this.#over)
        this.#wake()
      })
    })
    clients.add(this)
  }

  get status(): number {
    return this.response.statusCode ?? 0
  }

  get headers(): IncomingHttpHeaders {
    return this.response.headers
  }

  /** Events so far, without comments. */
  get events(): EventSourceMessage[] {
    return this.blocks.filter(block => 'data' in block)
  }

  /** The next block, whenever it comes. */
  async next(): Promise<Block> {
    for (;;) {
      const block = this.blocks[this.#read]
      if (block !== undefined) {
        this.#read++
        return block
      }
      if (this.#over !== undefined) throw new Error(`the stream ended (${this.#over}); so far: ${JSON.stringify(this.text.slice(-500))}`)
      await new Promise<void>(resolve => (this.#wake = resolve))
    }
  }

  /** The next event, comments passed over. */
  async event(): Promise<EventSourceMessage> {
    for (;;) {
      const block = await this.next()
      if ('data' in block) return block
    }
  }

  /** The data of the next `count` events. */
  async take(count: number): Promise<string[]> {
    const data: string[] = []
    while (data.length < count) data.push((await this.event()).data)
    return data
  }

  pause(): void {
    this.response.pause()
  }

  resume(): void {
    this.response.resume()
  }

  /** Leaves with a FIN. */
  fin(): void {
    this.socket.end()
  }

  /** Leaves with a RST. */
  rst(): void {
    reset(this.socket)
  }

  destroy(): void {
    this.socket.destroy()
  }
}

/** Opens a connection of its own to `url`, and resolves when the head has come. */
export const connect = async (url: string, options: ConnectOptions = {}): Promise<LiveClient> => {
  const { body, unfinished, ...rest } = options
  const req = request(url, { agent: false, ...rest })
  req.on('error', () => {})
  if (unfinished === true) req.write(body ?? ' ')
  else req.end(body)
  const [response] = (await once(req, 'response')) as [IncomingMessage]
  return new LiveClient(response)
}

afterEach(() => {
  for (const client of clients) client.destroy()
  clients.clear()
})
