import { createChannel, createSession } from 'better-sse'
import { payloads } from '../payload.js'

export const start = () => {
  const channels = new Map()
  const channelOf = name => {
    let channel = channels.get(name)
    if (channel === undefined) channels.set(name, (channel = createChannel()))
    return channel
  }
  const listener = async (req, res) => {
    const session = await createSession(req, res)
    if (req.url.startsWith('/stream/')) {
      await session.iterate(payloads(Number(req.url.slice(8))))
      res.end()
      return
    }
    channelOf(req.url.slice(8)).register(session)
  }
  return { listener, publish: (channel, data) => void channelOf(channel).broadcast(data) }
}
