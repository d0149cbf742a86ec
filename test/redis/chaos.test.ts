import { expect } from 'chai'
import { needsRedis } from '../support/redis.ts'
import { chaos } from './chaos/chaos.ts'

const seed = Number(process.env['SEED'] ?? Date.now() % 1_000_000)

describe('several processes behind one Redis, while everything breaks', function () {
  this.timeout(120_000)
  needsRedis()

  it(`tell every client each event once and in order, or that some are gone (SEED=${seed})`, async () => {
    const result = await chaos({ seed, seconds: 6, clients: 16 })
    const { lost, duplicates, disorders, untold, stuck, needless } = result
    expect({ lost, duplicates, disorders, untold, stuck, needless }, JSON.stringify(result)).to.deep.equal({
      lost: 0,
      duplicates: 0,
      disorders: 0,
      untold: 0,
      stuck: 0,
      needless: 0,
    })
    expect(result.acknowledged).to.be.above(5_000)
    expect(result.delivered).to.be.above(10_000)
    expect(result.wipes).to.be.above(1)
  })

  it(`would lose some in silence if they read by plain XREAD (SEED=${seed})`, async () => {
    // Of two seconds with a wipe or two, nearly all lose something; a few have their wipes where nothing was under way.
    let lost = 0
    for (let run = 0; run < 5 && lost === 0; run++) {
      const result = await chaos({ seed: seed + run, seconds: 2, nodes: 2, clients: 16, naive: true, only: ['flushed', 'killed, empty'] })
      expect(result.untold).to.be.above(0)
      lost += result.lost
    }
    expect(lost).to.be.above(0)
  })
})
