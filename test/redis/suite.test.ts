import { RedisBroker, type Parts } from '../../src/redis/redis-broker.ts'
import { brokerSuite } from '../support/broker-suite.ts'
import { hasRedis, needsRedis, RedisServer } from '../support/redis.ts'

const versions: Record<string, Parts['load']> = {
  'ioredis 6': undefined,
  'ioredis 5': async () => import('ioredis5'),
  'ioredis 5.0': async () => import('ioredis50'),
}

for (const [version, load] of Object.entries(versions)) {
  describe(`koa-sse/redis on ${version}`, () => {
    needsRedis()
    let server: RedisServer
    before(async () => {
      if (hasRedis) server = await RedisServer.start()
    })
    after(async () => server?.stop())
    afterEach(async () => server?.command('FLUSHALL'))

    brokerSuite(`RedisBroker on ${version}`, {
      create: () => new RedisBroker({ redis: server.options }, { load }),
      shared: true,
      forget: async broker => {
        // What begins after all that a broker has seen might be another log: it waits until it has seen this.
        await broker.read(await broker.publish('a', { data: 'kept' }), 1)
        await server.command('XTRIM', '{sse:0}:log', 'MAXLEN', '=', 1)
      },
    })
  })
}
