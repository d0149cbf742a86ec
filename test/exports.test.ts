import { execFile } from 'node:child_process'
import { readdir, readFile } from 'node:fs/promises'
import { promisify } from 'node:util'
import { expect } from 'chai'
import * as library from 'koa-sse'

const EXPORTS = ['EventStream', 'Hub', 'MemoryBroker', 'SseError', 'encode', 'sse']

const root = new URL('../', import.meta.url)

/** Every source file with its text, comments left out. */
const sources = async (): Promise<[string, string][]> => {
  const names = (await readdir(new URL('src/', root), { recursive: true })).filter(name => name.endsWith('.ts'))
  return Promise.all(
    names.map(async name => {
      const text = await readFile(new URL(`src/${name}`, root), 'utf8')
      return [name, text.replaceAll(/\/\*[^]*?\*\/|(^|\s)\/\/.*$/gm, '')] as [string, string]
    }),
  )
}

describe("import 'koa-sse'", () => {
  it('exports exactly these names', () => {
    expect(Object.keys(library).toSorted()).to.deep.equal(EXPORTS.toSorted())
  })

  it('exports no default', () => {
    expect(library).not.to.have.property('default')
  })

  it('loads nothing but itself: not Koa, and no other package', async () => {
    const script = `(async () => {
      const loaded = () => Object.keys(require.cache).filter(path => path.includes('node_modules')).length
      const counts = [loaded()]
      for (const name of ['koa-sse', 'koa']) {
        await import(name)
        counts.push(loaded())
      }
      console.log(JSON.stringify(counts))
    })()`
    const options = ['--import', 'tsx', '--conditions', '@koa-sse/source', '--input-type', 'commonjs', '--eval', script]
    const { stdout } = await promisify(execFile)(process.execPath, options, { cwd: root })
    const [before, ours, koas] = JSON.parse(stdout) as number[]
    expect(ours).to.equal(before)
    // Koa would be seen.
    expect(koas).to.be.above(before!)
  }).timeout(30_000)

  it('has no dependency, and no top-level await that would keep require() out', async () => {
    const manifest = JSON.parse(await readFile(new URL('package.json', root), 'utf8')) as Record<string, unknown>
    expect(manifest['dependencies'] ?? {}).to.deep.equal({})
    for (const [name, text] of await sources()) expect(text, name).not.to.match(/^(?:(?:export )?(?:const|let) .* = )?await /m)
  })
})

/** What a file imports or re-exports from where: `[type or nothing, specifier]`. */
const importsOf = (text: string): { type: boolean; from: string }[] =>
  [...text.matchAll(/^(?:import|export)\s+(?:([\w\s{},*$]+?)\s+from\s+)?['"]([^'"]+)['"]/gm)].map(([, clause = '', from = '']) => ({
    type: /^type\s/.test(clause),
    from,
  }))

describe('src/', () => {
  it('imports koa for its types only', async () => {
    let seen = 0
    for (const [name, text] of await sources()) {
      for (const { type, from } of importsOf(text)) {
        if (!/^@?koa(?:$|\/)/.test(from)) continue
        expect(type, name).to.equal(true)
        seen++
      }
      expect(text, name).not.to.match(/(?:require|import)\s*\(\s*['"`]@?koa/)
    }
    expect(seen).to.be.at.least(1)
  })

  it('imports nothing outside Node and itself, Redis apart', async () => {
    for (const [name, text] of await sources()) {
      if (name.startsWith('redis')) continue
      for (const { type, from } of importsOf(text)) if (!type) expect(from, name).to.match(/^(?:node:|\.{1,2}\/)/)
    }
  })
})
