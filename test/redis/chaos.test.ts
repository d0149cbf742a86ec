import { expect } from 'chai'
import { needsRedis } from '../support/redis.ts'
import { chaos } from './chaos/chaos.ts'

const seed = Number(process.env['SEED'] ?? Date.now() % 1_000_000)
const CLEAN = { lost: 0, duplicates: 0, disorders: 0, untold: 0, stuck: 0, needless: 0 }

describe('several processes behind one Redis, while everything breaks', function () {
  this.timeout(120_000)
  needsRedis()

  it(`tell every client each event once and in order, or that some are gone (SEED=${seed})`, async () => {
    const result = await chaos({ seed, seconds: 6, clients: 16 })
    expect(result, JSON.stringify(result)).to.include(CLEAN)
    expect(result.acknowledged).to.be.above(5_000)
    expect(result.delivered).to.be.above(10_000)
    expect(result.wipes).to.be.above(1)
  })

  it(`would lose some in silence if they read by plain XREAD (SEED=${seed})`, async () => {
    // What is gone for certain: acknowledged while one node cannot read, and flushed before it can.
    const options = { seed, seconds: 0, nodes: 2, clients: 16, still: true, only: ['flushed unseen'] }
    const naive = await chaos({ ...options, naive: true })
    expect(naive.lost, JSON.stringify(naive)).to.be.above(0)
    expect(naive.untold).to.equal(1)
    const real = await chaos(options)
    expect(real, JSON.stringify(real)).to.include(CLEAN)
    expect(real.resets).to.be.at.least(16)
  })
})
