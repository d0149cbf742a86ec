import { setImmediate as nextTurn } from 'node:timers/promises'
import { expect } from 'chai'
import { Link } from '../../src/redis/link.ts'
import { Route } from '../../src/redis/route.ts'
import { eachRedis, Proxy } from '../support/redis.ts'
import { until } from '../support/serve.ts'
import { rejection } from './support.ts'

describe('a link to Redis', () => {
  const redis = eachRedis()
  const linkTo = (options: { port: number }, told: unknown[] = []): Link =>
    new Link({ server: { host: '127.0.0.1', ...options }, route: new Route(), load: undefined, onFailure: error => told.push(error) })

  it('fails once with a connection, however many used it, and does not take the next one for it', async () => {
    const told: unknown[] = []
    const link = linkTo(redis().options, told)
    const first = await link.get()
    const error = new Error('over')
    for (let i = 0; i < 8; i++) link.drop(first, error)
    const next = await link.get()
    link.drop(first, error)
    expect(link.current).to.equal(next)
    expect(told).to.deep.equal([error])
    link.close()
  })

  it('pauses ever longer, until a connection was of use', async () => {
    const link = linkTo(redis().options)
    const again = async (): Promise<number> => {
      link.drop(await link.get(), new Error('over'))
      const begin = performance.now()
      await link.get()
      return performance.now() - begin
    }
    for (let i = 0; i < 5; i++) await again()
    const pauses: number[] = []
    for (let i = 0; i < 4; i++) {
      link.proven()
      pauses.push(await again())
    }
    expect(Math.min(...pauses)).to.be.at.least(49)
    // Of these each would be as long as any from 50 ms to 3.2 s.
    expect(Math.max(...pauses)).to.be.below(800)
    link.close()
  })

  for (const state of ['pauses', 'connects'] as const) {
    it(`is closed while it ${state}, after failures: who waits is told at once`, async () => {
      const proxy = await Proxy.start(redis().port)
      const failures: unknown[] = []
      const link = linkTo(proxy.options, failures)
      proxy.freeze()
      let told: unknown
      void rejection(link.get()).then(error => (told = error))
      for (let attempts = 1; attempts <= 3; attempts++) {
        await until(() => proxy.accepted === attempts)
        proxy.cut()
      }
      await until(() => (state === 'connects' ? proxy.accepted === 4 : failures.length === 3))
      link.close()
      await nextTurn()
      expect(told).to.have.property('code', 'ERR_SSE_BROKER_CLOSED')
      expect(failures).to.have.lengthOf(3)
      await proxy.stop()
    })
  }
})
