import type { Newline } from './event.ts'
import type { Request, Response } from './http.ts'
import type { Outlet } from './outlet.ts'

/** What a stream needs to know of its options. */
export interface StreamSettings {
  readonly heartbeat: number | false
  readonly heartbeatText: string
  readonly retry: number | undefined
  readonly newline: Newline
  readonly highWaterMark: number
  readonly maxBuffer: number
  readonly stallTimeout: number | false
  readonly maxAge: number | false
}

/** A response that is not a stream, or none yet. */
export interface Answer {
  readonly body: unknown
  readonly status: number
  /** Somebody has set the status, or answers past Koa. */
  readonly isDecided: boolean
}

/** One request, as the middleware shows it to its stream. */
export interface Exchange<S> {
  readonly req: Request
  readonly res: Response
  readonly settings: StreamSettings
  /** What is to be answered, as far as anybody has said. */
  readonly answer: Answer
  /** Throws what the client is to be told when no more streams may open; or returns the milliseconds after which it is to come back. */
  admit(): number | undefined
  /** Something waits for its first event to open the stream. Throws as `admit` where none may open any more; calls back when that has become so, until the function that it returns is called. */
  wait(refuse: () => void): () => void
  /** The same where none may open in any case. */
  turnAway(politely: boolean): number
  /** The stream opens: its body becomes the response's. */
  enter(stream: S, outlet: Outlet): void
  /** The stream has ended; bytes may still be on their way. */
  ended(): void
  /** The response is over. */
  over(stream: S): void
  /** Tells the app of an error, and answers with the last event for the client, encoded. */
  report(error: unknown): string | undefined
}

/** A hub's end of a stream. */
export interface Feed {
  /** There is room again, after a write that left none. */
  drained(): void
  /** What goes out in place of a heartbeat's comment, if anything. */
  heartbeat(): string | undefined
  /** The stream has ended. */
  ended(): void
}
