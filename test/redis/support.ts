import type { RedisOptions } from 'ioredis'
import { RedisBroker, type Parts } from '../../src/redis/redis-broker.ts'
import type { RedisBrokerOptions } from '../../src/redis/redis-options.ts'
import { Recorder } from '../support/broker-suite.ts'
import { until } from '../support/serve.ts'

export const KEY = '{sse:0}:log'

/** A broker, and what it told its sink. */
export interface Node {
  readonly broker: RedisBroker
  readonly sink: Recorder
  /** Resolves when start() has. */
  readonly started: Promise<void>
}

const nodes: Node[] = []

/** A broker on this server that has been told to start; closed when the test is over. It writes nothing by itself but one heartbeat at start. */
export const node = (redis: string | RedisOptions, options: RedisBrokerOptions = {}, parts: Parts = {}): Node => {
  const broker = new RedisBroker({ redis, ...options }, { heartbeat: 60_000, ...parts })
  const sink = new Recorder()
  const started = broker.start(sink)
  started.catch(() => {})
  const made = { broker, sink, started }
  nodes.push(made)
  return made
}

/** One that has started, and has its heartbeat behind it: nothing stands in the log that a test did not put there. */
export const startedNode = async (redis: string | RedisOptions, options: RedisBrokerOptions = {}, parts: Parts = {}): Promise<Node> => {
  const made = node(redis, options, parts)
  await made.started
  await until(() => made.broker.stats().up)
  return made
}

export const closeNodes = async (): Promise<void> => {
  await Promise.all(nodes.splice(0).map(async ({ broker }) => broker.close()))
}

/** What a promise rejects with. */
export const rejection = async (promise: Promise<unknown>): Promise<unknown> =>
  promise.then(
    value => new Error(`it resolved with ${String(value)}`),
    (error: unknown) => error,
  )

/** Publishes, and resolves when these nodes have it. */
export const passes = async (text: string, from: Node, ...to: Node[]): Promise<string> => {
  const id = await from.broker.publish('a', { data: text })
  for (const { sink } of to) await until(() => sink.data.includes(text))
  return id
}
