import type { Redis, RedisOptions } from 'ioredis'
import { SseError } from '../errors.ts'
import { setImmediate } from '../turn.ts'

/** ioredis's class, as far as versions 5 and 6 agree on it. */
export interface RedisClass {
  new (options: RedisOptions): Redis
  new (url: string, options: RedisOptions): Redis
}

/** Gives what `import('ioredis')` gives. Before 5.3 that has its class as `default` only. */
export type Load = () => Promise<{ Redis?: unknown; default?: unknown }>

/** Where Redis is: a URL, or whatever ioredis takes. */
export type Server = string | RedisOptions | undefined

/** A node of a cluster. */
export interface Address {
  readonly host: string
  readonly port: number
  /** The log is on its way to this node, which answers only who says that it knows. */
  readonly asking: boolean
}

// From the beginning of a connection to the end of its handshake.
const OPEN_TIMEOUT = 5_000
// What one Sentinel may take of that, so that the next ones are asked.
const SENTINEL_TIMEOUT = 1_500
const SENTINEL_ROLE = 'master'

const OVERRIDES = {
  retryStrategy: () => null,
  sentinelRetryStrategy: () => null,
  maxRetriesPerRequest: null,
  enableOfflineQueue: false,
  lazyConnect: true,
  autoResendUnfulfilledCommands: false,
  enableAutoPipelining: false,
  reconnectOnError: null,
  // It asks for INFO, prints a warning where that is not allowed, and has a timer that outlives the connection.
  enableReadyCheck: false,
  connectTimeout: OPEN_TIMEOUT,
  // These would end a read that waits for the next event.
  commandTimeout: undefined,
  socketTimeout: undefined,
  blockingTimeout: undefined,
  monitor: false,
  readOnly: false,
  replyMapping: 'legacy',
  // It would be part of some keys' slot and not of others'; `prefix` is for this.
  keyPrefix: '',
}

const SENTINEL_OVERRIDES = { ...OVERRIDES, connectTimeout: SENTINEL_TIMEOUT, sentinelCommandTimeout: SENTINEL_TIMEOUT }

/** What stands in a URL would go before what an option says, and be text. */
const withoutOverridden = (url: string): string => {
  const at = url.indexOf('?')
  if (at === -1) return url
  const query = new URLSearchParams(url.slice(at))
  for (const name of Object.keys(OVERRIDES)) query.delete(name)
  return `${url.slice(0, at)}?${query.toString()}`
}

/** Loads ioredis. Rejects with an `SseError` that says what to install. */
export const loadRedis = async (load: Load = async () => import('ioredis')): Promise<RedisClass> => {
  try {
    const { Redis, default: main } = await load()
    return (Redis ?? main) as RedisClass
  } catch (cause) {
    throw new SseError('ERR_SSE_BROKER_UNAVAILABLE', 'koa-sse/redis needs ioredis, version 5 or 6: npm install ioredis', { cause })
  }
}

/** Whether Redis itself answered with an error, and the connection is well. */
export const isReply = (error: unknown): error is Error => error instanceof Error && error.name === 'ReplyError'

/** The same, but another Sentinel is asked first each time: the many that are dead must not take up all the time there is. */
export const rotated = (server: Server, turns: number): Server => {
  if (typeof server !== 'object' || server.sentinels == null) return server
  const { sentinels } = server
  const first = turns % sentinels.length
  return { ...server, sentinels: [...sentinels.slice(first), ...sentinels.slice(0, first)] }
}

/**
 * One connection to Redis, used once: it is never made again behind our back, and nothing is sent again by it. Whatever goes
 * wrong with it ends it, and everything under way rejects.
 *
 * ioredis's own ways of going on lose or double commands: an XADD whose reply was lost is sent twice by default, never settles
 * without `autoResendUnfulfilledCommands`, and a half-open link looks like an idle stream to `blockingTimeout`.
 */
