import { expect } from 'chai'
import { Link } from '../../src/redis/link.ts'
import { Route } from '../../src/redis/route.ts'
import { hasRedis, needsRedis, RedisServer } from '../support/redis.ts'

describe('a link to Redis', () => {
  needsRedis()
  let server: RedisServer
  beforeEach(async () => {
    if (hasRedis) server = await RedisServer.start()
  })
  afterEach(async () => {
    await server?.stop()
  })

  it('fails once with a connection, however many used it, and does not take the next one for it', async () => {
    const told: unknown[] = []
    const link = new Link({ server: server.options, route: new Route(), load: undefined, onFailure: error => told.push(error) })
    const first = await link.get()
    const error = new Error('over')
    for (let i = 0; i < 8; i++) link.drop(first, error)
    const next = await link.get()
    link.drop(first, error)
    expect(link.current).to.equal(next)
    expect(told).to.deep.equal([error])
    link.close()
  })
})
