import type { Server } from 'node:http'
import type { Hub, SseMiddleware } from 'koa-sse'

const DEADLINE = 15_000

/** Ends all streams, and then the server. */
export const shutdown = async (server: Server, hubs: Hub[], streams: SseMiddleware): Promise<void> => {
  const event = { event: 'farewell', data: 'The server restarts.' }
  // Nobody new comes in. It waits for the streams, and is awaited last. A closed sse() answers with 503, after which an EventSource
  // never comes back, so it is not to be reached any more: neither anew, nor on connections that are open still.
  const closed = new Promise(resolve => server.close(resolve))
  const sweep = setInterval(() => server.closeIdleConnections(), 10)
  // Each client is told to come back after another time, 2 to 4 seconds.
  await Promise.all(hubs.map(hub => hub.close({ event, retry: 2_000 })))
  // The streams that are not a hub's.
  await streams.close({ event, retry: 2_000 })
  // Browsers keep connections at hand that have never carried a request, and server.close() waits for these too.
  const last = setTimeout(() => server.closeAllConnections(), 500)
  await closed
  clearInterval(sweep)
  clearTimeout(last)
}

/** Does so on the first SIGTERM or SIGINT; the second one kills. */
export const shutdownOnSignal = (server: Server, hubs: Hub[], streams: SseMiddleware): void => {
  const stop = (): void => {
    // Whatever else hangs: an orchestrator would kill the process anyway.
    setTimeout(() => process.exit(1), DEADLINE).unref()
    shutdown(server, hubs, streams).catch(error => {
      console.error(error)
      process.exitCode = 1
    })
  }
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, stop)
}
