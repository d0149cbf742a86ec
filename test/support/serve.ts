import { createServer, type RequestListener, type Server } from 'node:http'
import type { AddressInfo, Socket } from 'node:net'
import Koa, { type Middleware } from 'koa'

/** A server of the test's own, on a free port; gone when the test is. */
export interface TestServer {
  readonly server: Server
  readonly port: number
  readonly url: string
  /** Sockets that are open now. */
  readonly sockets: ReadonlySet<Socket>
}

const open = new Set<TestServer>()

/** Listens on 127.0.0.1 with an app or a listener. */
export const serve = async (app: Koa | RequestListener): Promise<TestServer> => {
  const server = createServer(app instanceof Koa || 'callback' in app ? (app as Koa).callback() : app)
  const sockets = new Set<Socket>()
  server.on('connection', socket => {
    sockets.add(socket)
    socket.on('close', () => sockets.delete(socket))
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as AddressInfo
  const test: TestServer = { server, port, url: `http://127.0.0.1:${port}`, sockets }
  open.add(test)
  return test
}

/** A Koa app of these middleware, which keeps the errors that reach it. */
export const koa = (...middleware: Middleware[]): Koa & { errors: unknown[] } => {
  const app = Object.assign(new Koa(), { errors: [] as unknown[] })
  app.on('error', error => app.errors.push(error))
  for (const each of middleware) app.use(each)
  return app
}

/** Resolves when `condition` holds, looking again at every turn of the event loop; rejects after `ms`. */
export const until = async (condition: () => boolean, ms = 5_000): Promise<void> => {
  const deadline = Date.now() + ms
  while (!condition()) {
    if (Date.now() > deadline) throw new Error(`never true: ${condition.toString()}`)
    await new Promise(resolve => setTimeout(resolve, 1))
  }
}

// Mocha itself passes over these.
process.on('unhandledRejection', error => {
  throw error
})

afterEach(async () => {
  for (const { server, sockets } of open) {
    const closed = new Promise(resolve => server.close(resolve))
    for (const socket of sockets) socket.destroy()
    await closed
  }
  open.clear()
})
