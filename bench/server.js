// Hosts one implementation from servers/: starts it, publishes, and tells what that cost.
import { once } from 'node:events'
import { createServer } from 'node:http'
import { setImmediate as turn, setTimeout as sleep } from 'node:timers/promises'
import { answer } from './answer.js'
import { payload, stamped } from './payload.js'

const { start } = await import(`./servers/${process.argv[2]}.js`)

let app
let server
let began
let acked = 0
let onAck

/** Waits until fewer than `window` events are on their way. */
const room = async (sent, window) => {
  for (;;) {
    if (sent - acked < window) return
    await new Promise(resolve => (onAck = resolve))
  }
}

const collect = async () => {
  // Twice: what a finaliser lets go is collected the second time.
  for (let i = 0; i < 2; i++) {
    globalThis.gc()
    await sleep(50)
  }
}

/** `burst` events in each turn of the event loop. */
const publishAll = async ({ count, burst = 1, window, channels }) => {
  const names = channels && Array.from({ length: channels }, (_, n) => `c${n}`)
  let last
  for (let sent = 0; sent < count;) {
    for (const end = Math.min(count, sent + burst); sent < end; sent++) {
      const n = names ? Math.floor(Math.random() * channels) : sent
      last = app.publish(names ? names[n] : 'news', payload(n))
    }
    await turn()
    await room(sent, window)
  }
  return last
}

/** So many events a second, if it can. Resolves with how many there were. */
const publishAtRate = async ({ count, rate, window }) => {
  const from = performance.now()
  for (let sent = 0; sent < count;) {
    const due = (rate * (performance.now() - from)) / 1000
    if (sent >= due) await sleep(1)
    else {
      app.publish('news', stamped())
      sent++
      await turn()
      await room(sent, window)
    }
  }
  return (count * 1000) / (performance.now() - from)
}

answer({
  async start(options) {
    app = await start(options)
    if (app.missing) return { missing: app.missing }
    server = app.server ?? createServer(app.listener)
    // Who is done with its stream keeps the connection until the others are, too.
    server.keepAliveTimeout = 0
    server.listen(0, '127.0.0.1', 8192)
    await once(server, 'listening')
    return { port: server.address().port }
  },
  publish(args) {
    acked = 0
    return args.rate === undefined ? publishAll(args) : publishAtRate(args)
  },
  ack({ events }) {
    acked = events
    onAck?.()
  },
  async begin({ collected }) {
    if (collected) await collect()
    began = { cpu: process.cpuUsage(), time: performance.now() }
  },
  end() {
    const { user, system } = process.cpuUsage(began.cpu)
    return { cpu: user + system, user, ms: performance.now() - began.time }
  },
  async memory() {
    await collect()
    await collect()
    return process.memoryUsage.rss()
  },
  async alone() {
    const open = () => new Promise((resolve, reject) => server.getConnections((error, count) => (error ? reject(error) : resolve(count))))
    while ((await open()) > 0) await sleep(10)
    // A connection that is destroyed counts no more, but what its end costs comes in a later phase of the event loop's turn.
    await sleep(20)
  },
})
