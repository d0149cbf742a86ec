import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { connect, createServer, type AddressInfo, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect } from 'chai'
import { Redis } from 'ioredis'
import type { Parts } from '../../src/redis/redis-broker.ts'
import { freePort, hasRedis, needsRedis, RedisServer } from '../support/redis.ts'
import { until } from '../support/serve.ts'
import { closeNodes, node, passes, rejection, startedNode } from './support.ts'

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

  for (const [version, load] of Object.entries<Parts['load']>({ 6: undefined, 5: async () => import('ioredis5') })) {
    it(`asks the next one when one says nothing, and another one's host is gone, with ioredis ${version}`, async () => {
      const [silent, gone] = [await RedisServer.start(), await RedisServer.start({ args: ['--tcp-backlog', '1'] })]
      for (const each of [silent, gone]) each.pause()
      // With its queue full, the kernel answers nobody there any more.
      const queue = Array.from({ length: 5 }, () => connect(gone.options).on('error', () => {}))
      try {
        const one = node({ sentinels: [silent.options, gone.options, { host: '127.0.0.1', port }], name: 'main' }, {}, { load })
        await one.started
        expect([one.broker.stats().reconnects, one.sink.errors]).to.deep.equal([0, []])
      } finally {
        for (const each of queue) each.destroy()
        for (const each of [silent, gone]) await each.stop()
      }
    })

    it(`that says nothing is closed: start() and publish() reject at once, and its socket does not stay, with ioredis ${version}`, async () => {
      const sockets = new Set<Socket>()
      const silent = createServer(socket => {
        sockets.add(socket)
        socket.on('close', () => sockets.delete(socket)).resume()
      }).listen(0, '127.0.0.1')
      await once(silent, 'listening')
      try {
        const one = node({ sentinels: [{ host: '127.0.0.1', port: (silent.address() as AddressInfo).port }], name: 'main' }, {}, { load })
        const publishing = rejection(one.broker.publish('a', { data: 'x' }))
        await until(() => sockets.size > 0)
        const begin = performance.now()
        await one.broker.close()
        for (const each of [await rejection(one.started), await publishing]) expect(each).to.have.property('code', 'ERR_SSE_BROKER_CLOSED')
        expect(performance.now() - begin).to.be.below(500)
        await until(() => sockets.size === 0)
      } finally {
        for (const each of sockets) each.destroy()
        silent.close()
      }
    })
  }

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
