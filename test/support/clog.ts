import type { EventStream } from 'koa-sse'
import { isPending } from './promises.ts'

const LARGE = { chunk: 'x'.repeat(100_000), behind: 'x'.repeat(800_000) }

/**
 * Makes bytes wait on the server for a client that does not read, however much the kernel takes: sends until a send has to wait, and
 * then `behind`, for which even a kernel that finds some room later has none.
 */
export const clog = async (stream: EventStream, { chunk, behind }: { chunk: string; behind: string } = LARGE): Promise<void> => {
  for (;;) {
    const sent = stream.send(chunk)
    if (await isPending(sent)) break
    if (!(await sent)) throw new Error('the stream has ended')
  }
  if (behind !== '') void stream.send(behind)
}
