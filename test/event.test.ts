import { expect } from 'chai'
import { createParser, type EventSourceMessage } from 'eventsource-parser'
import { encode, type Newline, type SseEvent } from 'koa-sse'

interface Parsed {
  events: EventSourceMessage[]
  comments: string[]
  retries: number[]
}

const parse = (text: string): Parsed => {
  const parsed: Parsed = { events: [], comments: [], retries: [] }
  const parser = createParser({
    onEvent: event => parsed.events.push(event),
    onComment: comment => parsed.comments.push(comment),
    onRetry: retry => parsed.retries.push(retry),
    onError: error => {
      throw error
    },
  })
  parser.feed(text)
  return parsed
}

/** What no type allows. */
const wrong = (event: unknown): (() => string) => {
  return () => encode(event as SseEvent)
}

describe('encode()', () => {
  describe('fields', () => {
    it('takes a string for data', () => {
      expect(encode('hello')).to.equal('data: hello\n\n')
    })

    it('writes comment, id, event, data, retry in this order, whatever the order of the keys', () => {
      const text = ': c\nid: 7\nevent: tick\ndata: d\nretry: 9\n\n'
      expect(encode({ comment: 'c', id: '7', event: 'tick', data: 'd', retry: 9 })).to.equal(text)
      expect(encode({ retry: 9, data: 'd', event: 'tick', id: '7', comment: 'c' })).to.equal(text)
    })

    it('writes each field alone', () => {
      expect(encode({ comment: 'c' })).to.equal(': c\n\n')
      expect(encode({ id: '7' })).to.equal('id: 7\n\n')
      expect(encode({ event: 'tick' })).to.equal('event: tick\n\n')
      expect(encode({ data: 'd' })).to.equal('data: d\n\n')
      expect(encode({ retry: 9 })).to.equal('retry: 9\n\n')
    })

    it('keeps the space before an empty value', () => {
      expect(encode('')).to.equal('data: \n\n')
      expect(encode({ data: '' })).to.equal('data: \n\n')
      expect(encode({ id: '' })).to.equal('id: \n\n')
      expect(encode({ event: '' })).to.equal('event: \n\n')
      expect(encode({ comment: '' })).to.equal(': \n\n')
    })

    it('writes what is falsy, and is there', () => {
      expect(encode({ id: '0', data: 0, retry: 0 })).to.equal('id: 0\ndata: 0\nretry: 0\n\n')
      expect(encode({ data: false })).to.equal('data: false\n\n')
      expect(encode({ data: null })).to.equal('data: null\n\n')
    })

    it('leaves undefined fields out', () => {
      expect(encode({ id: undefined, event: undefined, data: 'd', retry: undefined, comment: undefined })).to.equal('data: d\n\n')
      expect(encode({ event: 'tick', data: undefined })).to.equal('event: tick\n\n')
    })

    it('keeps a space that a value begins with', () => {
      expect(parse(encode({ event: ' tick', id: ' 7', data: ' d' })).events).to.deep.equal([{ event: ' tick', id: ' 7', data: ' d' }])
    })
  })

  describe('data', () => {
    it('is split on CRLF, CR and LF', () => {
      expect(encode('a\r\nb\rc\nd')).to.equal('data: a\ndata: b\ndata: c\ndata: d\n\n')
      expect(encode('a\n\r\n\rb')).to.equal('data: a\ndata: \ndata: \ndata: b\n\n')
      expect(encode('a\r\rb')).to.equal('data: a\ndata: \ndata: b\n\n')
    })

    it('is split on nothing else', () => {
      for (const other of ['\u2028', '\u2029', '\u0085', '\v', '\f', '\0', '\u001e']) {
        expect(encode(`a${other}b`), JSON.stringify(other)).to.equal(`data: a${other}b\n\n`)
        expect(encode(`a${other}b\nc`), JSON.stringify(other)).to.equal(`data: a${other}b\ndata: c\n\n`)
      }
    })

    it('keeps an empty line at its end, and at its beginning', () => {
      expect(encode('a\n')).to.equal('data: a\ndata: \n\n')
      expect(encode('\na')).to.equal('data: \ndata: a\n\n')
      expect(encode('\n')).to.equal('data: \ndata: \n\n')
      expect(encode('a\r\n\r\n')).to.equal('data: a\ndata: \ndata: \n\n')
      expect(parse(encode('a\n\n')).events[0]?.data).to.equal('a\n\n')
    })

    it('of a Buffer or Uint8Array is its UTF-8 text', () => {
      expect(encode({ data: Buffer.from('é日😀') })).to.equal('data: é日😀\n\n')
      expect(encode({ data: new Uint8Array([0x61, 0x0d, 0x0a, 0x62]) })).to.equal('data: a\ndata: b\n\n')
      expect(encode({ data: new Uint8Array() })).to.equal('data: \n\n')
    })

    it('of a view is the view, not all of what is behind it', () => {
      const memory = new TextEncoder().encode('before é after').buffer
      expect(encode({ data: new Uint8Array(memory, 7, 2) })).to.equal('data: é\n\n')
      expect(encode({ data: Buffer.from('xxabcxx').subarray(2, 5) })).to.equal('data: abc\n\n')
    })

    it('of anything else is JSON', () => {
      const date = new Date(0)
      const values: unknown[] = [{ a: 1, b: ['x'] }, [], [1, 'two', null], 1.5, -0, true, Number.NaN, date, { toJSON: () => 'own' }]
      for (const data of values) expect(encode({ data })).to.equal(`data: ${JSON.stringify(data)}\n\n`)
    })

    it('in JSON never breaks a line', () => {
      expect(encode({ data: { text: 'a\r\nb\rc\nd' } })).to.equal('data: {"text":"a\\r\\nb\\rc\\nd"}\n\n')
    })

    it('that does not serialise is a TypeError', () => {
      const circular: Record<string, unknown> = {}
      circular['self'] = circular
      const throwing = {
        toJSON: () => {
          throw new RangeError('mine')
        },
      }
      const getter = {
        get x(): never {
          throw new Error('mine')
        },
      }
      const silent = { toJSON: () => undefined }
      for (const data of [10n, { n: 10n }, circular, () => 1, Symbol('s'), Date, throwing, getter, silent]) {
        expect(wrong({ data })).to.throw(TypeError, '`data`')
      }
    })

    it('that cannot even be looked at is one too', () => {
      const fail = (): never => {
        throw new Error('mine')
      }
      const odd = [new Proxy({}, { get: fail }), new Proxy({}, { get: fail, getPrototypeOf: () => new Proxy({}, { get: fail }) })]
      const keys = [null, { name: Symbol('s') }, { name: { toString: fail } }].map(constructor => ({ n: 1n, constructor }))
      for (const data of [...odd, ...keys]) expect(wrong({ data })).to.throw(TypeError, 'Expected `data` to be serialisable as JSON, got an object')
    })

    it('keeps the cause when it does not serialise', () => {
      const cause = new RangeError('mine')
      const data = {
        toJSON: () => {
          throw cause
        },
      }
      expect(() => encode({ data }))
        .to.throw(TypeError, 'serialisable as JSON, got an object (Object): mine')
        .with.property('cause', cause)
    })

    it('is as long as it likes', () => {
      const data = 'x'.repeat(1_000_000)
      expect(parse(encode(data)).events).to.deep.equal([{ data, event: undefined, id: undefined }])
    })
  })

  describe('comments', () => {
    it('have every line behind a colon', () => {
      expect(encode({ comment: 'a\r\nb\rc\nd' })).to.equal(': a\n: b\n: c\n: d\n\n')
      expect(encode({ comment: 'a\n' })).to.equal(': a\n: \n\n')
    })

    it('never forge an event', () => {
      for (const end of ['\n', '\r', '\r\n']) {
        const parsed = parse(encode({ comment: `${end}${end}data: forged${end}${end}`, data: 'real' }))
        expect(parsed.events.map(event => event.data)).to.deep.equal(['real'])
      }
    })
  })

  describe('newline', () => {
    const event: SseEvent = { comment: 'c\nc', id: '7', event: 'tick', data: 'a\r\nb\rc\nd', retry: 9 }

    for (const newline of ['\n', '\r\n', '\r'] as Newline[]) {
      it(`${JSON.stringify(newline)} ends every line`, () => {
        const lines = [': c', ': c', 'id: 7', 'event: tick', 'data: a', 'data: b', 'data: c', 'data: d', 'retry: 9', '', '']
        expect(encode(event, newline)).to.equal(lines.join(newline))
        // A CR at the end of what has come so far may be half of a CRLF: the parser waits for the next byte.
        const parsed = parse(`${encode(event, newline)}:${newline}`)
        expect(parsed.events).to.deep.equal([{ id: '7', event: 'tick', data: 'a\nb\nc\nd' }])
        expect(parsed.retries).to.deep.equal([9])
      })
    }

    it('is LF when nobody says otherwise', () => {
      expect(encode(event)).to.equal(encode(event, '\n'))
    })

    it('is nothing else', () => {
      for (const newline of ['\n\n', '\n\r', '', 'lf', 1, null]) {
        for (const each of ['text', event])
          expect(() => encode(each, newline as Newline)).to.throw(TypeError, 'Expected `newline` to be one of "\\n", "\\r\\n", "\\r", got')
      }
    })
  })

  describe('a wrong event', () => {
    it('is a TypeError when it is no string and no object', () => {
      for (const event of [undefined, null, 1, 0n, true, Symbol('s'), () => 'x']) expect(wrong(event)).to.throw(TypeError)
    })

    it('is a TypeError when it has no field at all', () => {
      for (const event of [{}, { data: undefined }, { id: undefined, comment: undefined }, [], new Date(), new Map(), Buffer.alloc(0)]) {
        expect(wrong(event)).to.throw(TypeError)
      }
    })

    it('is a TypeError when it has a key that nobody knows, which is named', () => {
      expect(wrong({ data: 'd', type: 'tick' })).to.throw(TypeError, '`type`')
      expect(wrong({ foo: 1 })).to.throw(TypeError, '`foo`')
      expect(wrong({ data: 'd', foo: undefined })).to.throw(TypeError, '`foo`')
      expect(wrong({ Data: 'd' })).to.throw(TypeError, '`Data`')
      expect(wrong(['d'])).to.throw(TypeError)
      expect(wrong(Buffer.from('d'))).to.throw(TypeError)
    })

    it('is a TypeError when a field has the wrong type', () => {
      for (const value of [1, 0, null, true, {}, ['x'], Symbol('s'), () => 'x']) {
        expect(wrong({ data: 'd', id: value }), 'id').to.throw(TypeError, '`id`')
        expect(wrong({ data: 'd', event: value }), 'event').to.throw(TypeError, '`event`')
        expect(wrong({ data: 'd', comment: value }), 'comment').to.throw(TypeError, '`comment`')
      }
      for (const value of ['1', null, true, {}, 1n]) expect(wrong({ data: 'd', retry: value })).to.throw(TypeError, '`retry`')
    })

    it('is a TypeError when id or event break the line', () => {
      for (const end of ['\n', '\r', '\r\n']) {
        for (const value of [end, `a${end}`, `${end}b`, `a${end}data: forged${end}${end}`]) {
          expect(wrong({ data: 'd', id: value })).to.throw(TypeError, '`id`')
          expect(wrong({ data: 'd', event: value })).to.throw(TypeError, '`event`')
        }
      }
    })

    it('is a TypeError when its id has a NUL, which clients ignore', () => {
      for (const id of ['\0', 'a\0', '\0b', 'a\0b']) expect(wrong({ data: 'd', id })).to.throw(TypeError, '`id`')
    })

    it('may have a NUL elsewhere', () => {
      expect(encode({ event: 'a\0b', data: 'a\0b', comment: 'a\0b' })).to.equal(': a\0b\nevent: a\0b\ndata: a\0b\n\n')
    })

    it('is a TypeError when retry is not a non-negative integer', () => {
      for (const retry of [-1, 1.5, Number.NaN, Infinity, -Infinity, 1e21, 0.1]) expect(wrong({ data: 'd', retry })).to.throw(TypeError, '`retry`')
    })

    it('is described in one sentence with what was given', () => {
      expect(wrong(5)).to.throw(TypeError, 'Expected `event` to be a string or an object, got 5 (number)')
      expect(wrong(null)).to.throw(TypeError, 'Expected `event` to be a string or an object, got null')
      expect(wrong({ data: 'd', retry: -5 })).to.throw(TypeError, 'Expected `retry` to be a non-negative integer, got -5 (number)')
      expect(wrong({ data: 'd', retry: '5' })).to.throw(TypeError, 'Expected `retry` to be a non-negative integer, got "5" (string)')
    })

    for (const [value, shown] of [
      [null, 'null'],
      [() => 'x', 'a function'],
      [['x'], 'an array'],
      [{}, 'an object (Object)'],
      [Object.create(null), 'an object (null prototype)'],
      ['x'.repeat(60), `"${'x'.repeat(60)}" (string)`],
      ['x'.repeat(61), `"${'x'.repeat(60)}…" (string)`],
    ] as [unknown, string][]) {
      it(`shows ${shown}`, () => {
        expect(wrong({ data: 'd', retry: value }))
          .to.throw(TypeError)
          .with.property('message', `Expected \`retry\` to be a non-negative integer, got ${shown}`)
      })
    }

    it('shows undefined', () => {
      expect(wrong(undefined)).to.throw(TypeError, /, got undefined$/)
    })
  })

  describe('purity', () => {
    it('gives the same text for the same event, again and again', () => {
      const event: SseEvent = { id: '7', data: { a: [1] }, retry: 0 }
      expect(encode(event)).to.equal(encode(event))
    })

    it('changes nothing', () => {
      const event = Object.freeze({ id: '7', data: Object.freeze({ a: 1 }) })
      expect(encode(event)).to.equal('id: 7\ndata: {"a":1}\n\n')
      const bytes = Buffer.from('a\r\nb')
      encode({ data: bytes })
      expect(bytes.toString()).to.equal('a\r\nb')
    })

    it('is not disturbed by an event that was refused', () => {
      expect(wrong({ id: '8', data: 10n })).to.throw(TypeError)
      expect(encode({ data: 'd' })).to.equal('data: d\n\n')
    })

    it('takes an event without a prototype', () => {
      expect(encode(Object.assign(Object.create(null) as SseEvent, { data: 'd' }))).to.equal('data: d\n\n')
    })
  })
})
