import { setTimeout } from 'node:timers/promises'

const TOKENS = `I am no model, only a generator that waits a little before each word, but all around me is real. \
Every token is an event of its own. The server asks me for the next one when there is room for it, \
so a reader on a slow line slows me down instead of filling the server's memory.

Press Stop, and the page aborts its fetch. The connection closes, the stream's signal is aborted, \
and I am released on the spot, in the middle of a sentence if need be: \
no more words are written that nobody reads. The counter at the top of this page tells.

If you let me finish, the stream ends with me, cleanly.`

const RESUMABLE = `I am written into a channel, and whoever reads it is none of my business. \
Reload the page now, in the middle of a sentence: I go on without you, \
and when you are back you are told all of me, from the first word, and then the rest as it comes.

Where the connection merely breaks, your browser comes back by itself with the id of the last word that it has seen, \
and is told the words after it: none is missing, and none comes twice.

Copy the address of this page into another tab, and it reads along.`

/** Writes an answer, a word with its white space at a time. */
export const write = (prompt: string, answer: string = TOKENS): string[] =>
  `You asked: “${prompt.trim().slice(0, 200)}”\n\n${answer}`.split(/(?<=\s)(?=\S)/)

/** The same of an answer that outlives its readers. */
export const writeOn = (prompt: string): string[] => write(prompt, RESUMABLE)

/** Resolves when the next word has been found. */
export type Pace = (signal: AbortSignal) => Promise<unknown>

export const pace: Pace = signal => setTimeout(20, undefined, { signal })
