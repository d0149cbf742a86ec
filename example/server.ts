import type { AddressInfo } from 'node:net'
import { gallery } from './gallery.ts'
import { shutdownOnSignal } from './shutdown.ts'

const { app, hubs, streams } = gallery()
const server = app.listen(Number(process.env['PORT'] ?? 3000), process.env['HOST'] ?? '127.0.0.1', () => {
  const { address, family, port } = server.address() as AddressInfo
  console.log(`koa-sse gallery: http://${family === 'IPv6' ? `[${address}]` : address}:${port}`)
})

server.on('error', error => {
  console.error(error.message)
  process.exitCode = 1
})

shutdownOnSignal(server, hubs, streams)
