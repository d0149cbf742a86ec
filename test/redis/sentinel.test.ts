import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect } from 'chai'
import { Redis } from 'ioredis'
import { freePort, hasRedis, needsRedis, RedisServer } from '../support/redis.ts'
import { until } from '../support/serve.ts'
import { closeNodes, passes, startedNode } from './support.ts'

const wait = async (ms: number): Promise<void> => new Promise(resolve => setTimeout(resolve, ms))

describe('RedisBroker behind a Sentinel', function () {
  this.timeout(40_000)
  needsRedis()
  let master: RedisServer
  let replica: RedisServer
  let sentinel: ChildProcess | undefined
  let port: number
  const folder = mkdtempSync(join(tmpdir(), 'koa-sse-sentinel-'))

  before(async () => {
    if (!hasRedis) return
    master = await RedisServer.start({ args: ['--repl-diskless-sync-delay', '0'] })
    replica = await RedisServer.start({ args: ['--replicaof', '127.0.0.1', `${master.port}`] })
    while (!(await master.info('replication', 'slave0')).includes('state=online')) await wait(20)
    port = await freePort()
    const lines = [
      `port ${port}`,
      'bind 127.0.0.1',
      `dir ${folder}`,
      `sentinel monitor main 127.0.0.1 ${master.port} 1`,
      'sentinel down-after-milliseconds main 500',
      'sentinel failover-timeout main 5000',
    ]
    writeFileSync(join(folder, 'sentinel.conf'), lines.join('\n'))
    sentinel = spawn('redis-server', [join(folder, 'sentinel.conf'), '--sentinel'], { stdio: 'ignore' })
    const asks = new Redis(port)
    asks.on('error', () => {})
    while (!String(await asks.call('SENTINEL', 'REPLICAS', 'main').catch(() => '')).includes(`${replica.port}`)) await wait(50)
    asks.disconnect()
  })
  afterEach(closeNodes)
  after(async () => {
    if (sentinel !== undefined) {
      const exit = once(sentinel, 'exit')
      sentinel.kill('SIGKILL')
      await exit
    }
    await master?.stop()
    await replica?.stop()
    rmSync(folder, { recursive: true, force: true })
  })

  it('goes on with the replica when the master dies: what it had is not lost, and publishes wait', async () => {
    const redis = { sentinels: [{ host: '127.0.0.1', port }], name: 'main' }
    const options = { strict: true, publishTimeout: 30_000 }
    const [a, b] = [await startedNode(redis, options), await startedNode(redis, options)]
    const before = await passes('before', a, a, b)
    await master.kill()
    const waiting = Array.from({ length: 20 }, async (_, i) => b.broker.publish('a', { data: `${i}` }).catch(() => 'no replica is left'))
    await until(() => a.sink.data.includes('19') && b.sink.data.includes('19'), 30_000)
    await Promise.all(waiting)
    expect(a.sink.data).to.deep.equal(['before', ...Array.from({ length: 20 }, (_, i) => `${i}`)])
    expect(b.sink.events).to.deep.equal(a.sink.events)
    expect([...a.sink.gaps, ...b.sink.gaps]).to.deep.equal([])
    expect((await a.broker.read(before, 100))?.length).to.equal(20)
  })
})
