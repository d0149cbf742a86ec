import { compare, type Client, type Place, type Stretch } from './client.ts'

/** An event that a publisher was told is in the log. */
export interface Acknowledged {
  readonly data: string
  readonly place: Place
}

/** What is wrong with what the clients were told. */
export interface Verdict {
  /** Acknowledged, inside a stretch without a reset, and never delivered. */
  lost: number
  duplicates: number
  disorders: number
  /** Resets with no wipe that could be the reason. */
  needless: number
  /** The first few of each, for people. */
  readonly examples: string[]
}

/** Every acknowledged event inside a stretch without a reset is to be there once, in order. */
export const judge = (clients: readonly Client[], acknowledged: ReadonlyMap<string, readonly Acknowledged[]>, wipes: readonly number[]): Verdict => {
  const verdict: Verdict = { lost: 0, duplicates: 0, disorders: 0, needless: 0, examples: [] }
  const note = (kind: 'lost' | 'duplicates' | 'disorders' | 'needless', text: string): void => {
    if (verdict[kind]++ < 3) verdict.examples.push(`${kind}: ${text}`)
  }
  const sorted = new Map([...acknowledged].map(([channel, events]) => [channel, [...events].toSorted((a, b) => compare(a.place, b.place))]))
  for (const [number, client] of clients.entries()) {
    for (const [i, stretch] of client.stretches.entries()) {
      const where = `client ${number}, stretch ${i} (${stretch.from.join('-')} to ${stretch.to.join('-')})`
      inside(stretch, where, note)
      const got = new Set(stretch.got.map(([, data]) => data))
      for (const channel of client.channels) {
        const events = sorted.get(channel) ?? []
        for (let at = firstAfter(events, stretch.from); at < events.length && compare(events[at]!.place, stretch.to) <= 0; at++) {
          if (!got.has(events[at]!.data)) note('lost', `${events[at]!.data} at ${events[at]!.place.join('-')}, ${where}`)
        }
      }
      const next = client.stretches[i + 1]
      // A wipe takes a moment to be noticed, and clients come back with what they had before it.
      if (next !== undefined && !wipes.some(at => at >= stretch.at - 10_000 && at <= next.at)) {
        note('needless', `${client.resets[client.resets.length - (client.stretches.length - 1 - i)]?.reason}, ${where}`)
      }
    }
  }
  return verdict
}

const inside = ({ got, from }: Stretch, where: string, note: (kind: 'duplicates' | 'disorders', text: string) => void): void => {
  const seen = new Set<string>()
  let last = from
  for (const [place, data] of got) {
    if (seen.has(data)) note('duplicates', `${data} at ${place.join('-')}, ${where}`)
    else if (compare(place, last) <= 0) note('disorders', `${data} at ${place.join('-')} after ${last.join('-')}, ${where}`)
    seen.add(data)
    last = place
  }
}

const firstAfter = (events: readonly Acknowledged[], place: Place): number => {
  let [low, high] = [0, events.length]
  while (low < high) {
    const middle = (low + high) >> 1
    if (compare(events[middle]!.place, place) <= 0) low = middle + 1
    else high = middle
  }
  return low
}
