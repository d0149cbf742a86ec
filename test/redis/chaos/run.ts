import { chaos, type ChaosResult } from './chaos.ts'

/** A result as lines of a table. */
const table = (rows: Record<string, ChaosResult>): string => {
  const columns = [
    'acknowledged',
    'perSecond',
    'rejected',
    'delivered',
    'moves',
    'wipes',
    'untold',
    'resets',
    'needless',
    'lost',
    'duplicates',
    'disorders',
    'stuck',
  ] as const
  const lines = [
    ['run', 'faults', ...columns],
    ['---', ...Array.from({ length: columns.length + 1 }, () => '--:')],
  ]
  for (const [name, row] of Object.entries(rows)) {
    const count = Object.values(row.faults).reduce((sum, n) => sum + n, 0)
    lines.push([name, `${count}`, ...columns.map(column => row[column].toLocaleString('en'))])
  }
  return lines.map(cells => `| ${cells.join(' | ')} |`).join('\n')
}

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
