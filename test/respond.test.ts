import { createServer, ServerResponse } from 'node:http'
import { connect as connectSocket, type AddressInfo } from 'node:net'
import type { Readable } from 'node:stream'
import { text } from 'node:stream/consumers'
import { expect } from 'chai'
import type { Context, Next } from 'koa'
import { Hub, sse } from 'koa-sse'
import { connect } from './support/client.ts'
import { direct, watched } from './support/direct.ts'
import { koa, serve, until } from './support/serve.ts'
import { startWith } from './support/start.ts'
import { VERSIONS } from './support/versions.ts'

/** What goes through `res.write`. */
let seen = ''

class Watched extends ServerResponse {
  override write(...args: unknown[]): boolean {
    seen += String(args[0])
    return super.write(...(args as [string]))
  }
}

const replaced = async (ctx: Context, next: Next): Promise<void> => {
  watched(ctx, chunk => (seen += chunk))
  await next()
}

const listening = async (ctx: Context, next: Next): Promise<void> => {
  await next()
  ;(ctx.body as Readable).on('data', chunk => (seen += String(chunk)))
}

describe('the short way of the bytes', () => {
  beforeEach(() => {
    seen = ''
  })

  for (const [who, make] of Object.entries({
    'a middleware that has replaced res.write': async (hub: Hub) => (await serve(koa(replaced, sse(), hub.subscriber('a')))).port,
    'a middleware that listens to the body': async (hub: Hub) => (await serve(koa(listening, sse(), hub.subscriber('a')))).port,
    'a subclass of ServerResponse': async (hub: Hub) => {
      const handle = koa(sse(), hub.subscriber('a')).callback()
      const server = createServer({ ServerResponse: Watched }, (req, res) => void handle(req, res))
      await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
      after(() => void server.close())
      return (server.address() as AddressInfo).port
    },
  })) {
    it(`is not taken past ${who}`, async () => {
      const hub = new Hub()
      const client = await connect(`http://127.0.0.1:${await make(hub)}`)
      await client.event()
      for (const data of ['1', '2', '3']) {
        await hub.publish('a', data)
        expect((await client.event()).data).to.equal(data)
      }
      expect(seen).to.match(/^:\n\n.*position.*data: 1\n\n.*data: 2\n\n.*data: 3\n\n$/s)
      client.destroy()
      await client.ended
    })
  }

  for (const corked of [false, true]) {
    it(`is left while the response has something queued of its own${corked ? ', for it was corked' : ''}`, async () => {
      let ctx: Context | undefined
      const { url } = await serve(
        koa(sse(), given => {
          ctx = given
          ctx.sse.open()
        }),
      )
      const client = await connect(url)
      await client.next()
      if (corked) ctx!.res.cork()
      // Bytes go the response's way, text goes to the socket.
      for (const write of [() => ctx!.sse.send('first'), () => ctx!.sse.body.write('data: bytes\n\n'), () => ctx!.sse.send('last')]) {
        void write()
        await new Promise<void>(resolve => process.nextTick(resolve))
      }
      if (corked) ctx!.res.uncork()
      expect(await client.take(3)).to.deep.equal(['first', 'bytes', 'last'])
      client.destroy()
    })
  }

  direct?.('lets one response that throws keep nobody else from an event', async () => {
    const hub = new Hub()
    const broken = new Error('on purpose')
    const app = koa(
      async (ctx, next) => {
        if (ctx.path === '/broken') {
          watched(ctx, chunk => {
            if (chunk.includes('x')) throw broken
          })
        }
        await next()
      },
      // A small event is written when the turn ends, a large one at once.
      sse({ highWaterMark: 1_000 }),
      hub.subscriber('a'),
    )
    const { url } = await serve(app)
    for (const size of [1, 10_000]) {
      const clients = [await connect(url), await connect(`${url}/broken`), await connect(url)]
      for (const client of clients) await client.event()
      const data = 'x'.repeat(size)
      await hub.publish('a', data)
      expect(await clients[0]!.take(1)).to.deep.equal([data])
      expect(await clients[2]!.take(1)).to.deep.equal([data])
      expect(await clients[1]!.ended).to.equal('cut')
      expect(app.errors.splice(0)).to.deep.equal([broken])
    }
    await hub.close({ graceMs: 100 })
  })

  it('brings the head and the first bytes in one write', async () => {
    const writes: string[] = []
    const app = koa(
      async (ctx, next) => {
        const socket = ctx.res.socket!
        const writev = socket._writev!.bind(socket)
        socket._writev = (chunks, callback) => {
          writes.push(chunks.map(({ chunk }) => String(chunk)).join(''))
          writev(chunks, callback)
        }
        await next()
      },
      sse({ retry: 500 }),
      ctx => ctx.sse.pipe(['x', 'y']),
    )
    await (await fetch((await serve(app)).url)).text()
    expect(writes[0]).to.match(/^HTTP\/1\.1 200 OK\r\n.*\r\n\r\n[\da-f]+\r\nretry: 500\n\ndata: x\n\n/s)
  })

  it('is not taken when whoever waits for the head makes it one without a body', async () => {
    for (const status of [204, 304]) {
      const app = koa(
        async ({ res }, next) => {
          const writeHead = res.writeHead.bind(res)
          // As the package `on-headers` does it.
          res.writeHead = () => writeHead(status)
          await next()
        },
        sse(),
        ctx => ctx.sse.pipe(['x']),
      )
      const { port } = await serve(app)
      const socket = connectSocket(port, '127.0.0.1')
      socket.end('GET / HTTP/1.1\r\nHost: test\r\n\r\n')
      const answer = await text(socket)
      expect(answer).to.match(new RegExp(`^HTTP/1.1 ${status} `))
      expect(answer.slice(answer.indexOf('\r\n\r\n'))).to.equal('\r\n\r\n')
    }
  })

  for (const [what, breakOff] of Object.entries<(res: ServerResponse, error: Error) => void>({
    'the head': (res, error) => {
      res.writeHead = () => {
        throw error
      }
    },
    'the last bytes': (res, error) =>
      watched({ res }, chunk => {
        if (chunk.includes('x')) throw error
      }),
    'the end': (res, error) => {
      res.end = () => {
        throw error
      }
    },
  })) {
    direct?.(`fails a stream that has ended already, and no other, when writing ${what} throws`, async () => {
      const broken = new Error('on purpose')
      const app = koa(
        async ({ path, res }, next) => {
          if (path === '/broken') breakOff(res, broken)
          await next()
        },
        sse(),
        ctx => ctx.sse.pipe(['x']),
      )
      const { port, url } = await serve(app)
      const socket = connectSocket(port, '127.0.0.1')
      socket.write('GET /broken HTTP/1.1\r\nHost: test\r\n\r\n')
      const [answer, other] = await Promise.all([text(socket), connect(url)])
      expect(answer).not.to.contain('0\r\n\r\n')
      expect(await other.take(1)).to.deep.equal(['x'])
      expect(await other.ended).to.equal('clean')
      expect(app.errors).to.deep.equal([broken])
    })
  }

  it("leaves ctx.respond as it was to the app's other requests", async () => {
    let respond: unknown = 'nothing'
    const { url } = await serve(
      koa(
        async (ctx, next) => {
          if (ctx.path === '/sse') return next()
          respond = ctx.respond
          if (ctx.path !== '/own') {
            ctx.body = 'of Koa'
            return
          }
          ctx.status = 200
          ctx.respond = false
          setImmediate(() => ctx.res.end('of its own'))
        },
        sse(),
        ctx => ctx.sse.pipe(['x']),
      ),
    )
    expect(await (await fetch(url)).text()).to.equal('of Koa')
    const before = respond
    const client = await connect(`${url}/sse`)
    expect(await client.take(1)).to.deep.equal(['x'])
    expect(await (await fetch(url)).text()).to.equal('of Koa')
    expect(respond).to.equal(before)
    expect(await (await fetch(`${url}/own`)).text()).to.equal('of its own')
  })

  it('does not cut short what middleware that has looked at ctx.respond answers itself, however long that takes', async () => {
    const { url } = await serve(
      koa(
        async (ctx, next) => {
          await next()
          void ctx.respond
          ctx.body = 'replaced'
          ctx.respond = false
          ctx.res.removeHeader('Content-Length')
          ctx.res.writeHead(200).write('from then ')
          setTimeout(() => ctx.res.end('till now'), 2_300)
        },
        sse(),
        ctx => void ctx.sse.open(),
      ),
    )
    expect(await (await fetch(url)).text()).to.equal('from then till now')
  })

  direct?.('is told of by ctx.respond still when it is taken, and when the stream has ended', async () => {
    const { url, arrived } = await startWith({}, ctx => void ctx.sse.open())
    const client = await connect(url)
    await client.next()
    const ctx = await arrived
    expect(ctx.respond).to.equal(false)
    ctx.sse.close()
    expect(await client.ended).to.equal('clean')
    expect(ctx.respond).to.equal(false)
  })

  for (const [version, koaOf] of VERSIONS) {
    it(`is not taken on Koa ${version} when the handler has set a status without a body: the stream ends`, async () => {
      const reasons: string[] = []
      const app = koaOf(sse(), ctx => {
        void ctx.sse.closed.then(reason => reasons.push(reason))
        ctx.status = 204
        ctx.sse.open()
      })
      const client = await connect((await serve(app)).url)
      expect(client.status).to.equal(204)
      expect(await client.ended).to.equal('clean')
      await until(() => reasons.length > 0)
      expect(reasons).to.deep.equal(['closed'])
      expect(app.errors).to.deep.equal([])
    })
  }

  it('is not taken when the app has a say of its own on all its contexts', async () => {
    const app = koa(sse(), ctx => ctx.sse.pipe(['x', 'y']))
    app.context.respond = true
    const { url } = await serve(app)
    expect(await (await connect(url)).take(2)).to.deep.equal(['x', 'y'])
    expect(Object.getOwnPropertyDescriptor(app.context, 'respond')).to.include({ value: true })
  })

  it('is not taken when the app has a say of its own on ctx.respond', async () => {
    let pipes = 0
    const { url } = await serve(
      koa(
        async (ctx, next) => {
          ctx.respond = true
          await next()
          ;(ctx.body as NodeJS.ReadableStream).once('resume', () => pipes++)
        },
        sse(),
        ctx => ctx.sse.pipe(['x', 'y']),
      ),
    )
    expect(await (await connect(url)).take(2)).to.deep.equal(['x', 'y'])
    expect(pipes).to.equal(1)
  })
})
