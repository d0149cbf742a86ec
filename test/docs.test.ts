import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { expect } from 'chai'
import { Hub, sse } from 'koa-sse'
import { RedisBroker } from 'koa-sse/redis'

const root = new URL('../', import.meta.url)
const read = async (name: string): Promise<string> => readFile(new URL(name, root), 'utf8')
const [readme, architecture, contributing, changelog] = (await Promise.all(
  ['README.md', 'ARCHITECTURE.md', 'CONTRIBUTING.md', 'CHANGELOG.md'].map(read),
)) as [string, string, string, string]
const manifest = JSON.parse(await read('package.json')) as { version: string; scripts: Record<string, string> }

interface Block {
  /** The example that it is a slice of. */
  readonly example: string | undefined
  readonly language: string
  readonly code: string
  /** Where it begins in the README. */
  readonly line: number
}

const blocks = [...readme.matchAll(/(?:^<!-- (example\/\S+) -->\n)?^```(\w*)\n([^]*?)^```$/gm)].map(
  ({ 1: example, 2: language = '', 3: code = '', index }): Block => ({ example, language, code, line: readme.slice(0, index).split('\n').length }),
)

/** The text under a heading of the README. */
const section = (heading: string): string => {
  const text = readme.split(/^## /m).find(each => each.startsWith(`${heading}\n`))
  expect(text, heading).to.be.a('string')
  return text!
}

const codes = (text: string): string[] => [...text.matchAll(/`([^`]+)`/g)].map(match => match[1]!)

/** The cells of a table's rows, its head left out. */
const rows = (text: string): string[][] => [...text.matchAll(/^\| ?(.*?) ?\|$/gm)].slice(2).map(match => match[1]!.split(/ ?\| ?/))

/** The members of a union of strings in a source file. */
const union = async (file: string, type: string): Promise<string[]> => {
  const text = new RegExp(`^export type ${type} =([^;]*?)\\n\\n`, 'm').exec(`${await read(file)}\n\n`)?.[1] ?? ''
  return [...text.matchAll(/'([^']+)'/g)].map(match => match[1]!)
}

/** What a file exports, by its `export` clauses. */
const exportsOf = async (file: string): Promise<string[]> =>
  [...(await read(file)).matchAll(/^export (?:type )?\{([^}]*)\}/gm)].flatMap(match =>
    match[1]!
      .split(',')
      .map(name => name.trim().replace(/^type /, ''))
      .filter(name => name !== ''),
  )

/** Compiles sources with the repository's settings. Resolves with the complaints, each as `file(line): …`. */
const compile = async (sources: Record<string, string>, options: object): Promise<string[]> => {
  // Ignored by git, and below the packages that the sources import.
  const folder = new URL(`node_modules/.cache/koa-sse-docs-${process.pid}/`, root)
  await mkdir(folder, { recursive: true })
  try {
    for (const [name, text] of Object.entries(sources)) await writeFile(new URL(name, folder), text)
    const paths = { 'koa-sse': ['../../../src/index.ts'], 'koa-sse/redis': ['../../../src/redis/index.ts'] }
    // Snippets are no library: what they declare need be neither used nor annotated.
    const compilerOptions = { noUnusedLocals: false, isolatedDeclarations: false, declaration: false, declarationMap: false, paths, ...options }
    await writeFile(
      new URL('tsconfig.json', folder),
      JSON.stringify({ extends: '../../../tsconfig.json', compilerOptions, include: [], files: Object.keys(sources) }),
    )
    const tsc = fileURLToPath(new URL('node_modules/typescript/bin/tsc', root))
    const output = await new Promise<string>(resolve => {
      execFile(process.execPath, [tsc, '--pretty', 'false', '-p', fileURLToPath(folder)], { cwd: fileURLToPath(folder) }, (_, stdout, stderr) =>
        resolve(stdout + stderr),
      )
    })
    return output
      .split('\n')
      .filter(line => line !== '')
      .map(line => line.replace(/,\d+\): error/, ')'))
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

/** A block as a file that has it in the README's own lines, so that complaints name these. */
const inPlace = ({ code, line }: Block): string => '\n'.repeat(line) + code

describe('pipe()', () => {
  it("keeps the type of a web stream's items where TypeScript knows the DOM, as it does by default", async () => {
    const code = `
      import { Hub, type EventStream } from 'koa-sse'
      export const all = (stream: EventStream, hub: Hub, numbers: ReadableStream<number>): unknown => [
        stream.pipe(numbers, { map: n => n.toFixed() }),
        stream.pipe(async () => numbers, { map: n => n.toFixed() }),
        stream.pipe(async signal => (await fetch('/', { signal })).body!.pipeThrough(new TextDecoderStream()), { map: text => text.trim() }),
        hub.pipe('numbers', numbers, { map: n => n.toFixed() }),
      ]
    `
    const control = 'export const wrong: string = document.title.length\n'
    const complaints = await compile({ 'dom.ts': code, 'control.ts': control }, { lib: ['ESNext', 'DOM'] })
    expect(complaints.join('\n')).to.match(/^control\.ts\(1\).*'number' is not assignable to type 'string'[^\n]*$/)
  }).timeout(60_000)
})

describe('README.md', () => {
  it('has at most 300 lines', () => {
    expect(readme.trimEnd().split('\n').length).to.be.at.most(300)
  })

  it('keeps its order', () => {
    expect([...readme.matchAll(/^## (.*)$/gm)].map(match => match[1])).to.deep.equal([
      'Install',
      '`ctx.sse`',
      'Sources and backpressure',
      'The hub',
      'Reconnecting',
      'Many processes',
      'Options',
      'Errors',
      'Behind a proxy',
      'Shutting down',
      'Testing your own streams',
      'Performance',
      'Licence',
    ])
    const [server, client] = blocks
    expect([server!.language, client!.language]).to.deep.equal(['ts', 'js'])
    expect(server!.code.trimEnd().split('\n').length).to.be.at.most(13)
    expect(client!.code.trimEnd().split('\n').length).to.equal(3)
  })

  for (const { example, code, line } of blocks.filter(block => block.example !== undefined)) {
    it(`shows a slice of ${example} in line ${line}`, async () => {
      expect(`\n${await read(example!)}`).to.include(`\n${code}`)
    })
  }

  it('has code that compiles', async () => {
    const own = blocks.filter(block => block.language === 'ts' && block.example === undefined)
    expect(own.length).to.be.above(2)
    const sources = Object.fromEntries(own.map(block => [`readme-${block.line}.ts`, inPlace(block)]))
    // The last file shows that the judge is awake.
    const control = "import { sse } from 'koa-sse'\nsse({ heartbeats: 1 })\n"
    const complaints = await compile({ ...sources, 'control.ts': control }, {})
    expect(complaints.join('\n')).to.match(/^control\.ts\(2\).*'heartbeats' does not exist in type 'SseOptions'[^\n]*$/)
  }).timeout(60_000)

  it('has code for browsers that compiles', async () => {
    const scripts = blocks.filter(block => block.language === 'js')
    expect(scripts.length).to.be.above(1)
    const sources = Object.fromEntries(scripts.map(block => [`readme-${block.line}.js`, `${inPlace(block)}export {}\n`]))
    const browser = { allowJs: true, checkJs: true, lib: ['ES2023', 'DOM', 'DOM.Iterable'], types: [], noImplicitAny: false, paths: {} }
    const complaints = await compile({ ...sources, 'control.js': "export const source = new EventSource('/')\nsource.on('time')\n" }, browser)
    expect(complaints.join('\n')).to.match(/^control\.js\(2\).*'on' does not exist[^\n]*$/)
  }).timeout(60_000)

  it('has no other code than this', () => {
    expect(new Set(blocks.map(block => block.language))).to.deep.equal(new Set(['ts', 'js']))
    expect([...readme.matchAll(/^```/gm)].length).to.equal(2 * blocks.length)
  })

  describe('its table of options', () => {
    const table = new Map<string, Map<string, string>>()
    let group = new Map<string, string>()
    for (const [name = '', value = ''] of rows(section('Options'))) {
      const heading = /^\*\*`(.*)`\*\*$/.exec(name)?.[1]
      if (heading !== undefined) table.set(heading, (group = new Map()))
      else for (const [index, option] of codes(name).entries()) group.set(option, codes(value)[index] ?? '')
    }
    /** The names that a function accepts, by what it says when it gets another. */
    const accepted = (call: (options: object) => unknown): string[] => {
      try {
        call({ nonsense: true })
      } catch (error) {
        const [unknown, ...known] = codes((error as Error).message)
        expect(unknown).to.equal('nonsense')
        return known.filter(name => name !== 'options')
      }
      throw new Error('it accepts anything')
    }
    const subjects: [heading: string, call: (options: object) => unknown, files: string[]][] = [
      ['sse()', options => sse(options), ['src/sse-options.ts']],
      ['new Hub()', options => new Hub(options), ['src/hub-options.ts', 'src/hub.ts']],
      ['new RedisBroker()', options => new RedisBroker(options), ['src/redis/redis-options.ts', 'src/redis/connection.ts']],
    ]

    it('is about sse(), Hub and RedisBroker', () => {
      expect([...table.keys()]).to.deep.equal(subjects.map(([heading]) => heading))
    })

    for (const [heading, call, files] of subjects) {
      it(`names what ${heading} accepts, and nothing else`, () => {
        expect([...table.get(heading)!.keys()].toSorted()).to.deep.equal(accepted(call).toSorted())
      })

      it(`has the defaults of ${heading}`, async () => {
        const text = (await Promise.all(files.map(read))).join('\n')
        for (const [option, value] of table.get(heading)!) {
          const default_ = new RegExp(`[ {]${option} = ('.*?'|\\{\\}|[\\w]+)[, ]`).exec(text)?.[1]
          if (default_ !== undefined) expect(value, option).to.equal(default_)
          // Not where options are taken apart: made when it is needed.
          else if (value !== '') expect(text, option).to.match(new RegExp(`(?:new |\\?\\? )${value}`))
        }
      })
    }

    it('has the defaults of history', async () => {
      const [defaults] = /\{ events: [^}]*\}/.exec(section('Options')) ?? []
      expect(await read('src/log.ts')).to.include(`const ${defaults!.replaceAll(':', ' =')} = options`)
    })
  })

  it('has a line for each code of SseError', async () => {
    const listed = [...section('Errors').matchAll(/^- `(\w+)`: /gm)].map(match => match[1])
    expect(listed).to.deep.equal(await union('src/errors.ts', 'SseErrorCode'))
  })

  it('names every reason for which a stream ends', async () => {
    const [line] = section('`ctx.sse`').match(/^\| `signal`, `closed` .*$/m) ?? []
    expect(codes(line!).slice(3)).to.deep.equal(await union('src/outcome.ts', 'CloseReason'))
  })

  for (const [name, file] of [
    ['koa-sse', 'src/index.ts'],
    ['koa-sse/redis', 'src/redis/index.ts'],
  ] as const) {
    it(`lists what ${name} exports`, async () => {
      const [line] = readme.match(new RegExp(`^- \`${name}\` exports .*$`, 'm')) ?? []
      expect(codes(line!).slice(1).toSorted()).to.deep.equal((await exportsOf(file)).toSorted())
    })
  }

  it('names every member of ctx.sse and of a hub', async () => {
    // Methods and getters of the class's own; its comments and private members begin otherwise.
    const members = async (file: string, Class: string): Promise<string[]> => {
      const body = new RegExp(`^export class ${Class}\\b[^]*?^\\}`, 'm').exec(await read(file))![0]
      return [...new Set([...body.matchAll(/^ {2}(?:get |async )?([a-z]\w*)(?:<.*?>)?\(/gm)].map(match => match[1]!))].filter(
        name => name !== 'constructor',
      )
    }
    const named = (heading: string): string[] => rows(section(heading)).flatMap(([cell]) => codes(cell!).map(code => /^\w+/.exec(code)![0]))
    expect(named('`ctx.sse`').toSorted()).to.deep.equal((await members('src/event-stream.ts', 'EventStream')).toSorted())
    expect(named('The hub').toSorted()).to.deep.equal((await members('src/hub.ts', 'Hub')).toSorted())
  })
})