export class Connection {
  readonly redis: Redis
  /** Undefined: the server's own. */
  readonly address: Address | undefined
  readonly #checkRole: boolean
  #giveUp: ((error: unknown) => void) | undefined
  #error: unknown
  #over = false
  #ended!: () => void
  /** Resolves when it is over. */
  readonly ended: Promise<void> = new Promise(resolve => (this.#ended = resolve))

  /** `address`: in place of the server's own; credentials, TLS and the like remain. */
  constructor(Redis: RedisClass, server: Server, address?: Address) {
    this.redis =
      typeof server === 'object'
        ? new Redis({ ...server, ...(server.sentinels == null ? OVERRIDES : SENTINEL_OVERRIDES) } as RedisOptions)
        : new Redis(withoutOverridden(server ?? 'redis://localhost:6379'), OVERRIDES as RedisOptions)
    this.address = address
    // By assignment: here too the URL would go first.
    if (address !== undefined) Object.assign(this.redis.options, { host: address.host, port: address.port, path: undefined })
    // Without a listener ioredis prints; and what it says at the end is less than what it said here.
    this.redis.on('error', error => (this.#error = error))
    this.redis.once('end', () => {
      this.#over = true
      this.#ended()
    })
    this.#checkRole = typeof server === 'object' && server.sentinels != null
  }

  get over(): boolean {
    return this.#over
  }

  /** Why it is over, as far as anybody said. */
  get error(): unknown {
    return this.#error ?? new Error('The connection to Redis was closed')
  }

  /** Connects. Rejects with the cause, after 5 s at the latest. */
  async open(): Promise<this> {
    await this.within(OPEN_TIMEOUT, async () => {
      await this.#connect()
      const { db } = this.redis.options
      // ioredis has asked for it, and goes on in the first one if it may not.
      if (db !== 0 && db != null) await this.call('SELECT', db)
      if (!this.#checkRole) return
      // A Sentinel may name a master that is one no more.
      const [role] = (await this.call('ROLE')) as [string]
      if (role !== SENTINEL_ROLE) throw new Error(`The server that the Sentinels name is a ${role}`)
    })
    return this
  }

  async #connect(): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      // While ioredis asks a Sentinel there is no stream whose end would end this.
      this.#giveUp = reject
      this.redis.connect().then(resolve, reject)
    })
  }

  /** Sends a command. */
  async call(command: string, ...args: (string | number)[]): Promise<unknown> {
    // It holds for one command.
    if (this.address?.asking === true) this.redis.call('ASKING').catch(() => {})
    return this.redis.call(command, ...args)
  }

  /** Does `work` with the connection, which is over if that takes longer than `ms`. */
  async within<T>(ms: number, work: () => Promise<T>): Promise<T> {
    let answered = false
    const end = (): void => {
      if (!answered) this.kill(new Error(`Redis did not answer within ${ms} ms`))
    }
    // Where this process slept or was busy, it has yet to hear what Redis has said meanwhile.
    const timer = setTimeout(() => setImmediate(end), ms)
    try {
      return await work()
    } catch (error) {
      throw isReply(error) ? error : (this.#error ?? error)
    } finally {
      answered = true
      clearTimeout(timer)
    }
  }

  /** Ends it at once. What is not on its way yet is not sent any more. */
  kill(error?: unknown): void {
    if (this.#over) return
    this.#over = true
    this.#error ??= error
    const { stream } = this.redis as { stream?: Redis['stream'] }
    // Before disconnect(), whose end() would send what is left as soon as the link heals, which may be minutes later.
    if (stream !== undefined) cut(stream)
    this.redis.disconnect()
    this.#giveUp?.(this.error)
  }
}

const cut = (stream: Redis['stream']): void => {
  try {
    // A socket that is still connecting would wait for that first; one that shuts down is never let go by Node 20.
    if (!stream.connecting && !stream.writableEnded) return void stream.resetAndDestroy()
  } catch {
    // TLS and Unix sockets know no reset.
  }
  stream.destroy()
}
