import { resolve } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'

const dist = process.argv[3] ?? fileURLToPath(new URL('../../dist', import.meta.url))

/** koa-sse as it was built, here or in the directory that the command line names. */
export const library = await import(String(pathToFileURL(resolve(dist, 'index.js'))))
