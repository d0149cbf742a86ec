export const median = values => {
  const sorted = values.toSorted((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
}

const digits = value => (value === Infinity ? 'too slow' : value.toFixed(Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2))

const COMPARE = {
  ratio: { sign: base => `÷ ${base}`, of: (value, base) => value / base },
  difference: { sign: base => `− ${base}`, of: (value, base) => value - base },
  none: undefined,
}

const cells = line => `| ${line.join(' | ')} |`

/** Samples of the same round are compared with one another, since what else the machine does changes from round to round. */
const compared = (samples, base, key, of) => {
  const values = samples.flatMap((sample, round) => {
    const value = of(sample?.[key] ?? Number.NaN, base?.[round]?.[key] ?? Number.NaN)
    return Number.isFinite(value) ? [value] : []
  })
  return values.length === 0 ? undefined : median(values)
}

const metricCells = (samples, base, key, { compare = 'ratio' }) => {
  const values = samples.flatMap(sample => (sample === undefined ? [] : [sample[key]]))
  if (values.length === 0) return ['', ...(COMPARE[compare] ? [''] : [])]
  const spread = values.length > 1 ? ` (${digits(Math.min(...values))}–${digits(Math.max(...values))})` : ''
  const cell = digits(median(values)) + spread
  if (COMPARE[compare] === undefined) return [cell]
  const relative = compared(samples, base, key, COMPARE[compare].of)
  return [cell, relative === undefined ? '' : relative.toFixed(2)]
}

const verdict = (samples, base, key, { compare = 'ratio', most }) => {
  if (most === undefined) return
  const relative = compared(samples, base, key, COMPARE[compare].of)
  if (relative !== undefined) return `koa-sse: ${relative.toFixed(2)}, at most ${most.toFixed(2)}: ${relative <= most ? 'kept' : 'NOT KEPT'}`
}

/**
 * A row as a Markdown table.
 *
 * `results`: for each implementation `{ samples }`, one for each round, `undefined` where it failed, and `note`, what went wrong.
 */
export const table = (name, { title, base = 'raw', metrics }, results) => {
  const columns = Object.entries(metrics)
  const baseSamples = results.get(base)?.samples
  const heads = columns.flatMap(([, { title: column, compare = 'ratio' }]) => [column, ...(COMPARE[compare] ? [COMPARE[compare].sign(base)] : [])])
  const lines = [cells([name, ...heads]), cells(['---', ...heads.map(() => '---:')])]
  for (const [implementation, { samples, note }] of results) {
    const label = note === undefined ? implementation : `${implementation}: ${note}`
    lines.push(cells([label, ...columns.flatMap(([key, metric]) => metricCells(samples, baseSamples, key, metric))]))
  }
  const ours = results.get('koa-sse')?.samples
  const verdicts = ours === undefined ? [] : columns.flatMap(([key, metric]) => verdict(ours, baseSamples, key, metric) ?? [])
  return [`### ${name}: ${title}`, '', ...lines, '', ...verdicts.flatMap(text => [text, ''])].join('\n')
}
