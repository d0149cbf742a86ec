import { chaos, table, type ChaosResult } from './chaos.ts'

// npm run chaos [-- <seconds per run> <seed>]
const [seconds = '60', seed = `${Date.now() % 1_000_000}`] = process.argv.slice(2)
const print = (line: string): void => void process.stdout.write(`${line}\n`)
const rows: Record<string, ChaosResult> = {}
for (const run of [0, 1, 2]) {
  const own = Number(seed) + run
  print(`\nseed ${own}`)
  const result = await chaos({ seed: own, seconds: Number(seconds), log: print })
  rows[`seed ${own}`] = result
  print(JSON.stringify(result, undefined, 1))
}
print(`\nseed ${seed}, by plain XREAD`)
rows[`seed ${seed}, by plain XREAD`] = await chaos({ seed: Number(seed), seconds: Number(seconds), naive: true, log: print })
print(`\n${table(rows)}`)

const [naive, ...real] = Object.values(rows).toReversed()
const clean = real.every(
  ({ lost, duplicates, disorders, untold, stuck, needless }) => lost + duplicates + disorders + untold + stuck + needless === 0,
)
if (!clean) throw new Error('Something was lost, doubled, disordered or not told')
if (naive!.lost === 0 || naive!.untold === 0) throw new Error('Plain XREAD was not found out')
