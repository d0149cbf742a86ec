import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect } from 'chai'
import { encodeFields } from '../../src/redis/entry.ts'
import type { Parts } from '../../src/redis/redis-broker.ts'
import { freePort, needsRedis, Proxy, RedisServer } from '../support/redis.ts'
import { until } from '../support/serve.ts'
import { closeNodes, KEY, node, passes, startedNode } from './support.ts'

const text = (data: string): { data: string } => ({ data })

describe('RedisBroker, on a server that', function () {
  this.timeout(20_000)
  needsRedis()
  const made: { stop: () => Promise<void> }[] = []
  const start = async (...args: Parameters<typeof RedisServer.start>): Promise<RedisServer> => {
    const server = await RedisServer.start(...args)
    made.push(server)
    return server
  }
  afterEach(async () => {
    await closeNodes()
    for (const each of made.splice(0)) await each.stop()
  })

  it('is told to keep events for no whole number of milliseconds: takes them', async () => {
    const server = await start({})
    const one = await startedNode(server.options, { retention: 20_000.5 })
    await passes('x', one, one)
  })

  it('speaks TLS: publishes, follows, comes back after a cut, and trusts nobody without reason (pending without openssl)', async function () {
    const folder = mkdtempSync(join(tmpdir(), 'koa-sse-tls-'))
    const [key, cert] = [join(folder, 'key.pem'), join(folder, 'cert.pem')]
    try {
      const ec = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2']
      execFileSync(
        'openssl',
        ['req', '-x509', ...ec, '-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost', '-keyout', key, '-out', cert],
        {
          stdio: 'ignore',
        },
      )
    } catch {
      rmSync(folder, { recursive: true })
      this.skip()
    }
    try {
      const port = await freePort()
      const files = ['--tls-cert-file', cert, '--tls-key-file', key, '--tls-ca-cert-file', cert, '--tls-auth-clients', 'no']
      const server = await start({ persistent: true, args: ['--tls-port', `${port}`, ...files] })
      const options = { host: 'localhost', port, tls: { ca: readFileSync(cert) } }
      const [a, b] = [await startedNode(options), await startedNode(options)]
      const first = await passes('1', a, a, b)
      await server.cutAll()
      await passes('2', b, a, b)
      await server.kill()
      const published = a.broker.publish('a', text('3'))
      await server.up()
      await published
      await b.sink.have(3)
      expect(b.sink.data).to.deep.equal(['1', '2', '3'])
      expect((await b.broker.read(first, 10))?.length).to.equal(2)
      expect([...a.sink.gaps, ...b.sink.gaps]).to.deep.equal([])
      // One that hangs is no reason to wait.
      server.pause()
      const begin = performance.now()
      await a.broker.close()
      expect(performance.now() - begin).to.be.below(1_000)
      server.resume()
      const stranger = node(`rediss://localhost:${port}`)
      await until(() => stranger.sink.errors.length > 0)
      expect(String(stranger.sink.errors[0])).to.include('self-signed certificate')
      expect(stranger.sink.calls.map(([kind]) => kind)).not.to.include('position')
    } finally {
      rmSync(folder, { recursive: true })
    }
  })

  for (const [version, load] of Object.entries<Parts['load']>({ 6: undefined, 5: async () => import('ioredis5') })) {
    it(`is named by a URL that asks for what the broker overrides: it overrides that all the same, with ioredis ${version}`, async () => {
      const server = await start()
      const asked = ['connectTimeout=1000', 'keyPrefix=app:', 'socketTimeout=50', 'monitor=true', 'readOnly=true', 'lazyConnect=', 'retryStrategy=5']
      // Each by itself: any of them can hide another.
      const nodes = await Promise.all(asked.map(async each => startedNode(`${server.url}?db=1&${each}`, {}, { load, block: 100 })))
      await passes('x', nodes[0]!, ...nodes)
      await server.command('SELECT', 1)
      expect(await server.command('KEYS', '*')).to.deep.equal([KEY])
      for (const { broker, sink } of nodes) expect([broker.stats().reconnects, sink.errors]).to.deep.equal([0, []])
    })
  }

  for (const [version, load] of Object.entries<Parts['load']>({ 6: undefined, 5: async () => import('ioredis5') })) {
    it(`has no such database, or does not let us select it: tells that, and leaves the others alone, with ioredis ${version}`, async () => {
      const server = await start()
      await server.command('ACL', 'SETUSER', 'app', 'on', '>secret', 'allkeys', '+@all', '-select')
      const none = node(`${server.url}/99`, {}, { load })
      const forbidden = node({ ...server.options, username: 'app', password: 'secret', db: 1 }, {}, { load })
      await until(() => [none, forbidden].every(({ broker }) => broker.stats().reconnects > 0))
      expect(String(none.sink.errors)).to.equal('ReplyError: ERR DB index is out of range')
      expect(String(forbidden.sink.errors)).to.match(/^ReplyError: NOPERM [^,]* 'select' command/)
      expect(await server.command('KEYS', '*')).to.deep.equal([])
      await server.command('ACL', 'SETUSER', 'app', '+select')
      await forbidden.started
      await server.command('SELECT', 1)
      expect(await server.command('KEYS', '*')).to.deep.equal([KEY])
    })
  }

  it('evicts the log: every node reports that it was lost, and goes on', async () => {
    const server = await start()
    const parts = { block: 300 }
    const [a, b] = [await startedNode(server.options, {}, parts), await startedNode(server.options, {}, parts)]
    const old = await passes('before', a, a, b)
    await server.command('CONFIG', 'SET', 'maxmemory-policy', 'allkeys-random')
    await server.command('CONFIG', 'SET', 'maxmemory', 1)
    for (let evicted = 0; evicted === 0;) {
      evicted = Number(await server.info('stats', 'evicted_keys'))
    }
    await server.command('CONFIG', 'SET', 'maxmemory', 0)
    await until(() => a.sink.gaps.length > 0 && b.sink.gaps.length > 0)
    await passes('after', b, a, b)
    expect([a.sink.gaps, b.sink.gaps]).to.deep.equal([['lost'], ['lost']])
    expect(await a.broker.read(old, 10)).to.equal(undefined)
  })

  it('sets its clock back: ids go on from where they were; and when it loses the log too, those who wait for later ones are woken', async () => {
    const server = await start()
    // Only the first looks by itself.
    const a = await startedNode(server.options, {}, { block: 300 })
    const b = await startedNode(server.options, {}, { block: 60_000 })
    await passes('before', a, a, b)
    const ahead = Date.now() + 3_600_000
    const fields = encodeFields({ publisher: 'abcdefghijkl', count: 1 }, { channel: 'a', event: text('by a clock that is fast') })
    await server.command('XADD', KEY, `${ahead}-5`, ...fields)
    expect(await passes('alive', b, a, b)).to.match(new RegExp(`^${ahead}-6\\.`))
    expect([...a.sink.gaps, ...b.sink.gaps]).to.deep.equal([])
    await server.command('DEL', KEY)
    await until(() => a.sink.gaps.length > 0)
    const id = await a.broker.publish('a', text('after'))
    expect(Number.parseInt(id)).to.equal(ahead)
    await until(() => b.sink.gaps.length > 0)
    await passes('later', b, a, b)
    // One of them is no fork in the other's eyes.
    expect([a.sink.gaps, b.sink.gaps]).to.deep.equal([['lost'], ['lost']])
    expect([...a.sink.errors, ...b.sink.errors]).to.deep.equal([])
    for (const { sink } of [a, b]) expect(sink.data.slice(-1)).to.deep.equal(['later'])
  })

  it('is another one for the writer than for the reader, though both answer: the heartbeat that does not come back brings them together', async () => {
    const [old, now] = [await start(), await start()]
    const link = await Proxy.start(old.port)
    made.unshift(link)
    const one = await startedNode(link.options, {}, { block: 60_000, heartbeat: 300 })
    // Somebody else's that do come say nothing.
    await startedNode(old.options, {}, { heartbeat: 100 })
    await passes('before', one, one)
    // The address means another server now, and the writer, its second connection, has noticed.
    link.target = now.port
    link.cutOne(1)
    await until(() => !one.broker.stats().up)
    await until(() => one.broker.stats().up, 10_000)
    await passes('after', one, one)
    expect(one.sink.gaps).to.deep.equal(['lost'])
    expect(Number(await now.command('XLEN', KEY))).to.be.above(0)
  })

  for (const isSame of [false, true]) {
    it(`was the master once, and still has the connection for replays: gives nothing of what it alone has, ${isSame ? 'at the newest id' : 'at an id of its own'}, and withholds nothing`, async () => {
      const old = await start({ args: ['--repl-diskless-sync-delay', '0'] })
      const now = await start({ args: ['--replicaof', '127.0.0.1', `${old.port}`] })
      const link = await Proxy.start(old.port)
      made.unshift(link)
      const one = await startedNode(link.options)
      const before = await passes('before', one, one)
      while (Number(await old.command('WAIT', 1, 1_000)) === 0);
      expect(await one.broker.read(before, 10)).to.deep.equal([])
      await now.command('REPLICAOF', 'NO', 'ONE')
      link.target = now.port
      // Its reader and its writer have noticed; a replay is what the third connection waits for.
      for (const index of [0, 1]) link.cutOne(index)
      const after = await passes('after', one, one)
      const place = isSame ? after.split('.')[0]! : '*'
      await old.command('XADD', KEY, place, ...encodeFields({ publisher: 'abcdefghijkl', count: 1 }, { channel: 'a', event: text('astray') }))
      expect((await one.broker.read(before, 10))?.map(({ id, event }) => [id, event.data])).to.deep.equal([[after, 'after']])
      expect(one.sink.gaps).to.deep.equal([])
    })
  }

  it('is still loading its data: publishes and readers wait for it, without haste, and nothing is lost', async () => {
    const slow = ['--key-load-delay', '100', '--loading-process-events-interval-bytes', '1024']
    const server = await start({ persistent: true, args: slow })
    const one = await startedNode(server.options, {}, { block: 300 })
    await server.command('EVAL', "for i = 1, 12000 do redis.call('SET', i, i) end", 0)
    await passes('before', one, one)
    await server.kill()
    const many = Array.from({ length: 5_000 }, (_, i) => `${i}`)
    const published = Promise.all(many.map(async data => one.broker.publish('a', text(data.padEnd(300, ' ')))))
    await server.up({ ready: false })
    await until(() => one.sink.errors.some(error => String(error).includes('LOADING')))
    await published
    await one.sink.have(many.length + 1)
    expect((one.sink.data as string[]).map(data => data.trim())).to.deep.equal(['before', ...many])
    expect(one.sink.gaps).to.deep.equal([])
    expect(one.broker.stats().reconnects).to.be.below(30)
  })
})