describe('ARCHITECTURE.md', () => {
  it('has at most 80 lines', () => {
    expect(architecture.trimEnd().split('\n').length).to.be.at.most(80)
  })

  it('lists the files in the order that the linter holds them to', async () => {
    const { overrides } = JSON.parse(await read('.oxlintrc.json')) as { overrides: { files: string[] }[] }
    const files = overrides.flatMap(override => override.files).filter(file => file.startsWith('src/'))
    const listed = rows(architecture.split(/^## /m)[1]!).map(([cell]) => codes(cell!)[0]!)
    expect(listed.filter(file => file !== 'index.ts')).to.deep.equal(files.map(file => file.slice('src/'.length)))
    for (const file of listed) expect(existsSync(new URL(`src/${file.replace('/**', '')}`, root)), file).to.equal(true)
  })

  it('tells of every reason for which a stream ends', async () => {
    const [, , , ends = ''] = architecture.split(/^## /m)
    const told = new Set(rows(ends).flatMap(([, reason]) => codes(reason!)))
    expect([...told].toSorted()).to.deep.equal((await union('src/outcome.ts', 'CloseReason')).toSorted())
  })
})

describe('CHANGELOG.md', () => {
  it('knows the version in package.json', () => {
    expect(changelog).to.include(manifest.version)
  })
})

for (const [name, text] of Object.entries({ readme, architecture, contributing })) {
  describe(`the commands and files that ${name} names`, () => {
    it('exist', () => {
      const commands = [...text.matchAll(/npm (?:run ([\w:]+)|(test|start)\b)/g)].map(match => match[1] ?? match[2]!)
      for (const command of commands) expect(manifest.scripts, `npm run ${command}`).to.have.property(command)
      const files = [...text.matchAll(/\b(?:example|test|bench|src)\/[\w./-]*\.(?:ts|md)\b/g)].map(match => match[0])
      for (const [, link] of text.matchAll(/\]\((?!https?:)([^)#]+)\)/g)) files.push(link!)
      for (const file of files) expect(existsSync(new URL(file, root)), file).to.equal(true)
    })
  })
}
