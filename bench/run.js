// Runs the workloads side by side and prints a table for each: see README.md.
import { readFileSync } from 'node:fs'
import { cpus } from 'node:os'
import { parseArgs } from 'node:util'
import { Session } from './processes.js'
import { rows } from './rows.js'
import { table } from './table.js'

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    rounds: { type: 'string', default: '5' },
    only: { type: 'string' },
    scale: { type: 'string', default: '1' },
    'cpu-prof': { type: 'string' },
  },
})

const rounds = Number(options.rounds)
const scale = Number(options.scale)
const execArgv = options['cpu-prof'] === undefined ? [] : ['--cpu-prof', `--cpu-prof-dir=${options['cpu-prof']}`]
const names = positionals.length === 0 ? Object.keys(rows) : positionals

const unknown = names.find(name => rows[name] === undefined)
if (unknown !== undefined || !(rounds > 0) || !(scale > 0)) {
  console.error(`node bench/run.js [row …] [--rounds 5] [--only raw,koa-sse,…] [--scale 1] [--cpu-prof directory]
Rows: ${Object.keys(rows).join(', ')}`)
  process.exit(1)
}

const scaled = number => Math.max(10, Math.round(number * scale))

const runOnce = async (implementation, { hub = false, keep = 0, flags = [] }, work, prepared) => {
  const session = new Session(implementation, [...execArgv, ...flags])
  try {
    const missing = await session.start({ hub, keep })
    return missing === undefined ? { sample: await work(session, { scaled, implementation, prepared }) } : { note: missing }
  } finally {
    await session.stop()
  }
}

const runRow = async (name, row) => {
  const chosen = options.only?.split(',').filter(implementation => row.implementations.includes(implementation.split('@')[0])) ?? row.implementations
  const results = new Map(chosen.map(implementation => [implementation, { samples: [] }]))
  const prepared = row.prepare === undefined ? undefined : (await runOnce('raw', row, row.prepare)).sample
  for (let round = 0; round < rounds; round++) {
    for (const [implementation, result] of results) {
      let outcome
      try {
        outcome = await runOnce(implementation, row, row.run, prepared)
      } catch (error) {
        console.error(error)
        process.exitCode = 1
        outcome = { note: `failed: ${error.message.split('\n')[0]}` }
      }
      result.samples.push(outcome.sample)
      result.note ??= outcome.note
      console.error(`${name} ${round + 1}/${rounds} ${implementation}`, outcome.sample ?? outcome.note)
    }
  }
  return table(name, row, results)
}

const versionOf = path => JSON.parse(readFileSync(new URL(path, import.meta.url), 'utf8')).version
const versions = [
  `Node ${process.versions.node}`,
  `koa-sse ${versionOf('../package.json')}`,
  `koa ${versionOf('../node_modules/koa/package.json')}`,
  ...['better-sse', '@fastify/sse', 'fastify', 'hono', '@hono/node-server'].map(peer => `${peer} ${versionOf(`node_modules/${peer}/package.json`)}`),
]

console.log(`${cpus().length} × ${cpus()[0]?.model.trim()}; ${versions.join(', ')}; medians of ${rounds} rounds (fastest–slowest)\n`)
for (const name of names) console.log(await runRow(name, rows[name]))
