// The load client: raw sockets, one buffer for all, no parser but for the first connection.
import { connect } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { answer } from './answer.js'
import { MARK, micros, numberOf, POOL, stampBefore } from './payload.js'

const AT_ONCE = 64
const MARK_BYTE = MARK.charCodeAt(0)
const SURPLUS_MS = 50

const buffer = Buffer.allocUnsafe(1 << 18)

let connections = []
let expected
let total = 0
let latencies
let failed

/** What waits, and would wait for ever when the connections have failed. */
const waiting = new Set()

/** All bytes of the first connection. */
let record = []

const fail = error => {
  failed ??= error
  for (const reject of waiting) reject(failed)
}

const wait = async begin => {
  if (failed) throw failed
  let fails
  try {
    return await new Promise((resolve, reject) => {
      fails = reject
      waiting.add(reject)
      begin(resolve)
    })
  } finally {
    waiting.delete(fails)
  }
}

const count = (connection, bytes) => {
  const now = latencies && micros()
  for (let at = bytes.indexOf(MARK_BYTE); at !== -1; at = bytes.indexOf(MARK_BYTE, at + 1)) {
    connection.events++
    total++
    latencies?.push(now - stampBefore(bytes, at))
  }
  if (expected === undefined) return
  if (total >= expected.nextAck) {
    process.send({ ack: Math.floor(total / expected.perEvent) })
    expected.nextAck = total + expected.ackEvery * expected.perEvent
  }
  if (total >= expected.total) expected.resolve()
}

const onHead = (connection, bytes) => {
  connection.head += bytes.latin1Slice(0, bytes.length)
  if (!connection.head.includes('\r\n\r\n')) return
  if (!connection.head.startsWith('HTTP/1.1 200')) fail(new Error(`Answered ${connection.head}`))
  connection.head = undefined
  connection.onOpen()
}

const add = ({ port, path, headers }, onOpen) => {
  const connection = { events: 0, head: '', onOpen }
  const recorded = connections.length === 0
  const target = path.replace('{}', String(connections.push(connection) - 1))
  const callback = size => {
    const bytes = buffer.subarray(0, size)
    if (recorded) record.push(Buffer.from(bytes))
    if (connection.head !== undefined) onHead(connection, bytes)
    count(connection, bytes)
    return true
  }
  const socket = connect({ port, host: '127.0.0.1', onread: { buffer, callback } })
  connection.socket = socket
  socket.on('error', fail)
  socket.on('close', () => connection.left || fail(new Error('The server closed a connection')))
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`)
  socket.write(`GET ${target} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n${lines.join('')}\r\n`)
}

/** The body, whatever its transfer coding. */
const bodyOf = response => {
  const head = response.indexOf('\r\n\r\n')
  let rest = response.subarray(head + 4)
  if (!/^transfer-encoding: chunked/im.test(response.latin1Slice(0, head))) return rest.toString()
  const chunks = []
  for (let end = rest.indexOf('\r\n'); end !== -1; end = rest.indexOf('\r\n')) {
    const size = Number.parseInt(rest.latin1Slice(0, end), 16)
    if (Number.isNaN(size)) throw new Error(`No chunk: ${rest.latin1Slice(0, 80)}`)
    chunks.push(rest.subarray(end + 2, end + 2 + size))
    rest = rest.subarray(end + 2 + size + 2)
  }
  return Buffer.concat(chunks).toString()
}

/** The numbers of the events in a stream. */
const numbersOf = text =>
  text
    .split('\n\n')
    .slice(0, -1)
    .map(block =>
      block
        .split('\n')
        .filter(line => line.startsWith('data:'))
        // Some libraries make JSON of a string.
        .map(line => line.slice(5).trim().replaceAll('"', ''))
        .join('\n'),
    )
    .filter(data => data !== '')
    .map(numberOf)

const percentile = (sorted, part) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))]

const summary = samples => {
  const sorted = Float64Array.from(samples.filter(Number.isFinite)).toSorted()
  return { count: sorted.length, p50: percentile(sorted, 0.5), p99: percentile(sorted, 0.99) }
}

answer({
  open({ count: more, ...request }) {
    return wait(resolve => {
      let begun = 0
      let opened = 0
      const begin = () => {
        begun++
        add(request, onOpen)
      }
      const onOpen = () => {
        if (++opened === more) resolve()
        else if (begun < more) begin()
      }
      while (begun < Math.min(AT_ONCE, more)) begin()
    })
  },
  async expect({ each, total: sum, ackEvery = Number.MAX_SAFE_INTEGER, latency = false }) {
    total = 0
    latencies = latency ? [] : undefined
    for (const connection of connections) connection.events = 0
    const perEvent = each === undefined ? 1 : sum / each
    await wait(resolve => (expected = { total: sum, perEvent, ackEvery, nextAck: ackEvery * perEvent, resolve }))
    await sleep(SURPLUS_MS)
    expected = undefined
    if (total !== sum) throw new Error(`Expected ${sum} events, got ${total}`)
    const odd = each === undefined ? undefined : connections.find(({ events }) => events !== each)
    if (odd !== undefined) throw new Error(`Expected ${each} events on each connection, got ${odd.events}`)
    if (latencies !== undefined) return summary(latencies)
  },
  verify({ order }) {
    const numbers = numbersOf(bodyOf(Buffer.concat(record)))
    numbers.forEach((n, i) => {
      // A second run on the same connection begins at 0 again.
      const fits = order ? n === 0 || (i > 0 && n === (numbers[i - 1] + 1) % POOL) : n === 0
      if (!fits) throw new Error(`Event ${i} of ${numbers.length} is number ${n}`)
    })
    return numbers.length
  },
  leave() {
    for (const connection of connections) {
      connection.left = true
      connection.socket.destroy()
    }
    connections = []
    record = []
  },
})
