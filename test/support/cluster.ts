import { freePort, RedisServer } from './redis.ts'

const SLOTS = 16_384

interface Member {
  readonly server: RedisServer
  readonly bus: number
  readonly id: string
}

const member = async (): Promise<Member> => {
  const bus = await freePort()
  const own = ['--cluster-enabled', 'yes', '--cluster-port', `${bus}`, '--cluster-node-timeout', '5000']
  // A master that is gone does not take the others with it.
  const server = await RedisServer.start({ args: [...own, '--cluster-require-full-coverage', 'no', '--repl-diskless-sync-delay', '0'] })
  return { server, bus, id: (await server.command('CLUSTER', 'MYID')) as string }
}

const eventually = async (condition: () => Promise<boolean>): Promise<void> => {
  while (!(await condition())) await new Promise(resolve => setTimeout(resolve, 20))
}

/** A Redis Cluster of three masters, one of which has the key, and a replica of that one. */
export class RedisCluster {
  readonly #key: string
  readonly #members: readonly Member[]
  #slot = 0
  /** Has the key. */
  owner!: RedisServer
  /** The other masters. */
  others: RedisServer[] = []
  readonly replica: RedisServer

  private constructor(key: string, members: readonly Member[]) {
    this.#key = key
    this.#members = members
    this.replica = members[3]!.server
  }

  static async start(key: string): Promise<RedisCluster> {
    const members = [member(), member(), member(), member()]
    try {
      const cluster = new RedisCluster(key, await Promise.all(members))
      await cluster.#join()
      return cluster
    } catch (error) {
      for (const each of await Promise.allSettled(members)) if (each.status === 'fulfilled') await each.value.server.stop()
      throw error
    }
  }

  async #join(): Promise<void> {
    const members = this.#members
    const [{ server: first, bus }] = members as [Member]
    this.#slot = (await first.command('CLUSTER', 'KEYSLOT', this.#key)) as number
    for (const [i, { server }] of members.slice(0, 3).entries()) {
      const [from, to] = [Math.floor((SLOTS * i) / 3), Math.floor((SLOTS * (i + 1)) / 3) - 1] as const
      await server.command('CLUSTER', 'SET-CONFIG-EPOCH', i + 1)
      await server.command('CLUSTER', 'ADDSLOTSRANGE', from, to)
      if (this.#slot >= from && this.#slot <= to) this.owner = server
      else this.others.push(server)
    }
    for (const { server } of members.slice(1)) await server.command('CLUSTER', 'MEET', '127.0.0.1', first.port, bus)
    for (const { server } of members) {
      await eventually(async () => /cluster_state:ok[^]*cluster_known_nodes:4/.test((await server.command('CLUSTER', 'INFO')) as string))
    }
    await this.replicate()
  }

  /** The replica is the owner's. */
  async replicate(): Promise<void> {
    await this.replica.command('CLUSTER', 'REPLICATE', this.#id(this.owner))
    await eventually(async () => (await this.owner.info('replication', 'slave0')).includes('state=online'))
  }

  #id(server: RedisServer): string {
    return this.#members.find(member => member.server === server)!.id
  }

  /** Moves the key. Until {@link settle} nobody is told where, but who asks for it where it was. */
  async move(to: RedisServer): Promise<void> {
    await to.command('CLUSTER', 'SETSLOT', this.#slot, 'IMPORTING', this.#id(this.owner))
    await this.owner.command('CLUSTER', 'SETSLOT', this.#slot, 'MIGRATING', this.#id(to))
    await this.owner.command('MIGRATE', '127.0.0.1', to.port, this.#key, 0, 5_000)
  }

  /** The key is there now, and every master says so. */
  async settle(at: RedisServer): Promise<void> {
    const masters = [at, this.owner, ...this.others.filter(server => server !== at)]
    for (const server of masters) await server.command('CLUSTER', 'SETSLOT', this.#slot, 'NODE', this.#id(at))
    ;[this.owner, ...this.others] = masters as [RedisServer]
  }

  /** Nobody has the slot any more, or its owner has it again. */
  async serve(yes: boolean): Promise<void> {
    await this.owner.command('CLUSTER', yes ? 'ADDSLOTS' : 'DELSLOTS', this.#slot)
  }

  /** The owner dies, and the replica takes its place. */
  async failOver(): Promise<void> {
    await this.owner.kill()
    await this.replica.command('CLUSTER', 'FAILOVER', 'TAKEOVER')
    this.owner = this.replica
  }

  async stop(): Promise<void> {
    await Promise.all(this.#members.map(async ({ server }) => server.stop()))
  }
}
