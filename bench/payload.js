// What every server sends and the load client looks for.

/** Bytes of one event's data. */
export const SIZE = 100

/** The last byte of each event's data, and found nowhere else: one byte is never split, so counting needs no parser. */
export const MARK = '|'

/** Payloads differ in their number, which begins again after so many. */
export const POOL = 1000

const STAMP = 16

const filled = prefix => prefix + ' '.padEnd(SIZE - prefix.length - 1, 'abcdefghij klmnopqrst uvwxyz ') + MARK

// Made beforehand, and flat: what is measured is the way of an event to the client, not string concatenation.
const pool = Array.from({ length: POOL }, (_, n) => Buffer.from(filled(String(n).padStart(4, '0'))).toString('latin1'))

export const payload = n => pool[n % POOL]

/** The number in a {@link payload}; NaN when it is none. */
export const numberOf = data => (data.endsWith(MARK) ? Number(data.slice(0, 4)) : Number.NaN)

/** What a handler streams to one client. */
export async function* payloads(count) {
  for (let n = 0; n < count; n++) yield payload(n)
}

/** The same, framed by hand. */
export async function* frames(count) {
  for (let n = 0; n < count; n++) yield `data: ${payload(n)}\n\n`
}

// Of all processes of this machine the same clock, which performance.now() is not.
export const micros = () => Number(process.hrtime.bigint() / 1000n)

export const stamped = () => filled(String(micros()).padStart(STAMP, '0'))

/** The time in a {@link stamped} payload whose mark is at `end`; NaN when the beginning came in an earlier read. */
export const stampBefore = (bytes, end) => {
  const start = end - SIZE + 1
  return start < 0 ? Number.NaN : Number(bytes.latin1Slice(start, start + STAMP))
}
