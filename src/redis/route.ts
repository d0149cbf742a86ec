import { isReply, type Address, type Connection } from './connection.ts'

type Slots = [from: number, to: number, ...nodes: [host: string | null, port: number, ...unknown[]][]][]

const REDIRECT = /^(MOVED|ASK) \d+ (.*):(\d+)$/
// A cluster has at most so many nodes.
const MOST = 1_000

/** The address that a node names. What it leaves out is where it was asked itself; '?' is what it does not know. */
const addressOf = (host: string | null, port: number, from: Connection, asking: boolean): Address | undefined =>
  host === '?' ? undefined : { host: host || (from.redis.options.host ?? 'localhost'), port, asking }

const isSame = (a: Address, b: Address): boolean => a.host === b.host && a.port === b.port

/**
 * Where the next connection goes: to the server that was configured, until that is a node of a cluster, and names another.
 *
 * The log is one key, so one node has it. All else to know of a cluster is whom to ask when that node is gone.
 */
export class Route {
  #nodes: readonly Address[] = []
  #next: Address | undefined

  /** Undefined: to what was configured. */
  get next(): Address | undefined {
    return this.#next
  }

  /** Goes where an error points. False: it points nowhere. */
  follow(error: unknown, from: Connection): boolean {
    const [, kind, host, port] = (isReply(error) && REDIRECT.exec(error.message)) || []
    if (host === undefined) return false
    const address = addressOf(host, Number(port), from, kind === 'ASK')
    this.#next = address
    if (address !== undefined) this.#nodes = [address, ...this.#nodes.filter(node => !isSame(node, address))].slice(0, MOST)
    return true
  }

  /** That server is no help: asks the next one, and each in turn, the configured one among them. */
  turn(from: Connection): void {
    // Another connection has turned away already.
    if (from.address !== this.#next) return
    const index = this.#nodes.findIndex(node => from.address !== undefined && isSame(node, from.address))
    // After the last comes what was configured; and after that, the first.
    this.#next = from.address !== undefined && index === -1 ? undefined : this.#nodes[index + 1]
  }

  /** Asks which nodes there are, if it is a cluster. */
  async learn(from: Connection): Promise<void> {
    try {
      const slots = (await from.call('CLUSTER', 'SLOTS')) as Slots
      const nodes = slots.flatMap(([, , ...each]) => each.map(([host, port]) => addressOf(host, port, from, false)))
      const byName = new Map(nodes.flatMap(node => (node === undefined ? [] : [[`${node.host}:${node.port}`, node]])))
      if (byName.size > 0) this.#nodes = [...byName.values()]
    } catch {
      // It is none, or does not let us ask; then those that redirects have named will do.
    }
  }
}
