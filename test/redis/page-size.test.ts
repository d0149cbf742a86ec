import { expect } from 'chai'
import type { RawEntry } from '../../src/redis/entry.ts'
import { PageSize } from '../../src/redis/page-size.ts'

describe('a page of koa-sse/redis', () => {
  const entries = (count: number, bytes: number): RawEntry[] => Array.from({ length: count }, () => ['1-1', ['d', 'x'.repeat(bytes)]])
  /** What is asked for, page by page, where there are that many entries of that size. */
  const asks = async (size: PageSize, bytes: number, pages: number, there = Infinity, most = Infinity): Promise<number[]> => {
    const asked: number[] = []
    for (let i = 0; i < pages; i++) {
      await size.read(most, async count => {
        asked.push(count)
        return entries(Math.min(count, there), bytes)
      })
    }
    return asked
  }

  it('is twice the one before, up to a thousand entries, or to about 4 MB', async () => {
    expect(await asks(new PageSize(), 200, 7)).to.deep.equal([50, 100, 200, 400, 800, 1_000, 1_000])
    expect(await asks(new PageSize(), 41_900, 4)).to.deep.equal([50, 99, 99, 99])
    expect(await asks(new PageSize(), 5_000_000, 3)).to.deep.equal([50, 2, 2])
  })

  it('grows only by pages that are full, and begins anew after some that are not', async () => {
    const size = new PageSize()
    expect(await asks(size, 200, 3, 10)).to.deep.equal([50, 50, 50])
    await asks(size, 200, 5)
    expect(await asks(size, 200, 7, 10)).to.deep.equal([1_000, 500, 250, 125, 62, 50, 50])
    expect(await asks(size, 200, 2, Infinity, 20)).to.deep.equal([20, 20])
    expect(await asks(size, 200, 2)).to.deep.equal([50, 100])
  })

  it('is half as large after one that took long, unless that was little anyway', async () => {
    const afterSlow = async (bytes: number): Promise<number[]> => {
      const size = new PageSize()
      await size.read(Infinity, async count => {
        await new Promise(resolve => setTimeout(resolve, 1_050))
        return entries(count, bytes)
      })
      return asks(size, bytes, 1)
    }
    expect(await Promise.all([200, 2_900, 10_000].map(afterSlow))).to.deep.equal([[100], [44], [25]])
  })

  it('is half as large after one that failed', async () => {
    const size = new PageSize()
    for (const expected of [50, 25, 12, 6, 3, 2, 2]) {
      const failing = size.read(Infinity, async count => {
        throw new Error(`${count}`)
      })
      expect(await failing.then(String, String)).to.equal(`Error: ${expected}`)
    }
    expect(await asks(size, 200, 3)).to.deep.equal([2, 4, 8])
  })

  it('is not kept down by some that failed and were little anyway', async () => {
    const size = new PageSize()
    await asks(size, 950, 1)
    for (let i = 0; i < 8; i++) await size.read(Infinity, async () => Promise.reject(new Error('cut'))).catch(() => {})
    expect(await asks(size, 950, 8)).to.deep.equal([2, 4, 8, 16, 32, 64, 128, 130])
  })

  it('is as before when there is nothing, and small when it is less than one begins with', async () => {
    const size = new PageSize()
    expect(await asks(size, 200, 2, 0)).to.deep.equal([50, 50])
    expect(size.isSmall).to.equal(false)
    await asks(size, 100_000, 1)
    expect(size.isSmall).to.equal(true)
  })

  it('does not grow again to what failed', async () => {
    const size = new PageSize()
    const asked: number[] = []
    for (let i = 0; i < 20; i++) {
      await size
        .read(Infinity, async count => {
          asked.push(count)
          if (count * 200_000 > 1_000_000) throw new Error('too much')
          return entries(count, 200_000)
        })
        .catch(() => {})
    }
    expect(asked).to.deep.equal([50, 25, 12, 6, 3, 6, ...Array.from({ length: 14 }, () => 3)])
  })
})
