import type { Request } from './http.ts'

/** The id that a returning client says it has seen last; see `EventStream.lastEventId`. */
export const lastEventId = (req: Request): string | undefined => {
  const header = req.headers['last-event-id']
  if (typeof header === 'string' && header !== '') {
    // Node hands the header's bytes over as latin1.
    const bytes = Buffer.from(header, 'latin1')
    const text = bytes.toString()
    return text.includes('\uFFFD') && !bytes.equals(Buffer.from(text)) ? header : text
  }
  const url = req.url ?? ''
  const query = url.indexOf('?')
  if (query === -1) return
  const params = new URLSearchParams(url.slice(query))
  return params.get('lastEventId') || params.get('last_event_id') || undefined
}
