import { expect } from 'chai'
import { Backlog } from '../src/backlog.ts'
import { Frame } from '../src/frame.ts'

const PIECE = 65_536

describe('what waits of a stream', () => {
  it('comes in pieces when it is long, none of which is empty, and then as it was given', () => {
    const backlog = new Backlog()
    backlog.addText('x'.repeat(2 * PIECE), 2 * PIECE)
    backlog.addFrame(new Frame('x'.repeat(PIECE)))
    for (let i = 0; i < 3; i++) expect(backlog.next()).to.deep.equal(Buffer.alloc(PIECE, 'x'))
    expect([backlog.size, backlog.bytes]).to.deep.equal([0, 0])
    backlog.addText('after', 5)
    expect(backlog.next()).to.equal('after')
  })

  it('is put together of however many frames', () => {
    const backlog = new Backlog()
    const all = Array.from({ length: 50_000 }, (_, i) => String.fromCharCode(97 + (i % 26)))
    for (const each of all) backlog.addFrame(new Frame(each))
    expect((backlog.next() as Frame).payload.toString()).to.equal(all.join(''))
  })
})
