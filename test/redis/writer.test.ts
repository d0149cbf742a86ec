import { expect } from 'chai'
import { Link } from '../../src/redis/link.ts'
import { Route } from '../../src/redis/route.ts'
import { Writer } from '../../src/redis/writer.ts'
import { eachRedis } from '../support/redis.ts'
import { KEY, rejection } from './support.ts'

describe('the writer of koa-sse/redis', () => {
  const redis = eachRedis()

  it('has room for what the broker says itself, however many events wait, and does not count that', async () => {
    const link = new Link({ server: redis().options, route: new Route(), load: undefined, onFailure: () => {} })
    const writer = new Writer({ link, key: KEY, retention: 60_000, publishTimeout: 10_000, maxPending: 2, strict: false, onFailure: () => {} })
    const event = { channel: 'a', event: { data: 'x' } }
    const written = [event, { heartbeat: true } as const, { fork: '1-1.aaaa' }, event, { heartbeat: true } as const].map(async each =>
      writer.write(each),
    )
    expect(writer.pending).to.equal(2)
    expect(await rejection(writer.write(event))).to.have.property('code', 'ERR_SSE_BROKER_BUSY')
    writer.open()
    const ids = await Promise.all(written)
    const log = (await redis().command('XRANGE', KEY, '-', '+')) as [string, string[]][]
    expect(log.map(([id]) => id)).to.deep.equal(ids.map(id => id.split('.')[0]))
    expect(writer.pending).to.equal(0)
    await writer.close()
  })
})
